"""Waiting for a condition, with a deadline."""

import time

# Generous: a busy machine may need a minute to start a process.
SECONDS = 120


def wait_until(condition, process=None, explain=lambda: "the condition never held", seconds=SECONDS):
    """Wait until a condition holds, for as long as a process lives if one is given.

    Parameters
    ----------
    condition : callable
        Returns whether to go on.
    process : subprocess.Popen, optional
        Fail when it ends before.
    explain : callable, optional
        Returns the message for when time is up.
    seconds : float, optional
        When time is up.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.005)
