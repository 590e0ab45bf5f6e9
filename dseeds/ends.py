"""The two ends of a run, which its own process does: copying in what workers cannot read, and publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dseeds import runs
from dseeds.io import remove_partial_nifti, write_nifti_labels
from dseeds.io.place import open_place
from dseeds.lattice import Box, triple
from dseeds.phases import QUANTISE, Phase
from dseeds.run import Run, thickness
from dseeds.runs import PUBLISHING
from dseeds.stages import Job
from dseeds.store import tally, write
from dseeds.target import publish, written_by

IMPORT = Phase("import")


class SourceDamaged(ValueError):
    """The source cannot be read to its end."""


class SourceChanged(ValueError):
    """The source is not what it was when the run began."""


def slab_count(run: Run, itemsize: int) -> int:
    """Count the slabs that this process reads or writes, of values of so many bytes."""
    shape = triple(run.document["shape"])
    return len(range(0, shape[0], thickness(shape, itemsize)))


def import_source(run: Run, job: Job, advance: Callable[[], object], *, again: bool = False) -> None:
    """Copy a source that only this process can read into scratch; slabs that are there already only if asked to.

    Raises
    ------
    SourceDamaged
        If the source cannot be read.
    """
    shape = job.shape
    marks = {} if again else job.journal.marks(IMPORT)
    copied = run.image.dtype.newbyteorder("=")
    slabs = run.image.slabs(thickness(shape, copied.itemsize))
    for number, (begin, slab) in enumerate(_readable(slabs)):
        if number not in marks:
            box = Box((begin, 0, 0), (begin + len(slab), *shape[1:]))
            tally(read=slab.nbytes)
            write(job.scratch, "source", box, slab.astype(copied, copy=False))
            job.journal.mark(IMPORT, number, "imported")
        advance()


def is_imported(run: Run, job: Job) -> bool:
    """Tell whether a source that workers cannot read is in scratch."""
    if run.image.readable_by_workers or job.journal.record(QUANTISE) is not None:
        return True
    return len(job.journal.marks(IMPORT)) == slab_count(run, run.image.dtype.itemsize)


def _readable(slabs: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    while True:
        try:
            slab = next(slabs, None)
        except ValueError as error:
            raise SourceDamaged(str(error)) from error
        if slab is None:
            return
        yield slab


def finish(run: Run, job: Job, advance: Callable[[], object]) -> None:
    """Publish the labels, which are all written, unless they have been published.

    Raises
    ------
    SourceChanged
        If the source has changed since the run began.
    FileNotFoundError
        If the target has been taken away.
    """
    if runs.is_published(run):
        return
    if run.image.reopened().identity != run.document["source"]:
        raise SourceChanged(
            "the source has changed since the run began, so that its labels are of no image that there is: begin anew "
            "with overwrite=True (--overwrite)."
        )
    if run.nifti:
        _export(run, job, advance)
        return
    target = open_place(run.target)
    if written_by(target) != run.identity:
        raise FileNotFoundError(
            f"{run.target} has been taken away, or replaced, since its labels were written: go on with it with "
            f"dseeds segment --resume to write them again."
        )
    run.folder.create(PUBLISHING, b"")
    publish(target, run.attributes(job))


def _export(run: Run, job: Job, advance: Callable[[], object]) -> None:
    """Write the labels as NIfTI, with the affine and the header of the source."""
    planes = thickness(job.shape, job.lattice.label_dtype.itemsize)

    def slabs() -> Iterator[tuple[int, Any]]:
        for begin in range(0, job.shape[0], planes):
            slab = job.labels.read(Box((begin, 0, 0), (min(begin + planes, job.shape[0]), *job.shape[1:])))
            yield begin, slab
            tally(written=slab.nbytes)
            advance()

    path = Path(run.target)
    remove_partial_nifti(path)
    run.folder.create(PUBLISHING, b"")
    write_nifti_labels(
        path,
        slabs(),
        run.given,
        job.shape,
        max_label=job.lattice.size,
        overwrite=run.overwrite,
        run=run.identity,
    )
