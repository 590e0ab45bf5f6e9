"""The memory and the stages of a run in this process, before it starts.

The projection repeats by hand what `dseeds.engine.in_process` and `dseeds.seeds.in_memory` hold in memory: a change to
their arrays needs the same change here. A test compares it with measured peaks.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod
from typing import Any

from dseeds.core.geometry import Lattice
from dseeds.engine.io_model import EXPORT_STAGE, IoModel, StagePlan
from dseeds.engine.memory_model import TASK_SHARE, WORKER_BYTES, TaskShape, padded_bytes
from dseeds.engine.run import Run
from dseeds.engine.validation import task_shape
from dseeds.io import ArraySource, Image, Source
from dseeds.io.labels import TASK_BYTES, TILING_EXTENTS
from dseeds.io.pyramid import pyramid_task_bytes, pyramid_task_count
from dseeds.io.source import IndexedSource
from dseeds.parallel.capacity import parse_memory
from dseeds.parallel.machine import cpu_count, free_memory
from dseeds.parallel.resources import Resources
from dseeds.storage.slabs import SOURCE_SLAB_BYTES

READ_STAGE, CUT_STAGE, WRITE_STAGE = "read", "cut", "write"
# The labels have 32 bits here, and a run on Dask numbers more.
MAX_CELLS = 1 << 31
# The bytes of a label, and how many chunks Zarr decodes at once: so many shards, and so many chunks in each.
LABEL_BYTES, AT_ONCE = 4, 10


def runs_in_process(run: Run, resources: Resources) -> bool:
    """Return whether a new run needs no cluster: the user asks for none, and the volume fits in memory."""
    if resources.client is not None or resources.workers is not None:
        return False
    return is_small(run) and needed_bytes(run, cpu_count()) <= allowed_bytes(resources.memory)


def is_small(run: Run) -> bool:
    """Return whether labels of 32 bits can number the supervoxels."""
    return run.spec.lattice.size < MAX_CELLS


def allowed_bytes(memory: int | str | None) -> int:
    """Return the memory that the arrays of a run in this process may take, by default most of what is free."""
    available = free_memory() if memory is None else parse_memory(memory) - WORKER_BYTES
    return max(0, int(TASK_SHARE * available))


def needed_bytes(run: Run, threads: int) -> int:
    """Project the peak memory of a run in this process, without that of the process itself."""
    finished = _finished_bytes(run)
    return max(
        _reading_bytes(run),
        _cutting_bytes(run, threads),
        finished + _pyramid_bytes(run, threads),
        finished + threads * feature_task_bytes(run, threads),
    )


def feature_task_bytes(run: Run, threads: int) -> int:
    """Return the memory of each thread that measures features: a share of what cutting took, if that is enough."""
    if run.features is None:
        return 0
    # Here, not above: Arrow takes its time to import.
    from dseeds.measure.features import voxel_bytes

    smallest = int(prod(min(n, TILING_EXTENTS[-1]) for n in run.spec.shape) * voxel_bytes(run.volume))
    free = _cutting_bytes(run, threads) - _finished_bytes(run)
    return max(smallest, min(TASK_BYTES, free // threads))


def _reading_bytes(run: Run) -> int:
    """Project the memory while the image and then the mask are read."""
    image, mask, voxels = run.volume, run.mask, prod(run.spec.shape)
    held = voxels * image.itemsize
    # Values in the byte order of another machine are copied.
    swapped = voxels * sum(dtype.itemsize for dtype in image.dtypes if not dtype.isnative)
    peak = held + max(swapped, _decoding_bytes(image, voxels))
    if mask is not None:
        own = prod(mask.own)
        # Three comparisons of the mask's own voxels, or the mask in the resolution of the image.
        values = own * mask.source.dtype.itemsize + max(_decoding_bytes(mask.source, own), 3 * own, own + voxels)
        peak = max(peak, held + values)
    return peak


def _decoding_bytes(source: Image | Source, voxels: int) -> int:
    """Project the memory that reading some voxels takes besides these: what is decoded, and from which bytes."""
    if isinstance(source, Image):
        # The channels are read one after the other, or a slab of all of them.
        return max(_decoding_bytes(part, voxels) for part in source.parts)
    if isinstance(source, ArraySource):
        return 0
    item: int = source.dtype.itemsize
    size = voxels * (source.channels or 1) * item
    stored: Any = source.stored if isinstance(source, IndexedSource) else None
    chunks: tuple[int, ...] | None = None if stored is None else stored.chunks
    shards: tuple[int, ...] | None = getattr(stored, "shards", None)
    if chunks is None:
        if source.readable_by_workers:
            return size
        # Some formats are loaded whole by their libraries, and then copied; of others, a slab is.
        return min(size, 2 * SOURCE_SLAB_BYTES) if stored is None else 2 * item * int(prod(stored.shape))
    chunk: int = item * prod(chunks)
    count: int = prod(ceil(n / c) for n, c in zip(stored.shape, chunks, strict=True))
    if shards is None:
        return 2 * chunk * min(AT_ONCE, count)
    shard: int = item * prod(shards)
    return 2 * chunk * min(AT_ONCE**2, count) + 2 * min(size, AT_ONCE * shard)


def _cutting_bytes(run: Run, threads: int) -> int:
    return peak_bytes(run.spec.lattice, task_shape(run.volume, run.spec.parameters), threads)


def peak_bytes(lattice: Lattice, task: TaskShape, threads: int) -> int:
    """Project the peak memory of cutting a volume in memory."""
    voxels, window = prod(lattice.shape), padded_bytes(lattice.shape)
    held = voxels * (task.itemsize + task.masked) + task.channels * window
    rounds = task.schedule(lattice)
    counts = lattice.size * max((round_.bins for round_ in rounds), default=0) * 4
    # Blocks of 2 voxels have none; those of 4 have 32 counts of a byte or two, and the coarser ones little.
    histograms = task.channels * voxels if any(round_.level < len(lattice.grids) - 2 for round_ in rounds) else 0
    # Each thread has the changes of its own.
    sweeping = 2 * window + histograms + int((threads + 2.5) * counts)
    labelling = window + (LABEL_BYTES + task.masked) * voxels
    # The graph takes some bytes for each voxel, and some for each supervoxel.
    joining = (2 * task.channels + 18) * voxels + 500 * lattice.size if task.has_joins else 0
    # At the end, the labels of a level and what is encoded of them.
    return held + max(sweeping, labelling + joining, LABEL_BYTES * voxels * (3 if task.has_joins else 2))


def _finished_bytes(run: Run) -> int:
    """Project the memory of finished labels, and of the image if features are measured on it."""
    image = 0 if run.features is None else run.volume.itemsize
    return prod(run.spec.shape) * (LABEL_BYTES + image)


def _pyramid_bytes(run: Run, threads: int) -> int:
    """Project the memory of the threads that build the pyramids of the labels."""
    layout, levels = run.labels_layout, run.spec.pyramid
    cut = layout.shape, layout.chunk, layout.shard, levels
    tasks = min(threads, pyramid_task_count(*cut))
    return tasks * pyramid_task_bytes(*cut, layout.dtype.itemsize)


def local_stages(model: IoModel) -> tuple[StagePlan, ...]:
    """Return the stages of a run in this process."""
    run, levels = model.run, len(model.job.labels)
    mask = 0 if run.mask is None else prod(run.spec.shape)
    stages = [StagePlan(READ_STAGE, 1, model.image_bytes + mask, 0), StagePlan(CUT_STAGE, len(model.rounds), 0, 0)]
    if not run.target.is_nifti:
        stages.append(StagePlan(WRITE_STAGE, levels, 0, model.label_bytes))
    # Labels in memory are not read.
    finals = (replace(stage, read=0) if stage.name == EXPORT_STAGE else stage for stage in model.final_stages())
    return (*stages, *finals)
