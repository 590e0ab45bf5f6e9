"""Tasks that fail on request, on any worker of any cluster.

Workers load this module when they start, where Dask's setting ``distributed.worker.preload`` names it, and find in the
environment which faults to produce. In this process, `Fault.wrapped` replaces a task.
"""

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from dseeds.engine import tasks
from tests.support.paths import ROOT

FAULTS = "DSEEDS_FAULTS"
started = time.monotonic()
# Dask never replaces a worker that is killed before its nanny knows that it is running, which takes long on a busy
# machine: about as long as the start of the process.
SETTLED = min(30, max(2.5, time.time() - psutil.Process().create_time()))


@dataclass(frozen=True)
class Fault:
    """A fault in a region's task of a stage, the first `times` times that the task runs.

    Attributes
    ----------
    folder : str
        Every occurrence leaves a file here, so it is counted whatever happens to the process.
    stage, turn, region : str, int or None, int
        The task; None is any turn.
    act : str
        ``raise``, ``kill`` the process before or ``killed`` after its work, ``eat`` memory, or ``sleep`` until
        `wake` is called.
    times : int
        How often the fault occurs.
    """

    folder: str
    stage: str
    turn: int | None
    region: int
    act: str
    times: int = 1 << 30

    @property
    def happened(self):
        return len(list(Path(self.folder).glob(f"{self.stage}-*")))

    def _is_due(self):
        for number in range(self.times):
            try:
                Path(self.folder, f"{self.stage}-{number}").open("x").close()
            except FileExistsError:
                continue
            return True
        return False

    def wrapped(self, task):
        def faulty(job, number, turn, known):
            due = number == self.region and self.turn in (None, turn) and self._is_due()
            if due and self.act != "killed":
                getattr(self, f"_{self.act}")()
            result = task(job, number, turn, known)
            if due and self.act == "killed":
                self._kill()
            return result

        return faulty

    def _raise(self):
        raise ArithmeticError("a fault of the test")

    def _kill(self):
        time.sleep(max(0, started + SETTLED - time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)

    def _eat(self):
        time.sleep(max(0, started + SETTLED - time.monotonic()))
        memory = [bytearray(b"x") * (50 << 20) for _ in range(20)]
        # Until the nanny checks the memory.
        time.sleep(60)
        del memory

    def _sleep(self):
        deadline = time.monotonic() + 300
        while not Path(self.folder, "awake").exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def wake(self):
        Path(self.folder, "awake").touch()


def environment(*faults):
    """Return the environment that makes the workers of a process fail."""
    return {
        FAULTS: json.dumps([asdict(fault) for fault in faults]),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": "tests.support.faulty_tasks",
        "PYTHONPATH": str(ROOT),
    }


def dask_setup(_worker):
    for fault in json.loads(os.environ.get(FAULTS, "[]")):
        tasks._TASKS[fault["stage"]] = Fault(**fault).wrapped(tasks._TASKS[fault["stage"]])
