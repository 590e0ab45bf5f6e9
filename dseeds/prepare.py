"""What a user asks for, checked before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dseeds import __version__
from dseeds.budget import choose_region, cut_labels, extents, whole_cells
from dseeds.cluster import Capacity
from dseeds.io import Source, check_nifti_target, open_source
from dseeds.io.place import is_remote, open_place
from dseeds.lattice import Lattice, check_shape
from dseeds.quantise import check_dtype
from dseeds.run import SUFFIX, Asked, Run, is_nifti, memory_cut
from dseeds.runs import FORMAT, Mismatch, is_published, read_document
from dseeds.scores import check_compactness
from dseeds.steps import choose_step
from dseeds.target import check_target, written_by
from dseeds.windows import read_window


def prepare(
    source: Any,
    target: str | Path,
    asked: Asked,
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
    address = open_place(target).address
    begun = read_document(open_place(address + SUFFIX)) if resume else None
    if begun is not None:
        asked = _completed(asked, begun)
    image = open_source(source, volume=asked.volume)
    check_dtype(image.dtype)
    shape = check_shape(image.shape)
    step = choose_step(
        shape, step=asked.step, n_segments=asked.n_segments, spacing=asked.spacing, known_spacing=image.spacing
    )
    window = read_window(asked.window)
    compactness = check_compactness(asked.compactness or 0.0)
    lattice = Lattice(shape, step)
    _check_source_stays(address, image)
    if is_nifti(address):
        _check_nifti(address, image)
    has = capacity()
    shards, chunks = extents("shards", asked.shards), extents("chunks", asked.chunks)
    region = choose_region(
        lattice,
        image.dtype.itemsize,
        has,
        region=asked.region,
        cut=memory_cut(image, chunks),
        whole=whole_cells(lattice, shards),
    )
    document = {
        "format": FORMAT,
        "dseeds": __version__,
        "source": image.identity,
        "shape": shape,
        "step": step,
        "window": window,
        "compactness": compactness,
        "region": region,
        "labels": cut_labels(lattice, region, shards, chunks),
        "asked": asked.to_dict(),
        "scratch": None if asked.scratch is None else open_place(asked.scratch).address,
        "given": _given(source, image),
        "overwrite": overwrite,
    }
    plain = json.loads(json.dumps(document))
    if begun is not None:
        check_same(begun, plain, address)
        plain = begun
    run = Run(image, image.path or source, address, plain, plain["overwrite"])
    check_place(run)
    return run, has


def _given(source: Any, image: Source) -> str | None:
    """Name the source so that others can open it, from any folder: an OME-Zarr image by its group."""
    if not isinstance(source, str | Path):
        return image.path
    try:
        return open_place(source).address
    except ValueError:
        return str(source)


def _completed(asked: Asked, begun: Mapping[str, Any]) -> Asked:
    """Fill in what the run that is to be gone on with was asked."""
    before = dict(begun["asked"])
    said = {key: value for key, value in vars(asked).items() if value is not None}
    if said.keys() & {"step", "n_segments"}:
        before = {key: value for key, value in before.items() if key not in ("step", "n_segments")}
    # The cut of the volume is the run's, even where it was chosen for it.
    units = zip(begun["region"], begun["step"], strict=True)
    return Asked(**{"region": [k * s for k, s in units], **before, **said})


def check_same(begun: Mapping[str, Any], now: Mapping[str, Any], target: str) -> None:
    """Refuse to go on with a run as if it were another.

    Raises
    ------
    Mismatch
        That names the differences.
    """
    ignored = {"asked", "overwrite", "given"}
    differing = [key for key in now if key not in ignored and begun.get(key) != now[key]]
    if not differing:
        return
    said = "; ".join(_difference(key, begun.get(key), now[key]) for key in differing)
    raise Mismatch(
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


def _check_source_stays(target: str, image: Source) -> None:
    if image.path is None or is_remote(target) != is_remote(image.path):
        return
    if is_remote(target):
        held = {image.path, *(image.path[:end] for end, letter in enumerate(image.path) if letter == "/")}
        same = target in held
    else:
        path, source = Path(target).resolve(), Path(image.path).resolve()
        same = path in {source, *source.parents}
    if same:
        raise FileExistsError(f"{target} is the source, or holds it: name another target.")


def _check_nifti(target: str, image: Source) -> None:
    name = target.rpartition("/")[2]
    if is_remote(target):
        raise ValueError(f"{target} is not on this machine: NIfTI is written to local files; name one, or a .zarr.")
    if image.kind != "nifti":
        raise ValueError(f"{name} would be NIfTI, but the source is not: name a target such as labels.zarr.")


def check_place(run: Run) -> None:
    """Refuse a target or a scratch folder that cannot or must not be written."""
    if run.nifti:
        if not is_published(run):
            check_nifti_target(Path(run.target), run.overwrite)
    elif written_by(open_place(run.target)) != run.identity and not is_published(run):
        check_target(open_place(run.target), run.overwrite)
    scratch = run.document["scratch"]
    if scratch is not None and not is_remote(scratch) and not Path(scratch).is_dir():
        raise FileNotFoundError(f"the scratch folder {scratch} does not exist.")
