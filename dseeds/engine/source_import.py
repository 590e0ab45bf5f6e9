"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Triple
from dseeds.engine.job import Job
from dseeds.engine.phases import QUANTISE, Phase
from dseeds.engine.run import Run
from dseeds.engine.scratch import source_name
from dseeds.io import Image
from dseeds.storage.slabs import slab_thickness
from dseeds.storage.zarr_arrays import count_bytes

IMPORT = Phase("import")

# Where a slab begins, and its arrays in scratch by their names.
SourceSlab = tuple[int, dict[str, NDArray[Any]]]


class SourceDamaged(ValueError):
    """The source cannot be read to its end."""


def slab_count(shape: Triple, itemsize: int) -> int:
    """Count the slabs that this process reads or writes, of values of so many bytes."""
    return len(range(0, shape[0], slab_thickness(shape, itemsize)))


def import_count(run: Run) -> int:
    """Count the slabs of the volume and of the mask that workers cannot read themselves."""
    image, mask, found = run.image, run.mask, 0
    if not image.readable_by_workers:
        found += slab_count(image.shape, widest_dtype(image))
    if mask is not None and not mask.readable_by_workers:
        found += slab_count(mask.own, 1)
    return found


def widest_dtype(image: Image) -> int:
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
                count_bytes(read=slab.nbytes)
                box = Box((begin, 0, 0), (begin + len(slab), *slab.shape[1:]))
                job.store.write(name, box, slab.astype(slab.dtype.newbyteorder("="), copy=False))
            job.journal.mark(IMPORT, number, "imported")
        advance()


def _slabs(run: Run) -> Iterator[SourceSlab]:
    """Read what workers cannot, slab by slab: arrays in scratch by their names."""
    image, mask = run.image, run.mask
    if not image.readable_by_workers:
        for begin, channels in image.slabs(slab_thickness(image.shape, widest_dtype(image))):
            yield begin, {source_name(c): slab for c, slab in enumerate(channels)}
    if mask is not None and not mask.readable_by_workers:
        for begin, slab in mask.slabs(slab_thickness(mask.own, 1)):
            yield begin, {"mask": slab.astype(np.uint8)}


def is_imported(run: Run, job: Job) -> bool:
    """Tell whether what workers cannot read is in scratch."""
    count = import_count(run)
    return not count or job.journal.record(QUANTISE) is not None or len(job.journal.marks(IMPORT)) == count


def _readable(slabs: Iterator[SourceSlab]) -> Iterator[SourceSlab]:
    while True:
        try:
            slab = next(slabs, None)
        except ValueError as error:
            raise SourceDamaged(str(error)) from error
        if slab is None:
            return
        yield slab
