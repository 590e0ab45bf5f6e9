"""The time that a run will take, estimated from a trial on a small part of the volume in this process."""

from __future__ import annotations

import time
from collections import defaultdict
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Lattice, triple
from dseeds.core.lazy_module import LazyModule
from dseeds.engine.io_model import IoModel
from dseeds.engine.publishing import begin_labels
from dseeds.engine.run import Run, RunOptions
from dseeds.engine.run_state import RunState
from dseeds.engine.source_import import import_source
from dseeds.engine.tasks import perform_task
from dseeds.engine.validation import prepare_run
from dseeds.io import write_nifti_labels
from dseeds.io.pyramid import PYRAMID_STAGE
from dseeds.parallel.capacity import READ_AT_ONCE, Capacity
from dseeds.seeds.in_memory import cut_in_memory
from dseeds.storage.zarr_arrays import region_units

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

# The length of the trial's part in voxels, and how long a source that cannot be read at random is read for it.
TRIAL_EXTENT, TRIAL_SECONDS = 112, 2.0


def estimate_local_seconds(run: Run, threads: int) -> float:
    """Return the estimated time of a run in this process."""
    part, read_rate = _read_part(run)
    shape = part[0].shape
    lattice, settings = Lattice(shape, run.spec.step), run.spec.parameters.settings
    # The first trial only compiles the kernels.
    for _ in range(2):
        start = time.perf_counter()
        cut_in_memory(part, lattice, settings, threads=threads)
        seconds = time.perf_counter() - start
    voxels = prod(run.spec.shape)
    seconds = seconds * voxels / prod(shape) + read_rate * voxels * run.volume.itemsize
    return float(f"{seconds:.3g}")


class Trial:
    """A trial of all stages on a small part of the volume, which measures how long they take for a voxel or a byte."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.model = IoModel(run)

    def estimate_seconds(self, capacity: Capacity) -> float:
        """Return the estimated time of the run's stages."""
        part, read_rate = _read_part(self.run)
        cell = tuple(slice(0, s) for s in self.model.job.step)
        with TemporaryDirectory() as folder, zarr.config.set({"async.concurrency": READ_AT_ONCE}):
            # The first trial only compiles the kernels.
            self._measure_rates([channel[cell] for channel in part], Path(folder, "first"), capacity)
            rates = self._measure_rates(part, Path(folder, "second"), capacity)
        rates["import"] += read_rate / 2
        share = -(-len(self.model.regions) // capacity.threads) / len(self.model.regions)
        seconds, voxels = 0.0, prod(self.model.job.shape)
        phases = {phase.stage for phase in self.model.state.phases}
        for stage in self.model.stages:
            size = voxels if stage.name in phases else stage.read + stage.written
            is_serial = stage.name in ("import", "export")
            seconds += size * rates[stage.name] * (1 if is_serial else share)
        return float(f"{seconds:.3g}")

    def _measure_rates(self, part: list[NDArray[Any]], folder: Path, capacity: Capacity) -> dict[str, float]:
        """Do all stages on a part of the volume, and return the seconds per voxel of each phase, per byte of others."""
        start = time.perf_counter()
        shape, sources = part[0].shape, [folder / f"image-{number}.zarr" for number in range(len(part))]
        chunks = triple(map(min, self.run.volume.chunks or shape, shape))
        for path, channel in zip(sources, part, strict=True):
            zarr.create_array(path, data=channel, chunks=chunks)
        rates = {"import": (time.perf_counter() - start) / sum(channel.nbytes for channel in part) / 2}
        channels = self.run.image.channels
        options = self._options(*sources[channels:])
        run, _ = prepare_run(sources[:channels], folder / "labels.zarr", options, lambda: capacity)
        state = run.state()
        run.create_scratch(state)
        import_source(run, state.job, lambda: None)
        begin_labels(run, state.job)
        seconds = _time_stages(state)
        rates |= {name: duration / prod(shape) for name, duration in seconds.items()}
        # Not measured: about as long as it takes to quantise as many bytes.
        rates[PYRAMID_STAGE] = seconds["quantise"] / sum(channel.nbytes for channel in part)
        if self.run.target.is_nifti:
            labels = state.job.labels[0].read(Box((0, 0, 0), state.job.shape))
            image = nibabel.Nifti1Image(np.broadcast_to(np.uint8(0), shape[::-1]), np.eye(4))
            start = time.perf_counter()
            write_nifti_labels(folder / self.run.target.name, [(0, labels)], image, state.job.shape)
            rates["export"] = (time.perf_counter() - start) / labels.nbytes / 2
        return rates

    def _options(self, boundaries: Path | None = None) -> RunOptions:
        """Return the options of a trial, with a boundary map of its own if there is one."""
        parameters, job = self.run.spec.parameters, self.model.job
        return RunOptions(
            step=job.step,
            window=parameters.windows[: len(parameters.weights)],
            bins=parameters.bins,
            compactness=job.compactness,
            # A mask with everything inside, so that no region is skipped.
            mask=np.ones((1, 1, 1), np.uint8) if parameters.mask else None,
            boundaries=boundaries or parameters.boundaries,
            min_size=parameters.min_size,
            levels=parameters.levels,
            region=region_units(job.regions, job.lattice.grids[-1]),
        )


def _read_part(run: Run) -> tuple[list[NDArray[Any]], float]:
    """Return some whole cells from the middle, channel by channel, and the seconds per byte that reading took."""
    image, lattice = run.volume, run.spec.lattice
    half = prod(image.shape) * image.itemsize / 2
    extent = [min(n, max(1, TRIAL_EXTENT // s)) for n, s in zip(lattice.cells, lattice.step, strict=True)]
    lo = triple([(n - k) // 2 for n, k in zip(lattice.cells, extent, strict=True)])
    hi = triple([a + k for a, k in zip(lo, extent, strict=True)])
    box = lattice.grids[-1].units_of(Box(lo, hi))
    start = time.perf_counter()
    if image.readable_by_workers:
        part = list(image.read(box.slices))
        size = sum(channel.nbytes for channel in part)
    else:
        size = 0
        for _, slabs in image.slabs(box.shape[0]):
            size += sum(slab.nbytes for slab in slabs)
            # The last slab may be thinner.
            if len(slabs[0]) == box.shape[0]:
                part = [slab[:, *box.slices[1:]] for slab in slabs]
            if size >= half or time.perf_counter() > start + TRIAL_SECONDS:
                break
    seconds = time.perf_counter() - start
    return [_with_contrast(channel.astype(channel.dtype.newbyteorder("="))) for channel in part], seconds / size


def _time_stages(state: RunState) -> dict[str, float]:
    """Do all phases of a run in this process, and return the seconds of each stage."""
    seconds: defaultdict[str, float] = defaultdict(float)
    while (phase := state.current) is not None:
        start = time.perf_counter()
        results = [perform_task(state.job, phase, n, state.task_input(phase, n)) for n in state.regions(phase)]
        seconds[phase.stage] += time.perf_counter() - start
        state.close(phase, {result.number: result.outcome for result in results})
    return seconds


def _with_contrast(values: NDArray[Any]) -> NDArray[Any]:
    """Return noise if all values are the same, because the rest of the volume takes more work than a constant part."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() < finite.max():
        return values
    return np.random.default_rng(0).integers(0, 100, values.shape).astype(values.dtype)
