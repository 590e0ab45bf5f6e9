"""The memory and the stages of a run in this process, before it starts.

The projection repeats by hand what `dseeds.seeds.in_memory` holds in memory: a change to its arrays needs the same
change here. A test compares it with measured peaks.
"""

from __future__ import annotations

from math import prod

from dseeds.core.geometry import Lattice
from dseeds.engine.io_model import StagePlan
from dseeds.engine.memory_model import TASK_SHARE, WORKER_BYTES, TaskShape, padded_bytes
from dseeds.engine.publishing import pyramid_count
from dseeds.engine.run import Run
from dseeds.engine.source_import import slab_count
from dseeds.engine.validation import task_shape
from dseeds.io.pyramid import PYRAMID_STAGE
from dseeds.parallel.capacity import parse_memory
from dseeds.parallel.machine import cpu_count, free_memory
from dseeds.parallel.resources import Resources
from dseeds.seeds.schedule import schedule

READ_STAGE, CUT_STAGE, WRITE_STAGE, EXPORT_STAGE = "read", "cut", "write", "export"
# The labels have 32 bits here, and a run on Dask numbers more.
MAX_CELLS = 1 << 31


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
    return peak_bytes(run.spec.lattice, task_shape(run.image, run.spec.parameters), threads)


def peak_bytes(lattice: Lattice, task: TaskShape, threads: int) -> int:
    """Project the peak memory of cutting a volume in memory."""
    voxels, window = prod(lattice.shape), padded_bytes(lattice.shape)
    held = voxels * (task.itemsize + task.masked) + task.channels * window
    rounds = schedule(lattice, task.channels)
    counts = lattice.size * max((round_.bins for round_ in rounds), default=0) * 4
    # Blocks of 2 voxels have none; those of 4 have 32 counts of a byte or two, and the coarser ones little.
    histograms = task.channels * voxels if len(lattice.grids) > 2 else 0
    # Each thread has the changes of its own.
    sweeping = 2 * window + histograms + int((threads + 2.5) * counts)
    labelling = window + (5 if task.masked else 4) * voxels
    # The graph takes some bytes for each voxel, and some for each supervoxel.
    joining = (2 * task.channels + 18) * voxels + 500 * lattice.size if task.has_joins else 0
    # At the end, the labels of a level and what is encoded of them.
    return held + max(sweeping, labelling + joining, 4 * voxels * (3 if task.has_joins else 2))


def local_stages(run: Run) -> tuple[StagePlan, ...]:
    """Return the stages of a run in this process."""
    voxels, levels = prod(run.spec.shape), run.spec.parameters.levels + 1
    image = voxels * run.image.itemsize + (0 if run.mask is None else voxels)
    labels = run.labels_layout.nbytes
    rounds = len(schedule(run.spec.lattice, run.image.channels))
    stages = [StagePlan(READ_STAGE, 1, image, 0), StagePlan(CUT_STAGE, rounds, 0, 0)]
    if run.target.is_nifti:
        slabs = slab_count(run.spec.shape, run.labels_layout.dtype.itemsize)
        return (*stages, StagePlan(EXPORT_STAGE, slabs, 0, labels))
    stages.append(StagePlan(WRITE_STAGE, levels, 0, labels * levels))
    if run.spec.pyramid:
        sizes = [labels, *(prod(level.shape) * run.labels_layout.dtype.itemsize for level in run.spec.pyramid)]
        stages.append(StagePlan(PYRAMID_STAGE, pyramid_count(run), levels * sum(sizes[:-1]), levels * sum(sizes[1:])))
    return tuple(stages)
