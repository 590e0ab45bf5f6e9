"""Jobs and states of runs without a cluster, and by definition which of their regions rest."""

import numpy as np

from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.run_state import ImageQuery, RunState
from dseeds.io import ArraySource, Image
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
