"""The import of inputs that workers cannot read: this process copies them into scratch, slab by slab."""

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

# The first plane of a slab, and its arrays in scratch by their names.
SourceSlab = tuple[int, dict[str, NDArray[Any]]]


class SourceDamaged(ValueError):
    """The source cannot be read to its end."""


def slab_count(shape: Triple, itemsize: int) -> int:
    """Count the slabs in which this process reads or writes a volume, given the bytes per voxel."""
    return len(range(0, shape[0], slab_thickness(shape, itemsize)))


def import_count(run: Run) -> int:
    """Count the slabs of the volume and of the mask that workers cannot read."""
    image, mask, count = run.volume, run.mask, 0
    if not image.readable_by_workers:
        count += slab_count(image.shape, _largest_itemsize(image))
    if mask is not None and not mask.readable_by_workers:
        count += slab_count(mask.own, 1)
    return count


def import_source(run: Run, job: Job, advance: Callable[[], object], *, again: bool = False) -> None:
    """Copy the inputs that workers cannot read into scratch; slabs that are there already only with `again`.

    Raises `SourceDamaged` if an input cannot be read.
    """
    marks = {} if again else job.journal.marks(IMPORT)
    for number, (begin, slabs) in enumerate(_read_slabs(run)):
        if number not in marks:
            for name, slab in slabs.items():
                count_bytes(read=slab.nbytes)
                box = Box((begin, 0, 0), (begin + len(slab), *slab.shape[1:]))
                job.store.write(name, box, slab.astype(slab.dtype.newbyteorder("="), copy=False))
            job.journal.mark(IMPORT, number, "imported")
        advance()


def is_imported(run: Run, job: Job) -> bool:
    """Return whether the inputs that workers cannot read are in scratch, or no longer needed."""
    count = import_count(run)
    return not count or job.journal.record(QUANTISE) is not None or len(job.journal.marks(IMPORT)) == count


def _largest_itemsize(image: Image) -> int:
    return max(dtype.itemsize for dtype in image.dtypes)


def _read_slabs(run: Run) -> Iterator[SourceSlab]:
    image, mask = run.volume, run.mask
    try:
        if not image.readable_by_workers:
            for begin, channels in image.slabs(slab_thickness(image.shape, _largest_itemsize(image))):
                yield begin, {source_name(channel): slab for channel, slab in enumerate(channels)}
        if mask is not None and not mask.readable_by_workers:
            for begin, slab in mask.slabs(slab_thickness(mask.own, 1)):
                yield begin, {"mask": slab.astype(np.uint8)}
    except ValueError as error:
        raise SourceDamaged(str(error)) from error
