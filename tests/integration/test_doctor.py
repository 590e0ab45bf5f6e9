"""The doctor's findings: on a sound machine, and for each thing that can be wrong."""

import contextlib
import importlib.metadata
import json
import re

import numpy as np
import pytest

import dseeds
from dseeds import cli, doctor
from dseeds.storage.location import LocalLocation, open_location
from tests.support.clusters import in_process, replace_local_clusters


def findings(*arguments, **options):
    """Return the findings by name, by default without the self test."""
    return {finding.name: finding for finding in doctor.examine(*arguments, **{"self_test": False, **options})}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and local clusters within this process."""
    monkeypatch.chdir(tmp_path)

    replace_local_clusters(monkeypatch, memory_limit=None)
    return tmp_path


@pytest.fixture
def client():
    with in_process(2) as client:
        yield client


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions, or with None that they are missing."""

    def pretend(**others):
        def version(name, real=importlib.metadata.version):
            if name in others and others[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return others.get(name) or real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


def test_everything_is_ok_and_nothing_is_left(here):
    seen = findings([here])
    assert {finding.state for finding in seen.values()} == {"ok"}
    assert dseeds.__version__ in seen["versions"].found
    assert "free" in seen[str(here)].found
    assert list(here.iterdir()) == []


def test_a_missing_extra_is_ok_and_comes_with_its_command(here, versions):
    versions(obstore=None)
    extras = findings()["extras"]
    assert extras.state == "ok"
    assert re.search(r"'dseeds\[.*remote", extras.advice)


def test_a_dependency_that_is_too_old_fails(here, versions):
    versions(zarr="2.18.0")
    seen = findings()["versions"]
    assert (seen.state, "'zarr>=3" in seen.advice) == ("failed", True)


@pytest.mark.parametrize(("limit", "state"), [(1 << 30, "warning"), (8 << 30, "ok")])
def test_memory(here, monkeypatch, limit, state):
    monkeypatch.setattr(doctor, "MEMORY_LIMIT", limit)
    assert findings()["memory"].state == state


def test_a_processor_without_wide_registers(here, monkeypatch):
    monkeypatch.setattr(doctor, "VECTORS", ())
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    assert findings()["vectors"].state == "warning"


@pytest.mark.parametrize(
    ("folder", "state", "words"),
    [("off", "ok", "not kept"), ("file", "warning", "cannot be kept"), ("new", "ok", "kept in")],
)
def test_compiled_code(here, monkeypatch, folder, state, words):
    (here / "file").touch()
    monkeypatch.setenv("DSEEDS_CACHE_DIR", folder if folder == "off" else str(here / folder))
    found = findings()["compiled code"]
    assert found.state == state
    assert words in found.found


def test_a_folder_that_cannot_be_written_to(here):
    (here / "file").touch()
    for name in ("nowhere", "file"):
        seen = findings([name])[name]
        assert (seen.state, bool(seen.advice)) == ("failed", True)


def test_a_disk_with_little_room(here, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_ROOM", 1 << 60)
    assert findings()["this folder"].state == "warning"


def test_object_stores(here, faulty_store):
    good, bad = faulty_store.make_bucket(), "s3://no-such-bucket-of-ours"
    seen = findings([good, bad])
    assert (seen[good].state, seen[bad].state) == ("ok", "failed")
    assert list(open_location(good).names()) == []


@pytest.mark.parametrize("lie", [{"read": b"x"}, {"names": []}, {"delete": None}])
def test_a_store_that_lies(here, monkeypatch, lie):
    for name, value in lie.items():
        monkeypatch.setattr(LocalLocation, name, lambda *_, value=value: value)
    assert findings()["this folder"].state == "failed"
    monkeypatch.undo()
    assert not list(here.rglob("dseeds-doctor-*"))


def test_a_cluster(here, client, monkeypatch):
    seen = findings([str(here)], client=contextlib.nullcontext(client))
    assert {finding.state for finding in seen.values()} == {"ok"}
    assert seen["cluster"].found.startswith("2 workers, 2 threads")
    assert "all 2" in seen[f"{here} from workers"].found
    assert list(here.iterdir()) == []
    # Each worker has another folder of the same name.
    monkeypatch.setattr(doctor, "_reads", lambda _: False)
    assert findings([str(here)], client=contextlib.nullcontext(client))[f"{here} from workers"].state == "failed"


def test_a_cluster_of_other_versions(here, client, monkeypatch):
    versions = client.get_versions(check=False, packages=list(doctor.PACKAGES))
    worker = next(iter(versions["workers"]))
    versions["workers"][worker]["packages"]["numba"] = "0.1"
    monkeypatch.setattr(client, "get_versions", lambda **_: versions)
    seen = findings(client=contextlib.nullcontext(client))["cluster's versions"]
    assert (seen.state, f"numba 0.1 at {worker}" in seen.found) == ("warning", True)


def test_a_cluster_without_workers(here):
    with in_process(0) as client:
        seen = findings(client=contextlib.nullcontext(client))
    assert (seen["cluster"].state, "no worker" in seen["cluster"].found) == ("failed", True)


def test_the_command(here, capsys, monkeypatch):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["findings"][-1]["name"] == "self test"
    assert list(here.iterdir()) == []
    # No scheduler answers, and one failure is enough.
    monkeypatch.setattr("dseeds.parallel.clients.CONNECT_SECONDS", 1)
    assert cli.main(["doctor", "--no-self-test", "--scheduler", "tcp://127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert ("failed" in out, err) == (True, "")
    assert cli.main(["doctor", "--tls-key", __file__]) == 2


def test_a_self_test_that_fails(here, monkeypatch):
    def others(image, **options):
        labels = cut(image, **options)
        labels[0, 0, 0] = labels.max()
        return labels

    cut = dseeds.supervoxels
    monkeypatch.setattr(dseeds, "supervoxels", others)
    monkeypatch.setattr(dseeds, "segment", lambda image, target, **_: np.save(target, cut(image, step=8)))
    monkeypatch.setattr(
        doctor, "open_source", lambda path: type("Source", (), {"read": lambda *_: np.load(f"{path}.npy")})()
    )
    assert findings(self_test=True)["self test"].state == "failed"
