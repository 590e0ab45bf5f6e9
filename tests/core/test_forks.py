"""A process may be forked at any moment while other threads are inside the package, as by a loader of training data."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

# A thread of the script has begun something, and a child that is forked in the middle does the same.
SCRIPT = """
import faulthandler, os, sys, threading, time
import dseeds
from dseeds.core.forks import ForkSafeLock, cached_property

has_begun = threading.Event()
parent = os.getpid()

def linger():
    has_begun.set()
    if os.getpid() == parent:
        time.sleep(1)

{state}

def fork():
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(150, exit=True)
        work()
        os._exit(0)
    return child

thread = threading.Thread(target=work)
thread.start()
children = []
for moment in range({moments}):
    has_begun.wait()
    children.append(fork())
    time.sleep(0.2 * moment)
thread.join()
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
# Everything goes on here as well.
work()
"""

CACHED = """
class Slow:
    @cached_property
    def value(self):
        linger()
        return 7

def work():
    assert Slow().value == 7
"""

LOCK = """
lock = ForkSafeLock()

def work():
    with lock:
        linger()
"""

IMPORT = """
import builtins
builtins.linger = linger
dseeds.__path__.append({folder!r})

def work():
    import dseeds.slow_module
    assert dseeds.slow_module.VALUE == 7
"""

# As if a library that the package calls imported something on its own first call.
CALLED = """
import builtins
builtins.linger = linger
sys.path.insert(0, {folder!r})

caller = {"__name__": "dseeds.caller"}
exec("def call(function): return function()", caller)

def library():
    import slow_module
    return slow_module.VALUE

def work():
    assert caller["call"](library) == 7
"""

# As while a kernel is compiled, for which some modules are imported.
COMPILER = """
import builtins
from dseeds.core import jit
from numba.core.compiler_lock import global_compiler_lock
from llvmlite.binding import ffi
builtins.linger = linger
sys.path.insert(0, {folder!r})

def work():
    with global_compiler_lock, ffi.lib._lock:
        import slow_module
"""

# From the imports of the first call on.
CALLS = """
import numpy
image = numpy.arange(8**3, dtype="uint8").reshape(8, 8, 8)

def work():
    has_begun.set()
    assert dseeds.supervoxels(image, step=4).max() == 8
"""


def run(state, moments, environment):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(state=state, moments=moments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


STATES = {"cached": CACHED, "lock": LOCK, "import": IMPORT, "called": CALLED, "compiler": COMPILER}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_child_does_not_wait_for_threads_that_it_does_not_have(tmp_path, state):
    (tmp_path / "slow_module.py").write_text("linger()\nVALUE = 7\n")
    run(state.replace("{folder!r}", repr(str(tmp_path))), 1, {**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_children_of_a_process_that_is_cutting(environment):
    run(CALLS, 5, environment)
