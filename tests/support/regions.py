"""Jobs, states and whole runs without a cluster, and by definition which of their regions rest."""

import numpy as np
import zarr

from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.publishing import StoredLabels, begin_labels
from dseeds.engine.run import RunOptions
from dseeds.engine.run_state import ImageQuery, RunState
from dseeds.engine.source_import import import_source
from dseeds.engine.tasks import perform_task
from dseeds.engine.validation import prepare_run
from dseeds.io import ArraySource, Image
from dseeds.parallel.capacity import Capacity
from dseeds.seeds.order_statistics import WindowSearch
from dseeds.seeds.schedule import may_rest
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.location import open_location


def job_in(folder, shape, step=(4, 4, 4), region=(2, 2, 2), image=None):
    """Return a job on an image, by default a constant one that nobody reads."""
    return Job(
        Image((ArraySource(np.broadcast_to(np.uint16(1), shape) if image is None else image),)),
        shape,
        step,
        region,
        f"{folder}/scratch",
        Journal(str(folder), "0123"),
        (LabelGroup(open_location(f"{folder}/labels")),),
    )


def replayed_state(job, window=(0.0, 1.0), query=None):
    """Return the state of a job's run from its records; without a window, one is searched."""
    state = RunState(job, WindowSearch(job.source.dtypes, [window]), query or ImageQuery())
    state.replay()
    return state


def within(job, number, turn):
    """Return the regions that are as near as anything matters, counted in regions along the axis where that is most."""
    round_ = job.schedule[min(turn, len(job.schedule) - 1)]
    reach = 0
    for parts, extent in zip(job.lattice.grids[round_.level].parts, job.region, strict=True):
        # The window reaches so many cells further than the region; the statistics around it follow units two away.
        cells = -(-round_.window_halo // parts) + 2
        reach = max(reach, -(-cells // extent))
    return job.regions.within(number, reach)


def rests(job, turn, number, has_moved):
    """Return whether a region rests in a round: nothing within reach has moved in the two rounds before it."""
    if turn < 0 or not may_rest(job.schedule, turn) or (turn + 1 == len(job.schedule) and job.exchange.label_reach):
        return False
    return not any(has_moved(before, n) for before in (turn - 2, turn - 1) for n in within(job, number, turn))


def cut_by_tasks(source, folder, **options):
    """Cut a volume region by region, as on a cluster but by one task after the other; return labels and parents."""
    capacity = Capacity(1, 1, 1 << 36, 1)
    run, _ = prepare_run(source, f"{folder}/labels.zarr", RunOptions(**options), lambda: capacity)
    state = run.state()
    run.create_scratch(state)
    import_source(run, state.job, lambda: None)
    begin_labels(run, state.job)
    while (phase := state.current) is not None:
        marks = {n: perform_task(state.job, phase, n, state.task_input(phase, n)).outcome for n in state.regions(phase)}
        state.close(phase, marks)
    labels = zarr.open_array(f"{folder}/labels.zarr/0", mode="r")[:]
    stored = StoredLabels(run, state)
    return labels, [stored.parents(level) for level in range(1, run.spec.parameters.levels + 1)]
