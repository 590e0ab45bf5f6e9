"""Scripts that start worker processes without a guard: every worker imports the script, and would start others."""

from __future__ import annotations

import multiprocessing
import os

# The variable that marks the worker processes of this package, and the status with which one ends that imports such a
# script.
WORKER_VARIABLE, SCRIPT_STATUS = "DSEEDS_WORKER", 89


def end_importing_worker() -> None:
    """End this process if it is a worker that is still importing the script which started it."""
    is_starting = getattr(multiprocessing.current_process(), "_inheriting", False)
    if is_starting and WORKER_VARIABLE in os.environ:
        # Without a traceback: the process that started this one says what is wrong.
        raise SystemExit(SCRIPT_STATUS)
