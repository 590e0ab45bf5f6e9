"""The end of a run, in its own process: the labels' pyramids, features and parents, and publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from dseeds.core.geometry import Box, Tiling
from dseeds.core.lazy_module import LazyModule
from dseeds.engine import run_directory
from dseeds.engine.job import Job
from dseeds.engine.label_tables import read_table
from dseeds.engine.run import Run
from dseeds.engine.run_directory import PUBLISHING
from dseeds.engine.run_state import RunState
from dseeds.engine.scratch import source_name
from dseeds.io import Image, Source, write_nifti_labels
from dseeds.io.formats.file_writer import remove_partial
from dseeds.io.label_listing import list_labels, unlist_labels
from dseeds.io.labels import choose_tiling, open_labels
from dseeds.io.ome_metadata import in_version_04
from dseeds.io.pyramid import build_pyramid, pyramid_task_count
from dseeds.parallel.executor import Executor
from dseeds.seeds.intensity_windows import Limits
from dseeds.storage.label_group import (
    ATTRIBUTE,
    ZarrFormat,
    begin_target,
    check_target,
    level_name,
    parents_name,
    publish_labels,
    written_by,
)
from dseeds.storage.location import Location, open_location
from dseeds.storage.slabs import slab_thickness
from dseeds.storage.zarr_arrays import ScratchCorrupted, count_bytes

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

# Ids in a chunk of the tables of parents.
PARENTS_CHUNK = 1 << 18


class SourceChanged(ValueError):
    """The source is no longer what it was when the run started."""


class FinishedLabels(Protocol):
    """The labels of a run that are all written, or in memory, but not published yet."""

    @property
    def volume(self) -> Image:
        """The image, with a boundary map of its own, which tasks can read."""

    def opened(self) -> Source:
        """Return the labels as a source that tasks can read."""

    def read(self, box: Box) -> NDArray[Any]:
        """Return the labels in a box of voxels."""

    def parents(self, level: int) -> NDArray[Any]:
        """Return the parent, at a coarser level, of each supervoxel of the level before it; 0 for label 0."""


@dataclass(frozen=True)
class StoredLabels:
    """The labels of a run whose tasks have written them, to the target or to scratch."""

    run: Run
    state: RunState

    @property
    def volume(self) -> Image:
        """The volume that was cut, or its copy in scratch."""
        volume, store = self.run.volume, self.state.job.store
        if volume.readable_by_workers:
            return volume
        copies = (store.place.at(source_name(channel)).address for channel in range(volume.channels))
        return Image(tuple(map(open_labels, copies)))

    def opened(self) -> Source:
        """Return the stored labels."""
        group = self.state.job.labels[0]
        return open_labels(group.location.at(group.name).address)

    def read(self, box: Box) -> NDArray[Any]:
        """Return the labels in a box, with zeros for regions outside the mask."""
        return self.state.job.read_labels(box)

    def parents(self, level: int) -> NDArray[Any]:
        """Return a table of the hierarchy."""
        job = self.state.job
        return read_table(job, level, self.state.counts[level - 1]).astype(job.lattice.label_dtype)


def begin_labels(run: Run, job: Job) -> None:
    """Create the arrays of the labels in the target, after removing an older output."""
    target, spec = run.target, run.spec
    if written_by(target.location) != run.identity:
        if spec.into_image:
            # Labels of others that have appeared since the run started stay listed.
            check_target(target.location, spec.overwrite)
            unlist_labels(target.address)
        begin_target(target.location, run.identity, spec.overwrite)
    create_labels(run, job)


def create_labels(run: Run, job: Job) -> None:
    """Create the arrays that regions write labels to, in the target or in scratch, unless they exist."""
    for labels in job.labels:
        for number, layout in enumerate((run.labels_layout, *run.pyramid_layouts[: len(job.pyramid)])):
            labels.coarser(number).create(layout)


def build_pyramids(run: Run, job: Job, executor: Executor, advance: Callable[[], object] = lambda: None) -> None:
    """Build what regions have not written of the pyramids of the labels once these are all written, replacing it."""
    written = len(job.pyramid)
    for level in range(len(job.labels) if run.spec.pyramid else 0):
        build_pyramid(
            run.target.address,
            run.spec.pyramid_method,
            run.spec.pyramid,
            within=level_name(level).rpartition("/")[0],
            executor=executor,
            run=run.identity,
            first=written + 1,
            # Nothing is stored for regions outside the mask.
            read_before=partial(job.read_labels, level=level, coarser=written) if job.outside else None,
            advance=advance,
        )


def pyramid_count(run: Run, written: int) -> int:
    """Count the tasks that build the pyramids of the labels, of which regions have written some levels."""
    layout, spec = (run.labels_layout, *run.pyramid_layouts)[written], run.spec
    count = pyramid_task_count(layout.shape, layout.chunk, layout.shard, spec.pyramid[written:])
    return (spec.parameters.levels + 1) * count


def measure_labels(
    run: Run, labels: FinishedLabels, windows: tuple[Limits, ...], executor: Executor, task_bytes: int
) -> None:
    """Write the table and the graph of the supervoxels once the labels are all written, if the user wants them."""
    if run.features is None:
        return
    # Here, not above: Arrow takes its time to import.
    from dseeds.measure.features import FeatureJob, measure_features, space_of, voxel_bytes
    from dseeds.measure.identity import LabelRun
    from dseeds.storage.parquet_dataset import Dataset

    volume, source = labels.volume, labels.opened()
    feature_job = FeatureJob(
        source,
        volume,
        Tiling(run.spec.shape, choose_tiling(run.spec.shape, source.chunks, voxel_bytes(volume), task_bytes)),
        space_of(volume, run.image.affine, run.spec.options.spacing or run.image.spacing, windows),
        Dataset(open_location(run.features)).begin(),
    )
    names = {"labels": Path(run.target.address).name, "image": run.image.name, "product": run.spec.product}
    measure_features(feature_job, executor, names, LabelRun(run.identity))


def gather_bin_counts(run: Run, state: RunState, protect: Callable[[Callable[[], None]], None]) -> None:
    """Add up the voxels in each bin, from which the contrast is told, unless they are recorded.

    `protect` repairs what is damaged.
    """
    if state.bin_counts is not None:
        return
    if not run_directory.is_published(run):
        protect(state.read_bin_counts)
        return
    # Scratch may be gone already, with the process that was removing it.
    with suppress(ScratchCorrupted, FileNotFoundError):
        state.read_bin_counts()


def finish_labels(
    run: Run,
    labels: FinishedLabels,
    state: RunState,
    advance: Callable[[], object],
    record: Mapping[str, Any] | None = None,
) -> None:
    """Publish the labels once they are all written, unless they have been published.

    `advance` is called after each slab that is exported, and `record` has further attributes of Zarr labels about their
    provenance. Raises `SourceChanged` if the source is no longer the same, or a FileNotFoundError if the target is
    gone.
    """
    if not run_directory.is_published(run):
        check_inputs(run)
        run.folder.create(PUBLISHING, b"")
        if run.target.is_nifti:
            export_nifti(run, labels, state.supervoxels, advance)
        else:
            publish_zarr(run, labels, state, record or {})
    if run.spec.into_image:
        list_labels(run.target.address)


def check_inputs(run: Run) -> None:
    """Raise `SourceChanged` if an input is no longer what it was when the run started."""
    parameters = run.spec.parameters
    inputs = (run.image, run.spec.source), (run.mask, parameters.mask), (run.boundaries, parameters.boundaries)
    if any(one is not None and one.reopened().identity != identity for one, identity in inputs):
        raise SourceChanged(
            "the source, the mask or the boundary map changed after the run started, so its labels would not match: "
            "start again with overwrite=True (--overwrite)."
        )


def publish_zarr(run: Run, labels: FinishedLabels, state: RunState, record: Mapping[str, Any]) -> None:
    """Write the tables of parents and the metadata that make the target a finished group; see `finish_labels`."""
    target, levels = run.target.location, range(1, len(state.job.labels))
    if written_by(target) != run.identity:
        raise FileNotFoundError(
            f"{run.target.address} has been removed or replaced since its labels were written: resume with "
            f"dseeds segment --resume to write them again."
        )
    for level in levels:
        _write_parents(target, level, labels.parents(level), run.zarr_format)
    attributes = run.attributes(state)
    attributes[ATTRIBUTE].update(record)
    coarser: list[dict[str, Any]] = [{"ome": run.ome_attributes(level)} for level in levels]
    if run.zarr_format == 2:
        attributes, coarser = in_version_04(attributes), list(map(in_version_04, coarser))
    publish_labels(target, attributes, coarser, run.zarr_format)


def _write_parents(target: Location, level: int, parents: NDArray[Any], zarr_format: ZarrFormat) -> None:
    """Write the parent, at a coarser level, of each supervoxel of the level before it."""
    chunks = (min(len(parents), PARENTS_CHUNK),)
    store = target.zarr(parents_name(level))
    zarr.create_array(store, data=parents, chunks=chunks, overwrite=True, zarr_format=zarr_format)


def export_nifti(run: Run, labels: FinishedLabels, supervoxels: int, advance: Callable[[], object]) -> None:
    """Write the labels as NIfTI, with the affine and the header of the source."""
    shape = run.spec.shape
    planes = slab_thickness(shape, run.labels_layout.dtype.itemsize)

    def slabs() -> Iterator[tuple[int, Any]]:
        for begin in range(0, shape[0], planes):
            slab = labels.read(Box((begin, 0, 0), (min(begin + planes, shape[0]), *shape[1:])))
            yield begin, slab
            count_bytes(written=slab.nbytes)
            advance()

    remove_partial(run.target.path)
    write_nifti_labels(
        run.target.path,
        slabs(),
        run.template,
        shape,
        max_label=supervoxels,
        overwrite=run.spec.overwrite,
        run=run.spec.product,
    )
