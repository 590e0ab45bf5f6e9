"""Runs in this process: a volume that fits in memory needs neither workers nor scratch.

The labels, their metadata and their layout are those of a run on Dask. A run that fails or is killed leaves the target
as it was, and is begun anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box
from dseeds.core.kernel_cache import compile_timer
from dseeds.core.process import peak_memory
from dseeds.core.progress import Progress
from dseeds.engine.in_process_model import CUT_STAGE, READ_STAGE, WRITE_STAGE, feature_task_bytes
from dseeds.engine.io_model import EXPORT_STAGE, IoModel, check_disk
from dseeds.engine.outcome import Outcome, report_run
from dseeds.engine.planning import build_local_plan
from dseeds.engine.publishing import (
    begin_labels,
    build_pyramids,
    check_inputs,
    export_nifti,
    measure_labels,
    publish_zarr,
)
from dseeds.engine.report import Report
from dseeds.engine.run import Run
from dseeds.engine.run_directory import LABELS, OLDER, hold_folder
from dseeds.engine.run_state import RunState
from dseeds.engine.source_import import SourceDamaged
from dseeds.engine.stage_timer import StageTimer
from dseeds.io import ArraySource, Image, Mask, Source
from dseeds.io.label_listing import list_labels
from dseeds.io.pyramid import PYRAMID_STAGE
from dseeds.io.source import IndexBox
from dseeds.parallel.executor import Executor
from dseeds.parallel.machine import cpu_count
from dseeds.parallel.notebook_progress import default_progress
from dseeds.seeds.in_memory import CutResult, LabelArray, cut_in_memory
from dseeds.storage.label_group import check_target
from dseeds.storage.lease import Lease
from dseeds.storage.location import LocalLocation
from dseeds.storage.slabs import slab_thickness
from dseeds.storage.zarr_arrays import count_bytes


@dataclass(frozen=True)
class MemoryLabels:
    """The labels of a run in this process, with the image that they were cut from if features are measured on it."""

    volume: Image
    result: CutResult
    dtype: np.dtype[Any]

    def opened(self) -> Source:
        """Return the labels as a source."""
        return ArraySource(self.result.labels)

    def read(self, box: Box) -> NDArray[Any]:
        """Return the labels in a box."""
        return self.result.labels[box.slices].astype(self.dtype, copy=False)

    def parents(self, level: int) -> NDArray[Any]:
        """Return the parents in a level of the hierarchy."""
        return self.result.parents[level - 1].astype(self.dtype, copy=False)

    def counts(self) -> list[int]:
        """Return the number of supervoxels, and of those on each coarser level."""
        return [int(ids.max(initial=0)) for ids in (self.result.labels, *self.result.parents)]


def run_in_process(
    run: Run, *, threads: int | None = None, memory: int | str | None = None, progress: Progress | None = None
) -> Outcome:
    """Cut a volume that fits in memory, and publish its labels; see `dseeds.segment`."""
    started, compiled = time.perf_counter(), compile_timer.seconds
    threads = cpu_count() if threads is None else threads
    model = IoModel(run)
    plan = build_local_plan(model, threads, memory)
    check_disk(run, model)
    with hold_folder(run) as lease, default_progress(progress) as follower:
        stages = StageTimer({stage.name: stage.tasks for stage in plan.stages}, follower)
        labels = _cut(run, stages, threads)
        state = _finished_state(run, labels)

        def report() -> Report:
            peaks, seconds = {"this process": peak_memory()}, compile_timer.seconds - compiled
            return report_run(run, state, stages, started, workers=0, peaks=peaks, compiled=seconds)

        check_inputs(run)
        if run.target.is_nifti:
            lease.confirm()
            with stages.timed(EXPORT_STAGE) as advance:
                export_nifti(run, labels, state.supervoxels, advance)
        else:
            record = {"plan": plan.to_dict(), "report": report().to_dict()}
            _publish(run, labels, state, stages, threads, lease, record)
        # After the labels: a run that fails before this leaves older ones with their own features.
        executor, task_bytes = Executor(threads, None, follower), feature_task_bytes(run, threads)
        measure_labels(run, labels, state.job.windows, executor, task_bytes)
        final = report()
    return Outcome(run, plan, final)


def _cut(run: Run, stages: StageTimer, threads: int) -> MemoryLabels:
    """Read the volume and cut it."""
    lattice, settings = run.spec.lattice, run.spec.parameters.settings
    with stages.timed(READ_STAGE) as advance:
        values, inside = _read(run, advance)
    with stages.timed(CUT_STAGE) as advance:
        result = cut_in_memory(values, lattice, settings, inside=inside, threads=threads, on_round=advance)
    volume = run.volume if run.features is None else Image(tuple(map(ArraySource, values)))
    return MemoryLabels(volume, result, lattice.label_dtype)


def _read(run: Run, advance: Callable[[], object]) -> tuple[tuple[NDArray[Any], ...], NDArray[np.bool_] | None]:
    """Read the channels, and the voxels inside the mask if there is one."""
    everything = Box((0, 0, 0), run.spec.shape).slices
    image, mask = run.volume, run.mask
    try:
        if image.readable_by_workers or all(isinstance(part, ArraySource) for part in image.parts):
            values = image.read(everything)
        else:
            values = tuple(np.empty(image.shape, dtype.newbyteorder("=")) for dtype in image.dtypes)
            for begin, slabs in image.slabs(slab_thickness(image.shape, image.itemsize)):
                for channel, slab in zip(values, slabs, strict=True):
                    channel[begin : begin + len(slab)] = slab
        inside = None if mask is None else _read_mask(mask, everything)
    except ValueError as error:
        raise SourceDamaged(str(error)) from error
    count_bytes(read=sum(channel.nbytes for channel in values) + (0 if inside is None else inside.nbytes))
    advance()
    return tuple(channel.astype(channel.dtype.newbyteorder("="), copy=False) for channel in values), inside


def _read_mask(mask: Mask, everything: IndexBox) -> NDArray[np.bool_]:
    """Read the mask in the resolution of the image, without all of its values at once if these are in one piece."""
    if mask.readable_by_workers or isinstance(mask.source, ArraySource):
        return mask.read(everything)
    own = np.empty(mask.own, np.bool_)
    for begin, slab in mask.slabs(slab_thickness(mask.own, mask.source.dtype.itemsize)):
        own[begin : begin + len(slab)] = slab
    return mask.through(ArraySource(own)).read(everything)


def _finished_state(run: Run, labels: MemoryLabels) -> RunState:
    """Return the state of the run when its labels are known, as their metadata describe it."""
    state = run.initial_state()
    state.job = replace(state.job, **labels.result.found._asdict())
    state.counts = labels.counts()
    state.bin_counts = labels.result.counts
    return state


def _publish(
    run: Run,
    labels: MemoryLabels,
    state: RunState,
    stages: StageTimer,
    threads: int,
    lease: Lease,
    record: dict[str, Any],
) -> None:
    """Write the labels and their pyramids, beside the target where that is possible, and publish them."""
    staged = _staged(run)
    # The whole is written at once, and its pyramids by all threads.
    job = replace(staged.job(), pyramid=())
    lease.confirm()
    if staged is not run:
        staged.target.path.parent.mkdir(exist_ok=True)
    begin_labels(staged, job)
    with stages.timed(WRITE_STAGE) as advance:
        ids: LabelArray = labels.result.labels
        for group, parents in zip(job.labels, (None, *labels.result.parents), strict=True):
            ids = ids if parents is None else parents[ids]
            group.write(Box((0, 0, 0), run.spec.shape), ids.astype(labels.dtype, copy=False))
            advance()
    if run.spec.pyramid:
        with stages.timed(PYRAMID_STAGE) as advance:
            build_pyramids(staged, job, Executor(threads), advance)
    lease.confirm()
    publish_zarr(staged, labels, state, record)
    if staged is not run:
        replace_target(run, staged.target.path)
    if run.spec.into_image:
        list_labels(run.target.address)


def replace_target(run: Run, labels: Path) -> None:
    """Move finished labels to the target; an older output goes into the run's folder, to be removed with it.

    A kill between the two moves leaves the target missing, and both outputs in the run's folder: the next run of the
    target moves the older one back.
    """
    check_target(run.target.location, run.spec.overwrite)
    older = labels.with_name(OLDER)
    with suppress(FileNotFoundError):
        run.target.path.rename(older)
    try:
        labels.rename(run.target.path)
    except BaseException:
        if older.exists():
            older.rename(run.target.path)
        raise


def _staged(run: Run) -> Run:
    """Return the run with a target in its folder, to be renamed, unless the target is remote or within an image."""
    if run.target.is_remote or run.spec.into_image:
        return run
    location = run.folder.at(run.identity).at(LABELS)
    assert isinstance(location, LocalLocation)
    return replace(run, target=replace(run.target, location=location))
