"""The two ends of a run, which its own process does: copying in what workers cannot read, and publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dseeds import runs
from dseeds.course import Course
from dseeds.dataset import Dataset
from dseeds.inside import list_labels, unlist_labels
from dseeds.io import Image, write_nifti_labels
from dseeds.io.file_target import remove_partial
from dseeds.io.place import Place, open_place
from dseeds.job import Job
from dseeds.lattice import Box, Triple
from dseeds.numbering import read_table
from dseeds.phases import QUANTISE, Phase
from dseeds.pyramid import build_pyramid, task_count
from dseeds.regionwise import Crew, Tiling, choose_region, open_labels
from dseeds.run import Run, thickness
from dseeds.runs import PUBLISHING
from dseeds.store import source, tally, write
from dseeds.tabulation import Survey, space_of, tabulate, voxel_bytes
from dseeds.target import ATTRIBUTE, begin_target, check_target, level_name, parents_name, publish, written_by

IMPORT = Phase("import")
# Ids in a chunk of the tables that tell what supervoxels are parts of.
PARENTS = 1 << 18

# Where a slab begins, and its arrays in scratch by their names.
Slab = tuple[int, dict[str, NDArray[Any]]]


class SourceDamaged(ValueError):
    """The source cannot be read to its end."""


class SourceChanged(ValueError):
    """The source is not what it was when the run began."""


def slab_count(shape: Triple, itemsize: int) -> int:
    """Count the slabs that this process reads or writes, of values of so many bytes."""
    return len(range(0, shape[0], thickness(shape, itemsize)))


def import_count(run: Run) -> int:
    """Count the slabs of the volume and of the mask that workers cannot read themselves."""
    image, mask, found = run.image, run.mask, 0
    if not image.readable_by_workers:
        found += slab_count(image.shape, widest(image))
    if mask is not None and not mask.readable_by_workers:
        found += slab_count(mask.own, 1)
    return found


def widest(image: Image) -> int:
    """Give the bytes of a voxel in the channel that has most."""
    return max(dtype.itemsize for dtype in image.dtypes)


def import_source(run: Run, job: Job, advance: Callable[[], object], *, again: bool = False) -> None:
    """Copy what only this process can read into scratch; slabs that are there already only if asked to.

    Raises
    ------
    SourceDamaged
        If it cannot be read.
    """
    marks = {} if again else job.journal.marks(IMPORT)
    for number, (begin, slabs) in enumerate(_readable(_slabs(run))):
        if number not in marks:
            for name, slab in slabs.items():
                tally(read=slab.nbytes)
                box = Box((begin, 0, 0), (begin + len(slab), *slab.shape[1:]))
                write(job.scratch, name, box, slab.astype(slab.dtype.newbyteorder("="), copy=False))
            job.journal.mark(IMPORT, number, "imported")
        advance()


def _slabs(run: Run) -> Iterator[Slab]:
    """Read what workers cannot, slab by slab: arrays in scratch by their names."""
    image, mask = run.image, run.mask
    if not image.readable_by_workers:
        for begin, channels in image.slabs(thickness(image.shape, widest(image))):
            yield begin, {source(c): slab for c, slab in enumerate(channels)}
    if mask is not None and not mask.readable_by_workers:
        for begin, slab in mask.slabs(thickness(mask.own, 1)):
            yield begin, {"mask": slab.astype(np.uint8)}


def is_imported(run: Run, job: Job) -> bool:
    """Tell whether what workers cannot read is in scratch."""
    count = import_count(run)
    return not count or job.journal.record(QUANTISE) is not None or len(job.journal.marks(IMPORT)) == count


def _readable(slabs: Iterator[Slab]) -> Iterator[Slab]:
    while True:
        try:
            slab = next(slabs, None)
        except ValueError as error:
            raise SourceDamaged(str(error)) from error
        if slab is None:
            return
        yield slab


def finish(run: Run, course: Course, advance: Callable[[], object], record: Mapping[str, Any] | None = None) -> None:
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
    if runs.is_published(run):
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
    target = open_place(run.target)
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
    publish(target, attributes, [run.ome(level) for level in range(1, len(course.job.labels))])
    _list(run)


def _list(run: Run) -> None:
    """Have the image know of labels inside it, once they are whole."""
    if run.into_image:
        list_labels(run.target)


def begin_labels(run: Run, job: Job) -> None:
    """Make room for the labels in the target."""
    if written_by(open_place(run.target)) != run.identity:
        if run.into_image:
            # Those of others, which may have come to be there since the run began, stay listed.
            check_target(open_place(run.target), run.overwrite)
            unlist_labels(run.target)
        begin_target(open_place(run.target), run.identity, run.overwrite)
    for labels in job.labels:
        labels.create(run.labels_layout)


def build_pyramids(run: Run, job: Job, crew: Crew, advance: Callable[[], object] = lambda: None) -> None:
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
    return levels * task_count(layout.shape, layout.chunk, layout.shard, run.pyramid)


def measure_labels(run: Run, course: Course, crew: Crew, task_bytes: int) -> None:
    """Write the table and the graph of the supervoxels, whose labels are all written, if they are wanted."""
    if run.features is None:
        return
    job = course.job
    labels = open_labels(open_place(job.labels[0].address).at(job.labels[0].name).address)
    image = run.image
    if not image.readable_by_workers:
        copies = (open_place(job.scratch).at(source(channel)).address for channel in range(image.channels))
        image = Image(tuple(open_labels(copy) for copy in copies))
    spacing = run.document["asked"].get("spacing") or run.image.spacing
    survey = Survey(
        labels,
        image,
        Tiling(job.shape, choose_region(job.shape, labels.chunks, voxel_bytes(image), task_bytes)),
        space_of(image, run.image.affine, spacing, job.windows),
        Dataset(run.features).begin(),
    )
    tabulate(survey, crew, {"labels": Path(run.target).name, "image": run.image.name})


def _write_parents(course: Course, target: Place, level: int) -> None:
    """Write which supervoxel of a coarser level each one of the level before it is part of."""
    parents = read_table(course.job, level, course.counts[level - 1])
    parents = parents.astype(course.job.lattice.label_dtype)
    zarr.create_array(
        target.zarr(parents_name(level)), data=parents, chunks=(min(len(parents), PARENTS),), overwrite=True
    )


def _export(run: Run, course: Course, advance: Callable[[], object]) -> None:
    """Write the labels as NIfTI, with the affine and the header of the source."""
    job = course.job
    planes = thickness(job.shape, job.lattice.label_dtype.itemsize)

    def slabs() -> Iterator[tuple[int, Any]]:
        for begin in range(0, job.shape[0], planes):
            slab = job.units("labels", Box((begin, 0, 0), (min(begin + planes, job.shape[0]), *job.shape[1:])))
            yield begin, slab
            tally(written=slab.nbytes)
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
