"""How long a run will take: a small part of the volume is cut for trial, in this process."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import zarr
from numpy.typing import NDArray

from dseeds.core.geometry import Box, triple
from dseeds.engine.io_model import IoModel
from dseeds.engine.run import Run, RunOptions
from dseeds.engine.source_import import import_source
from dseeds.engine.tasks import perform_task
from dseeds.engine.validation import prepare_run
from dseeds.io import write_nifti_labels
from dseeds.parallel.cluster import READ_AT_ONCE, Capacity
from dseeds.storage.label_group import begin_target
from dseeds.storage.zarr_arrays import region_units

# Voxels along an axis of what the trial is made on, and how long a source is read for it that is read from its front.
TRIAL_EXTENT, TRIAL_SECONDS = 112, 2.0


class Trial:
    """A small part of the volume, cut for trial: what a byte takes there that a stage reads or writes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.needs = IoModel(run)

    def seconds(self, has: Capacity) -> float:
        """Estimate how long the run's stages take."""
        part, reading = self._part()
        cell = tuple(slice(0, s) for s in self.needs.job.step)
        with TemporaryDirectory() as folder, zarr.config.set({"async.concurrency": READ_AT_ONCE}):
            # A first one is for the compiling.
            self._try([channel[cell] for channel in part], Path(folder, "first"), has)
            rates = self._try(part, Path(folder, "second"), has)
        rates["import"] += reading / 2
        waves = -(-len(self.needs.regions) // has.threads) / len(self.needs.regions)
        shared = {"import": 1.0, "export": 1.0}
        stages = self.needs.stages
        total = sum(
            (s.read + s.written) * rates.get(s.name, rates["quantise"]) * shared.get(s.name, waves) for s in stages
        )
        return float(f"{total:.3g}")

    def _part(self) -> tuple[list[NDArray[Any]], float]:
        """Read some whole cells from the middle, channel by channel, and tell what a byte takes."""
        lattice, image = self.needs.lattice, self.run.image
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
                # The last one may be thinner.
                if len(slabs[0]) == box.shape[0]:
                    part = [slab[:, *box.slices[1:]] for slab in slabs]
                if size >= self.needs.image_bytes / 2 or time.perf_counter() > start + TRIAL_SECONDS:
                    break
        seconds = time.perf_counter() - start
        return [_telling(channel.astype(channel.dtype.newbyteorder("="))) for channel in part], seconds / size

    def _try(self, part: list[NDArray[Any]], folder: Path, has: Capacity) -> dict[str, float]:
        """Do all stages on a part of the volume, and tell for each how long a byte takes that it reads or writes."""
        start = time.perf_counter()
        shape, sources = part[0].shape, [folder / f"image-{number}.zarr" for number in range(len(part))]
        chunks = triple(map(min, self.run.image.chunks or shape, shape))
        for path, channel in zip(sources, part, strict=True):
            zarr.create_array(path, data=channel, chunks=chunks)
        rates = {"import": (time.perf_counter() - start) / sum(channel.nbytes for channel in part) / 2}
        parameters, job = self.run.spec.parameters, self.needs.job
        region = region_units(job.regions, job.lattice.grids[-1])
        asked = RunOptions(
            step=job.step,
            window=parameters.windows,
            bins=parameters.bins,
            compactness=job.compactness,
            # So that nothing is outside.
            mask=np.ones((1, 1, 1), np.uint8) if parameters.mask else None,
            min_size=parameters.min_size,
            levels=parameters.levels,
            region=region,
        )
        run, _ = prepare_run(sources, folder / "labels.zarr", asked, lambda: has)
        course = run.state()
        course.job.store.create({**course.layouts, **run.layouts})
        begin_target(run.target.location, run.identity)
        import_source(run, course.job, lambda: None)
        for target in course.job.labels:
            target.create(run.labels_layout)
        seconds: defaultdict[str, float] = defaultdict(float)
        while (phase := course.current) is not None:
            start = time.perf_counter()
            results = [perform_task(course.job, phase, n, course.task_input(phase, n)) for n in course.regions(phase)]
            seconds[phase.stage] += time.perf_counter() - start
            course.close(phase, {result.number: result.outcome for result in results})
        tried = {stage.name: stage.read + stage.written for stage in IoModel(run).stages}
        rates |= {name: seconds[name] / size for name, size in tried.items() if size and name in seconds}
        if self.run.target.is_nifti:
            labels = course.job.labels[0].read(Box((0, 0, 0), course.job.shape))
            image = nibabel.Nifti1Image(np.broadcast_to(np.uint8(0), shape[::-1]), np.eye(4))
            start = time.perf_counter()
            write_nifti_labels(folder / self.run.target.name, [(0, labels)], image, course.job.shape)
            rates["export"] = (time.perf_counter() - start) / labels.nbytes / 2
        return rates


def _telling(values: NDArray[Any]) -> NDArray[Any]:
    """Put noise in the place of values that are all the same: there is more to do in the rest."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() < finite.max():
        return values
    return np.random.default_rng(0).integers(0, 100, values.shape).astype(values.dtype)
