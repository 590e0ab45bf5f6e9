"""What a user asks for, checked before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dseeds._version import __version__
from dseeds.core.checks import read_extents
from dseeds.core.geometry import Lattice, check_shape
from dseeds.engine.memory_model import TaskShape, choose_label_layout, choose_region_shape, shard_alignment
from dseeds.engine.run import SUFFIX, Run, RunOptions, chunk_shapes
from dseeds.engine.run_directory import FORMAT, RunMismatch, is_published, read_document
from dseeds.io import Image, ZarrSource, check_nifti_target, open_image, open_mask
from dseeds.io.formats.nifti import is_nifti
from dseeds.io.label_listing import is_label_of
from dseeds.io.pyramid_levels import PyramidLevel, choose_levels, extend_levels, match_levels
from dseeds.parallel.cluster import Capacity
from dseeds.seeds.binning import check_dtype
from dseeds.seeds.cell_size import choose_step
from dseeds.seeds.hierarchy import check_levels
from dseeds.seeds.intensity_windows import check_bins, check_percentiles, check_weights, read_windows
from dseeds.seeds.min_size import check_min_size
from dseeds.seeds.scores import check_compactness
from dseeds.storage.label_group import check_target, written_by
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.ownership import check_apart
from dseeds.storage.parquet_dataset import Dataset

# How the coarser levels of labels are made; the first is meant where nothing is said.
PYRAMIDS = ("mode", "nearest", "none")


def prepare_run(
    source: Any,
    target: str | Path,
    asked: RunOptions,
    capacity: Callable[[], Capacity],
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> tuple[Run, Capacity]:
    """Check what is asked for; with `resume`, what is not said is taken from the run that is to be gone on with.

    Nothing is written.

    Raises
    ------
    FileNotFoundError, FileExistsError, TypeError, ValueError
        As `dseeds.segment`.
    """
    address = open_location(target).address
    begun = read_document(open_location(address + SUFFIX)) if resume else None
    if begun is not None:
        asked = _completed(asked, begun)
    image = open_image(source, volume=asked.volume, channel_axis=asked.channel_axis, level=asked.level or 0)
    for dtype in image.dtypes:
        check_dtype(dtype)
    mask = None if asked.mask is None or is_auto(asked.mask) else open_mask(asked.mask, image)
    shape = check_shape(image.shape)
    step = choose_step(
        shape, step=asked.step, n_segments=asked.n_segments, spacing=asked.spacing, known_spacing=image.spacing
    )
    labels_follow: dict[str, Any] = {
        "windows": read_windows(asked.window, image.channels),
        "percentiles": check_percentiles(_said(asked.percentiles, (0.5, 99.5))),
        "bins": check_bins(_said(asked.bins, "linear")),
        "weights": check_weights(asked.weights, image.channels),
        "mask": "auto" if is_auto(asked.mask) else None if mask is None else mask.identity,
        "compactness": check_compactness(asked.compactness or 0.0),
        "min_size": check_min_size(_said(asked.min_size, 0)),
        "levels": check_levels(_said(asked.levels, 0)),
    }
    lattice = Lattice(shape, step)
    check_apart(address, *image.paths, None if mask is None else mask.path)
    into_image = is_label_of(image, address)
    if is_nifti(address):
        _check_nifti(address, image, labels_follow["levels"])
    has = capacity()
    shards, chunks = read_extents("shards", asked.shards), read_extents("chunks", asked.chunks)
    region = choose_region_shape(
        lattice,
        task_shape(image, labels_follow),
        has,
        region=asked.region,
        chunks=chunk_shapes(image, chunks),
        multiple=shard_alignment(lattice, shards),
    )
    document = {
        "format": FORMAT,
        "dseeds": __version__,
        "source": image.identity,
        "dtypes": [dtype.newbyteorder("=").str for dtype in image.dtypes],
        "shape": shape,
        "step": step,
        **labels_follow,
        "region": region,
        "labels": choose_label_layout(lattice, region, shards, chunks),
        "pyramid": _pyramid(asked, image, address, into_image),
        "into_image": into_image,
        "asked": asked.to_dict(),
        "scratch": None if asked.scratch is None else open_location(asked.scratch).address,
        "given": _given(source, image),
        "given_mask": None if mask is None else _address(asked.mask) or mask.path,
        "overwrite": overwrite,
    }
    plain = json.loads(json.dumps(document))
    if begun is not None:
        check_resumable(begun, plain, address)
        plain = begun
    given = source[0] if isinstance(source, list | tuple) else source
    run = Run(image, image.path or given, address, plain, plain["overwrite"], mask)
    check_destination(run)
    if run.features:
        # What a run that is gone on with has left there is its own.
        Dataset(open_location(run.features)).check(run.overwrite or begun is not None)
    return run, has


def _said(value: Any, default: Any) -> Any:
    return default if value is None else value


def _pyramid(asked: RunOptions, image: Image, address: str, into_image: bool) -> dict[str, Any]:
    """Choose the levels of the labels' pyramid: those of the image, or where it has none, halves."""
    method = _said(asked.pyramid, PYRAMIDS[0])
    if method not in PYRAMIDS:
        raise ValueError(f"pyramid must be one of {', '.join(PYRAMIDS)}, not {method!r}.")
    source = next((part for part in image.parts if isinstance(part, ZarrSource) and part.multiscale), None)
    levels: Sequence[PyramidLevel] = match_levels(image.shape, source.coarser) if source else ()
    if into_image and source and source.multiscale:
        # OME-NGFF wants labels to have as many levels as their image.
        levels = extend_levels(image.shape, levels, len(source.multiscale.paths) - 1)
        if method == "none" and levels:
            raise ValueError("labels inside an image have as many levels as it has: pyramid must be mode or nearest.")
    elif method == "none" or is_nifti(address):
        levels = ()
    elif not levels:
        levels = choose_levels(image.shape, asked.spacing or image.spacing)
    return {"method": method, "levels": [(level.shape, level.factors) for level in levels]}


def task_shape(image: Image, document: Mapping[str, Any]) -> TaskShape:
    """Tell what the memory of a run's tasks follows from, besides the lattice."""
    masked = document["mask"] is not None or any(dtype.kind == "f" for dtype in image.dtypes)
    joins = document["min_size"] > 1 or document["levels"] > 0
    counted = document["mask"] == "auto" or document["bins"] == "equalised"
    return TaskShape(image.itemsize, image.channels, masked, counted, joins)


def is_auto(mask: Any) -> bool:
    """Tell whether the mask is to be found in the image."""
    return isinstance(mask, str) and mask == "auto"


def _given(source: Any, image: Image) -> list[str] | None:
    """Name the sources so that others can open them, from any folder: an OME-Zarr image by its group."""
    sources = source if isinstance(source, list | tuple) else [source]
    named = [_address(one) for one in sources]
    if None not in named:
        return [name for name in named if name is not None]
    # Open arrays have names too; some that have none are not told from those that share one.
    return list(image.paths) if len(image.paths) == len(sources) else None


def _address(source: Any) -> str | None:
    """Name a source that is given by its path or URL."""
    if not isinstance(source, str | Path):
        return None
    try:
        return open_location(source).address
    except ValueError:
        return str(source)


def _completed(asked: RunOptions, begun: Mapping[str, Any]) -> RunOptions:
    """Fill in what the run that is to be gone on with was asked."""
    before = dict(begun["asked"])
    if begun["given_mask"] is not None:
        # Whose name does not depend on the folder that one is in.
        before["mask"] = begun["given_mask"]
    said = {key: value for key, value in vars(asked).items() if value is not None}
    if said.keys() & {"step", "n_segments"}:
        before = {key: value for key, value in before.items() if key not in ("step", "n_segments")}
    # The cut of the volume is the run's, even where it was chosen for it.
    units = zip(begun["region"], begun["step"], strict=True)
    return RunOptions(**{"region": [k * s for k, s in units], **before, **said})


def check_resumable(begun: Mapping[str, Any], now: Mapping[str, Any], target: str) -> None:
    """Refuse to go on with a run as if it were another.

    Raises
    ------
    Mismatch
        That names the differences.
    """
    ignored = {"asked", "overwrite", "given", "given_mask"}
    differing = [key for key in now if key not in ignored and begun.get(key) != now[key]]
    if not differing:
        return
    said = "; ".join(_difference(key, begun.get(key), now[key]) for key in differing)
    raise RunMismatch(
        f"the unfinished run at {target}{SUFFIX} is another one ({said}): ask for the same, or overwrite it."
    )


def _difference(key: str, before: Any, after: Any) -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = [name for name in after if before.get(name) != after[name]]
        before, after = ({name: values.get(name) for name in keys} for values in (before, after))
    return f"{key} was {_short(before)} and is now {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]} ..."


def _check_nifti(target: str, image: Image, levels: int) -> None:
    name = target.rpartition("/")[2]
    if is_remote(target):
        raise ValueError(f"{target} is not on this machine: NIfTI is written to local files; name one, or a .zarr.")
    if image.kind != "nifti":
        raise ValueError(f"{name} would be NIfTI, but the source is not: name a target such as labels.zarr.")
    if levels:
        raise ValueError(
            f"{name} would be NIfTI, which holds one level of supervoxels: name a target such as labels.zarr."
        )


def check_destination(run: Run) -> None:
    """Refuse a target or a scratch folder that cannot or must not be written."""
    if run.nifti:
        if not is_published(run):
            check_nifti_target(Path(run.target), run.overwrite)
    elif run.into_image and not is_remote(run.target) and not Path(run.target).parent.exists():
        # The image has no labels yet.
        pass
    elif written_by(open_location(run.target)) != run.identity and not is_published(run):
        check_target(open_location(run.target), run.overwrite)
    scratch = run.document["scratch"]
    if scratch is not None and not is_remote(scratch) and not Path(scratch).is_dir():
        raise FileNotFoundError(f"the scratch folder {scratch} does not exist.")
