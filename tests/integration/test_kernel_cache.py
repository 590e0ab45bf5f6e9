"""The kernel cache: written only on request, complete, private, and only read by runs."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dseeds
from dseeds import cli, precompile
from dseeds.core import jit
from dseeds.precompile import compile_kernels

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
LOADED = "from dseeds.core.jit import _read; print(len(_read()))"
# Compiles only what the run needs: all kernels take minutes.
COMPILE = """
import sys
import numpy as np
import dseeds
from dseeds import precompile
from dseeds.cli import main

precompile._call_all_kernels = lambda: dseeds.supervoxels(np.zeros((8, 8, 16), np.uint16), step=8)
sys.exit(main(["compile"]))
"""


def start(code, home, folder=None):
    """Start a process with `home` as its home, temporary folder and working directory."""
    home.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != jit.CACHE_FOLDER}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(Path(dseeds.__file__).parents[1])}
    if folder:
        environment[jit.CACHE_FOLDER] = str(folder)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=home,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def output(process):
    printed, complaints = process.communicate(timeout=200)
    assert process.returncode == 0, complaints
    return printed


@pytest.fixture
def image(tmp_path):
    image = np.random.default_rng(0).integers(0, 1000, (30, 20, 40), np.uint16)
    np.save(tmp_path / "image.npy", image)
    return image


@pytest.mark.slow
def test_a_later_process_compiles_nothing(compiled, image, tmp_path):
    before = [(path, path.stat().st_mtime_ns) for path in Path(compiled).iterdir()]
    hits, misses = json.loads(output(start(RUN, tmp_path, compiled)))
    assert hits > 5
    assert misses == 0
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), dseeds.supervoxels(image, step=8))
    assert [(path, path.stat().st_mtime_ns) for path in Path(compiled).iterdir()] == before


@pytest.mark.slow
def test_several_processes_make_one_whole_file(tmp_path, monkeypatch):
    folder = tmp_path / "compiled"
    processes = [start(COMPILE, tmp_path / str(n), folder) for n in range(2)]
    assert {Path(output(process).strip()) for process in processes} == set(folder.iterdir())
    assert len(set(folder.iterdir())) == 1
    assert json.loads(output(start(LOADED, tmp_path / "later", folder))) > 5
    monkeypatch.setenv(jit.CACHE_FOLDER, str(folder))
    monkeypatch.setattr(precompile, "_call_all_kernels", None)
    assert [compile_kernels()] == list(folder.iterdir())


@pytest.mark.slow
def test_a_run_writes_nothing(image, tmp_path):
    package = set(Path(dseeds.__file__).parent.rglob("*.nb*"))
    hits, misses = json.loads(output(start(RUN, tmp_path, tmp_path / "missing")))
    assert hits == 0
    assert misses > 5
    assert {path.name for path in tmp_path.iterdir()} == {"image.npy", "labels.npy"}
    assert set(Path(dseeds.__file__).parent.rglob("*.nb*")) == package


@pytest.fixture
def fresh(monkeypatch):
    """Forget what was read before."""
    monkeypatch.setattr(jit, "_fingerprint", jit._fingerprint.__wrapped__)
    monkeypatch.setattr(jit, "_read", jit._read.__wrapped__)


def test_unfinished_and_foreign_code_is_not_loaded(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv(jit.CACHE_FOLDER, str(tmp_path))
    path = jit.cache_file()
    path.write_bytes(pickle.dumps({"kernel": b"code"}))
    (tmp_path / ".unfinished").write_bytes(b"half")
    assert jit._read() == {"kernel": b"code"}
    monkeypatch.setattr(jit, "version", lambda name: "another")
    assert jit.cache_file() != path
    assert jit._read() == {}


def test_the_sources_are_in_the_name(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv(jit.CACHE_FOLDER, str(tmp_path))
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "package" / "core" / "jit.py"))
    source = tmp_path / "package" / "deep" / "kernel.py"
    source.parent.mkdir(parents=True)
    source.write_text("BINS = 64\n")
    before = jit.cache_file()
    os.utime(source, (0, 0))
    assert jit.cache_file() == before
    source.write_text("BINS = 32\n")
    assert jit.cache_file() != before


def test_a_failure_leaves_nothing_behind(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv(jit.CACHE_FOLDER, str(tmp_path / "new" / "folder"))
    monkeypatch.setattr(precompile, "_call_all_kernels", lambda: None)
    monkeypatch.setattr(precompile, "registered_kernels", [])
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        compile_kernels()
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_folder_that_others_may_write_to_is_refused(fresh, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(jit.CACHE_FOLDER, str(tmp_path))
    jit.cache_file().write_bytes(pickle.dumps({}))
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="may be written by others"):
        jit._read()
    assert cli.main(["compile"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path} may be written by others")
    assert printed.err.count("\n") == 1
    tmp_path.chmod(0o755)
    assert jit._read() == {}
    jit.cache_file().chmod(0o666)
    with pytest.raises(PermissionError, match="may be written by others"):
        jit._read()


@pytest.mark.parametrize(("owner", "fine"), [(0, True), (os.geteuid(), True), (os.geteuid() + 1, False)])
def test_the_folder_belongs_to_the_user_or_to_root(owner, fine):
    status = SimpleNamespace(st_uid=owner, st_mode=0o40755)
    if fine:
        jit.require_private(Path("folder"), status)
    else:
        with pytest.raises(PermissionError):
            jit.require_private(Path("folder"), status)


def test_without_the_variable_there_is_a_sentence(monkeypatch, capsys):
    monkeypatch.delenv(jit.CACHE_FOLDER, raising=False)
    assert cli.main(["compile"]) == 1
    assert capsys.readouterr().err.startswith("error: DSEEDS_CACHE_DIR is not set")
