"""The two ends of a run, which its own process does: copying in what workers cannot read, and publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zarr

from dseeds.core.geometry import Box, Tiling
from dseeds.engine import run_directory
from dseeds.engine.job import Job
from dseeds.engine.label_tables import read_table
from dseeds.engine.run import Run
from dseeds.engine.run_directory import PUBLISHING
from dseeds.engine.run_state import RunState
from dseeds.engine.scratch import source_name
from dseeds.io import Image, write_nifti_labels
from dseeds.io.formats.file_writer import remove_partial
from dseeds.io.label_listing import list_labels, unlist_labels
from dseeds.io.labels import choose_tiling, open_labels
from dseeds.io.pyramid import build_pyramid, pyramid_task_count
from dseeds.measure.features import FeatureJob, measure_features, space_of, voxel_bytes
from dseeds.parallel.executor import Executor
from dseeds.storage.label_group import (
    ATTRIBUTE,
    begin_target,
    check_target,
    level_name,
    parents_name,
    publish_labels,
    written_by,
)
from dseeds.storage.location import Location, open_location
from dseeds.storage.parquet_dataset import Dataset
from dseeds.storage.slabs import slab_thickness
from dseeds.storage.zarr_arrays import count_bytes

# Ids in a chunk of the tables that tell what supervoxels are parts of.
PARENTS = 1 << 18


class SourceChanged(ValueError):
    """The source is not what it was when the run began."""


def finish_labels(
    run: Run, course: RunState, advance: Callable[[], object], record: Mapping[str, Any] | None = None
) -> None:
    """Publish the labels, which are all written, unless they have been published.

    Parameters
    ----------
    run, course : Run, Course
        The run.
    advance : callable
        Is told of each slab that is exported.
    record : dict, optional
        What else Zarr labels are to say of how they came about.

    Raises
    ------
    SourceChanged
        If the source has changed since the run began.
    FileNotFoundError
        If the target has been taken away.
    """
    if run_directory.is_published(run):
        _list(run)
        return
    unchanged = run.image.reopened().identity == run.document["source"]
    if not unchanged or (run.mask is not None and run.mask.reopened().identity != run.document["mask"]):
        raise SourceChanged(
            "the source or the mask has changed since the run began, so that its labels are of no image that there is: "
            "begin anew with overwrite=True (--overwrite)."
        )
    if run.nifti:
        _export(run, course, advance)
        return
    target = open_location(run.target)
    if written_by(target) != run.identity:
        raise FileNotFoundError(
            f"{run.target} has been taken away, or replaced, since its labels were written: go on with it with "
            f"dseeds segment --resume to write them again."
        )
    for level in range(1, len(course.job.labels)):
        _write_parents(course, target, level)
    run.folder.create(PUBLISHING, b"")
    attributes = run.attributes(course)
    attributes[ATTRIBUTE].update(record or {})
    publish_labels(target, attributes, [run.ome(level) for level in range(1, len(course.job.labels))])
    _list(run)


def _list(run: Run) -> None:
    """Have the image know of labels inside it, once they are whole."""
    if run.into_image:
        list_labels(run.target)


def begin_labels(run: Run, job: Job) -> None:
    """Make room for the labels in the target."""
    if written_by(open_location(run.target)) != run.identity:
        if run.into_image:
            # Those of others, which may have come to be there since the run began, stay listed.
            check_target(open_location(run.target), run.overwrite)
            unlist_labels(run.target)
        begin_target(open_location(run.target), run.identity, run.overwrite)
    for labels in job.labels:
        labels.create(run.labels_layout)


def build_pyramids(run: Run, job: Job, crew: Executor, advance: Callable[[], object] = lambda: None) -> None:
    """Build the pyramids of the labels, which are all written; what is there of them is built anew."""
    for level in range(len(job.labels) if run.pyramid else 0):
        build_pyramid(
            run.target,
            run.document["pyramid"]["method"],
            run.pyramid,
            within=level_name(level).rpartition("/")[0],
            crew=crew,
            run=run.identity,
            advance=advance,
        )


def pyramid_count(run: Run) -> int:
    """Count the tasks that build the pyramids of the labels."""
    layout = run.labels_layout
    levels = int(run.document["levels"]) + 1
    return levels * pyramid_task_count(layout.shape, layout.chunk, layout.shard, run.pyramid)


def measure_labels(run: Run, course: RunState, crew: Executor, task_bytes: int) -> None:
    """Write the table and the graph of the supervoxels, whose labels are all written, if they are wanted."""
    if run.features is None:
        return
    job = course.job
    labels = open_labels(job.labels[0].location.at(job.labels[0].name).address)
    image = run.image
    if not image.readable_by_workers:
        copies = (open_location(job.scratch).at(source_name(channel)).address for channel in range(image.channels))
        image = Image(tuple(open_labels(copy) for copy in copies))
    spacing = run.document["asked"].get("spacing") or run.image.spacing
    survey = FeatureJob(
        labels,
        image,
        Tiling(job.shape, choose_tiling(job.shape, labels.chunks, voxel_bytes(image), task_bytes)),
        space_of(image, run.image.affine, spacing, job.windows),
        Dataset(open_location(run.features)).begin(),
    )
    measure_features(survey, crew, {"labels": Path(run.target).name, "image": run.image.name})


def _write_parents(course: RunState, target: Location, level: int) -> None:
    """Write which supervoxel of a coarser level each one of the level before it is part of."""
    parents = read_table(course.job, level, course.counts[level - 1])
    parents = parents.astype(course.job.lattice.label_dtype)
    zarr.create_array(
        target.zarr(parents_name(level)), data=parents, chunks=(min(len(parents), PARENTS),), overwrite=True
    )


def _export(run: Run, course: RunState, advance: Callable[[], object]) -> None:
    """Write the labels as NIfTI, with the affine and the header of the source."""
    job = course.job
    planes = slab_thickness(job.shape, job.lattice.label_dtype.itemsize)

    def slabs() -> Iterator[tuple[int, Any]]:
        for begin in range(0, job.shape[0], planes):
            slab = job.read_units("labels", Box((begin, 0, 0), (min(begin + planes, job.shape[0]), *job.shape[1:])))
            yield begin, slab
            count_bytes(written=slab.nbytes)
            advance()

    path = Path(run.target)
    remove_partial(path)
    run.folder.create(PUBLISHING, b"")
    write_nifti_labels(
        path,
        slabs(),
        run.given,
        job.shape,
        max_label=course.supervoxels,
        overwrite=run.overwrite,
        run=run.identity,
    )
