"""The checks of a run before anything is written: options in, an opened and specified run out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dseeds.core.checks import read_extents
from dseeds.core.duck_arrays import unmasked_voxels
from dseeds.core.geometry import Lattice, check_shape, triple
from dseeds.core.mask_blocks import MaskBlocks
from dseeds.engine.memory_model import (
    TaskShape,
    choose_label_layout,
    choose_region_shape,
    room_beside_tasks,
    shard_alignment,
)
from dseeds.engine.run import (
    AUTO_MASK,
    SUFFIX,
    UNHASHED_KEYS,
    LabelParameters,
    ResolvedTarget,
    Run,
    RunOptions,
    RunSpec,
    chunk_shapes,
    join_boundaries,
    open_run_image,
)
from dseeds.engine.run_directory import RunMismatch, is_published, read_spec
from dseeds.io import Image, Mask, ZarrSource, check_nifti_target, open_boundary_map, open_mask
from dseeds.io.label_listing import is_label_of, label_format
from dseeds.io.pyramid_levels import PyramidLevel, choose_levels, extend_levels, match_levels
from dseeds.parallel.capacity import Capacity
from dseeds.seeds.binning import check_dtype
from dseeds.seeds.cell_size import choose_step
from dseeds.seeds.flood import check_boundaries
from dseeds.seeds.hierarchy import check_levels
from dseeds.seeds.intensity_windows import check_bins, check_percentiles, check_weights, read_windows
from dseeds.seeds.min_size import choose_min_size
from dseeds.seeds.schedule import OWN_MAP
from dseeds.seeds.scores import check_compactness
from dseeds.storage.label_group import check_target, written_by
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.ownership import check_apart

# How the coarser levels of labels can be made; the first is the default.
PYRAMIDS = ("mode", "nearest", "none")


def prepare_run(
    source: Any,
    target: str | Path,
    options: RunOptions,
    capacity: Callable[[], Capacity],
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> tuple[Run, Capacity]:
    """Check the options of a run and open its inputs, without writing; raise the errors of `dseeds.segment`.

    With `resume`, options that are not given are taken from the unfinished run of the target.
    """
    destination = ResolvedTarget.at(target)
    earlier = read_spec(destination.run_folder) if resume else None
    if earlier is not None:
        options = _complete_options(options, earlier)
    if options.n_segments is not None and options.mask is None:
        options = replace(options, mask=unmasked_voxels(source, options.channel_axis))
    image = open_run_image(source, options)
    for dtype in image.dtypes:
        check_dtype(dtype)
    mask = None if options.mask is None or is_auto(options.mask) else open_mask(options.mask, image)
    boundaries = _open_boundaries(options, image)
    spec, resources = _specify(source, image, mask, boundaries, destination, options, overwrite, capacity)
    if earlier is not None:
        check_resumable(earlier, spec, destination.address)
        spec = earlier
    first = source[0] if isinstance(source, list | tuple) else source
    run = Run(spec, destination, image, mask, boundaries, image.path or first)
    check_destination(run)
    if run.features:
        # Here, not above: Arrow takes its time to import.
        from dseeds.storage.parquet_dataset import Dataset

        # What a resumed run has left there is its own.
        Dataset(open_location(run.features)).check(spec.overwrite or earlier is not None)
    return run, resources


def _open_boundaries(options: RunOptions, image: Image) -> Image | None:
    """Open a boundary map of its own; None if there is none."""
    if check_boundaries(options.boundaries, options.compactness or 0.0) != OWN_MAP:
        return None
    boundaries = open_boundary_map(options.boundaries, image)
    check_dtype(boundaries.dtypes[0])
    return boundaries


def _specify(
    source: Any,
    image: Image,
    mask: Mask | None,
    boundaries: Image | None,
    target: ResolvedTarget,
    options: RunOptions,
    overwrite: bool,
    capacity: Callable[[], Capacity],
) -> tuple[RunSpec, Capacity]:
    """Check all options against the inputs and the target, and choose what is left open."""
    shape = check_shape(image.shape)
    blocks = None if mask is None or options.n_segments is None else mask.blocks()
    step = choose_step(
        shape,
        step=options.step,
        n_segments=options.n_segments,
        spacing=options.spacing,
        known_spacing=image.spacing,
        mask=blocks,
    )
    parameters = _check_parameters(options, image, mask, boundaries, blocks)
    volume = join_boundaries(image, boundaries)
    lattice = Lattice(shape, step)
    check_apart(target.address, *volume.paths, None if mask is None else mask.path)
    into_image = is_label_of(image, target.address)
    if target.is_nifti:
        _check_nifti(target, image, parameters.levels)
    resources = capacity()
    shards, chunks = read_extents("shards", options.shards), read_extents("chunks", options.chunks)
    region = choose_region_shape(
        lattice,
        task_shape(volume, parameters),
        resources,
        region=options.region,
        chunks=chunk_shapes(volume, chunks),
        multiple=shard_alignment(lattice, shards),
    )
    label_shard, label_chunk = choose_label_layout(lattice, region, shards, chunks)
    if into_image and label_format(target.address) == 2:
        if shards is not None:
            raise ValueError("the image is in Zarr v2, which has no shards: leave out shards (--shards).")
        label_shard = label_chunk
    method = PYRAMIDS[0] if options.pyramid is None else options.pyramid
    spec = RunSpec(
        source=image.identity,
        dtypes=tuple(dtype.newbyteorder("=").str for dtype in volume.dtypes),
        shape=shape,
        step=step,
        parameters=parameters,
        region=region,
        label_shard=label_shard,
        label_chunk=label_chunk,
        pyramid_method=method,
        pyramid=tuple(_choose_pyramid(method, image, target, into_image, options.spacing)),
        into_image=into_image,
        options=options,
        scratch=None if options.scratch is None else open_location(options.scratch).address,
        sources=_source_addresses(source, image),
        mask_address=None if mask is None else _address(options.mask) or mask.path,
        boundaries_address=None if boundaries is None else _address(options.boundaries) or boundaries.path,
        overwrite=overwrite,
        memory=resources.memory,
    )
    # As it is read back from its file, to be compared with an earlier one.
    return RunSpec.from_document(json.loads(json.dumps(spec.to_document()))), resources


def _check_parameters(
    options: RunOptions, image: Image, mask: Mask | None, boundaries: Image | None, blocks: MaskBlocks | None
) -> LabelParameters:
    return LabelParameters(
        windows=(*read_windows(options.window, image.channels), *([] if boundaries is None else [None])),
        percentiles=check_percentiles((0.5, 99.5) if options.percentiles is None else options.percentiles),
        bins=check_bins("auto" if options.bins is None else options.bins),
        weights=check_weights(options.weights, image.channels),
        mask=AUTO_MASK if is_auto(options.mask) else None if mask is None else mask.identity,
        boundaries=options.boundaries if boundaries is None else boundaries.identity,
        compactness=check_compactness(options.compactness or 0.0),
        min_size=choose_min_size(options.min_size, options.n_segments, blocks),
        levels=check_levels(0 if options.levels is None else options.levels),
    )


def _choose_pyramid(
    method: str, image: Image, target: ResolvedTarget, into_image: bool, spacing: Sequence[float] | None
) -> Sequence[PyramidLevel]:
    """Choose the levels of the labels' pyramid: those of the image or, if it has none, halves."""
    if method not in PYRAMIDS:
        raise ValueError(f"pyramid must be one of {', '.join(PYRAMIDS)}, not {method!r}.")
    source = next((part for part in image.parts if isinstance(part, ZarrSource) and part.multiscale), None)
    levels: Sequence[PyramidLevel] = match_levels(image.shape, source.coarser) if source else ()
    if into_image and source and source.multiscale:
        # OME-NGFF wants labels to have as many levels as their image.
        levels = extend_levels(image.shape, levels, len(source.multiscale.paths) - 1)
        if method == "none" and levels:
            raise ValueError("labels inside an image have as many levels as it has: pyramid must be mode or nearest.")
        return levels
    if method == "none" or target.is_nifti:
        return ()
    return levels or choose_levels(image.shape, spacing or image.spacing)


def task_shape(volume: Image, parameters: LabelParameters) -> TaskShape:
    """Return what the memory of a run's tasks depends on, besides the lattice."""
    query = parameters.image_query(volume.dtypes)
    return TaskShape(
        volume.itemsize,
        volume.channels,
        masked=query.may_be_masked,
        counted=query.needs_histogram,
        has_joins=parameters.min_size > 1 or parameters.levels > 0,
        boundaries=parameters.boundary_kind,
    )


def resident_room(run: Run, capacity: Capacity) -> int:
    """Return the bytes that states of regions may take in each worker between tasks."""
    chunks = chunk_shapes(run.volume, triple(run.labels_layout.chunk))
    task = task_shape(run.volume, run.spec.parameters)
    return room_beside_tasks(run.spec.lattice, run.spec.region, task, capacity, chunks)


def is_auto(mask: Any) -> bool:
    """Return whether a mask is to be determined from the image by a threshold."""
    return isinstance(mask, str) and mask == AUTO_MASK


def _source_addresses(source: Any, image: Image) -> list[str] | None:
    """Return addresses under which other processes can open the sources; an OME-Zarr image by its group."""
    sources = source if isinstance(source, list | tuple) else [source]
    addresses = [_address(channel) for channel in sources]
    if None not in addresses:
        return [address for address in addresses if address is not None]
    # Open arrays may have addresses too, but not each of several.
    return list(image.paths) if len(image.paths) == len(sources) else None


def _address(source: Any) -> str | None:
    """Return the address of a source that is given as a path or URL."""
    if not isinstance(source, str | Path):
        return None
    try:
        return open_location(source).address
    except ValueError:
        return str(source)


def _complete_options(options: RunOptions, earlier: RunSpec) -> RunOptions:
    """Fill in the options of the run that is resumed."""
    before, changes = earlier.options.given(), options.given()
    # Unlike the options, addresses do not depend on the working directory.
    if earlier.mask_address is not None:
        before["mask"] = earlier.mask_address
    if earlier.boundaries_address is not None:
        before["boundaries"] = earlier.boundaries_address
    if changes.keys() & {"step", "n_segments"}:
        before = {name: value for name, value in before.items() if name not in ("step", "n_segments")}
    # The regions stay what they are, even if they were chosen by the run.
    region = [cells * step for cells, step in zip(earlier.region, earlier.step, strict=True)]
    return RunOptions(**{"region": region, **before, **changes})


def check_resumable(earlier: RunSpec, spec: RunSpec, target: str) -> None:
    """Raise a `RunMismatch` that states the differences if a run is to be resumed with other parameters."""
    before, now = earlier.to_document(), spec.to_document()
    ignored = set(UNHASHED_KEYS) - {"scratch"}
    differences = [
        _difference(key, before[key], now[key]) for key in now if key not in ignored and before[key] != now[key]
    ]
    if differences:
        raise RunMismatch(
            f"the parameters differ from those of the unfinished run at {target}{SUFFIX} ({'; '.join(differences)}): "
            f"give the same, or overwrite it."
        )


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = [name for name in now if before.get(name) != now[name]]
        before, now = ({name: values.get(name) for name in names} for values in (before, now))
    return f"{key} was {_abbreviate(before)} and is now {_abbreviate(now)}"


def _abbreviate(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]} ..."


def _check_nifti(target: ResolvedTarget, image: Image, levels: int) -> None:
    if target.is_remote:
        raise ValueError(
            f"{target.address} is not on this machine, but NIfTI is written to local files: name one, or a .zarr."
        )
    if image.kind != "nifti":
        raise ValueError(f"{target.name} would be NIfTI, but the source is not: name a target such as labels.zarr.")
    if levels:
        raise ValueError(
            f"{target.name} would be NIfTI, which holds one level of supervoxels: name a target such as labels.zarr."
        )


def check_destination(run: Run) -> None:
    """Raise an error if the target or the scratch folder cannot or must not be written."""
    target, spec = run.target, run.spec
    if target.is_nifti:
        if not is_published(run):
            check_nifti_target(target.path, spec.overwrite)
    elif spec.into_image and not target.is_remote and not target.path.parent.exists():
        # The image has no labels yet.
        pass
    elif written_by(target.location) != run.identity and not is_published(run):
        check_target(target.location, spec.overwrite)
    if spec.scratch is not None and not is_remote(spec.scratch) and not Path(spec.scratch).is_dir():
        raise FileNotFoundError(f"the scratch folder {spec.scratch} does not exist.")
