"""The kernel cache: used by default, whole under races and kills, private, and never a reason to fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dseeds
from dseeds import cli
from dseeds.core import kernel_cache
from dseeds.core.kernel_cache import CACHE_FOLDER

# A run that prints how many kernels it loaded and how many it compiled.
RUN = """
import json
import numpy as np
import dseeds
from dseeds.core.jit import registered_kernels

labels = dseeds.supervoxels(np.load("image.npy"), step=8)
np.save("labels.npy", labels)
stats = [kernel.stats for kernel in registered_kernels]
print(json.dumps([sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats)]))
"""
# A process that compiles a small kernel of its own for several types, in an order of its own, and prints its results.
SMALL = """
import random, sys
import numpy as np
import kernels

dtypes = ["i1", "i2", "i4", "u1", "u2", "f4", "f8"]
random.Random(int(sys.argv[1])).shuffle(dtypes)
results = {dtype: float(kernels.total(np.arange(10, dtype=dtype))) for dtype in dtypes}
assert set(results.values()) == {285.0}, results
print(sum(kernels.total.stats.cache_hits.values()))
"""
KERNELS = """
from dseeds.core.jit import jit

@jit
def total(values):
    total = 0.0
    for value in values:
        total += value * value
    return total
"""


def start(home, code, *arguments, folder=None):
    """Start a process with `home` as its home, temporary folder and working directory."""
    home.mkdir(exist_ok=True)
    dropped = {CACHE_FOLDER, "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    paths = [str(home), str(Path(dseeds.__file__).parents[1])]
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": os.pathsep.join(paths)}
    if folder:
        environment[CACHE_FOLDER] = str(folder)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=home,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def output(process):
    """Return what a process prints, which must succeed without a word of complaint."""
    printed, complaints = process.communicate(timeout=250)
    assert (process.returncode, complaints) == (0, "")
    return printed


@pytest.fixture
def image(tmp_path):
    image = np.random.default_rng(0).integers(0, 1000, (30, 20, 40), np.uint16)
    np.save(tmp_path / "image.npy", image)
    return image


@pytest.fixture
def home(tmp_path):
    (tmp_path / "kernels.py").write_text(KERNELS)
    return tmp_path


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A folder, and functions that forget what was found before."""
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path))
    for name in ("code_folder", "fingerprint"):
        monkeypatch.setattr(kernel_cache, name, getattr(kernel_cache, name).__wrapped__)


@pytest.mark.slow
def test_a_later_process_compiles_nothing(compiled, image, tmp_path):
    before = {path.name for path in Path(compiled).rglob("*.code")}
    hits, misses = json.loads(output(start(tmp_path, RUN, folder=compiled)))
    assert hits > 5
    assert misses == 0
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), dseeds.supervoxels(image, step=8))
    assert {path.name for path in Path(compiled).rglob("*.code")} == before


def test_it_is_in_the_cache_folder_of_the_user(home):
    assert output(start(home, SMALL, 0)) == "0\n"
    [folder] = [path for path in home.rglob("*") if path.name == kernel_cache.fingerprint()]
    assert len(list(folder.glob("total-*.code"))) == 7
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert output(start(home, SMALL, 1)) == "7\n"


def test_many_processes_at_once_and_kills_leave_whole_files(home):
    folder = home / "cache"
    killed = [start(home, SMALL, n, folder=folder) for n in range(4)]
    others = [start(home, SMALL, n, folder=folder) for n in range(4, 16)]
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/.*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    for process in others:
        output(process)
    assert len(list(folder.glob("*/*.code"))) == 7
    assert output(start(home, SMALL, 20, folder=folder)) == "7\n"


def test_damaged_code_is_compiled_anew(home):
    folder = home / "cache"
    output(start(home, SMALL, 0, folder=folder))
    for number, path in enumerate(sorted(folder.glob("*/*.code"))[:3]):
        content = bytearray(path.read_bytes())
        content[[5, 100, len(content) // 2][number]] ^= 1
        path.write_bytes(content[: len(content) if number else 40])
    assert output(start(home, SMALL, 1, folder=folder)) == "4\n"
    assert output(start(home, SMALL, 2, folder=folder)) == "7\n"


def test_it_can_be_turned_off(home):
    assert output(start(home, SMALL, 0, folder="off")) == "0\n"
    assert [path.name for path in home.rglob("*") if "__pycache__" not in path.parts] == ["kernels.py"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no permission bits")
def test_a_folder_that_cannot_be_used_is_one_notice(home):
    shared = home / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (home / "file").write_text("")
    for folder, complaint in ((shared, "may be written by others"), (home / "file", "File exists")):
        process = start(home, SMALL, 0, folder=folder)
        printed, complaints = process.communicate(timeout=120)
        assert (process.returncode, printed) == (0, "0\n")
        assert complaints.count(complaint) == complaints.count("Warning") == 1
    assert list(shared.iterdir()) == []


def test_foreign_code_is_not_found(fresh, monkeypatch, tmp_path):
    folder = kernel_cache.code_folder()
    monkeypatch.setattr(kernel_cache, "version", lambda name: "another")
    assert kernel_cache.code_folder() != folder


def test_the_sources_are_in_the_name(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_cache, "__file__", str(tmp_path / "package" / "core" / "kernel_cache.py"))
    source = tmp_path / "package" / "deep" / "kernel.py"
    source.parent.mkdir(parents=True)
    source.write_text("from dseeds.core.jit import jit\nBINS = 64\n")
    before = kernel_cache.fingerprint()
    os.utime(source, (0, 0))
    assert kernel_cache.fingerprint() == before
    source.write_text("from dseeds.core.jit import jit\nBINS = 32\n")
    assert kernel_cache.fingerprint() != before


def test_code_of_versions_that_nobody_uses_is_removed(fresh, tmp_path):
    now = time.time()
    for number in range(20):
        folder = tmp_path / f"{number:032x}"
        folder.mkdir()
        os.utime(folder, (now - number * 86400 * 6,) * 2)
    (tmp_path / "mine").mkdir()
    folder = kernel_cache.code_folder()
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "mine", *(f"{n:032x}" for n in range(5))}


def test_compile_refuses_a_folder_that_others_may_write_to(fresh, tmp_path, capsys):
    tmp_path.chmod(0o777)
    assert cli.main(["compile"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path} may be written by others")
    assert printed.err.count("\n") == 1


def test_compile_refuses_when_nothing_is_kept(fresh, monkeypatch, capsys):
    monkeypatch.setenv(CACHE_FOLDER, "off")
    assert cli.main(["compile"]) == 1
    assert capsys.readouterr().err.startswith("error: DSEEDS_CACHE_DIR is off")


@pytest.mark.parametrize(("owner", "fine"), [(0, True), (os.geteuid(), True), (os.geteuid() + 1, False)])
def test_the_folder_belongs_to_the_user_or_to_root(owner, fine):
    status = SimpleNamespace(st_uid=owner, st_mode=0o40755)
    if fine:
        kernel_cache.require_private(Path("folder"), status)
    else:
        with pytest.raises(PermissionError):
            kernel_cache.require_private(Path("folder"), status)
