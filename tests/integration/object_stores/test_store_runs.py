"""Runs whose source, scratch or labels lie in an object store; what they keep, and how many requests they make."""

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import zarr

from dseeds import cli, segment, supervoxels
from dseeds.engine import batch
from dseeds.engine.job_array import Share
from dseeds.engine.run import RunOptions
from dseeds.storage.lease import LEASE_FOLDER as LEASE
from dseeds.storage.location import open_location
from tests.support.faulty_store import Faults
from tests.support.runs import interrupt
from tests.support.stores import (
    FAULTS,
    FEW,
    IMAGE,
    LABELS,
    When,
    both,
    check_labels,
    check_left,
    run,
    save,
)


@both
def test_everything_in_a_store(bucket, client):
    report = run(bucket, client)
    assert (report.target, report.regions) == (f"{bucket.address}/labels.zarr", 2)
    check_left(bucket)


def test_scratch_here_and_labels_there(bucket, processes, tmp_path):
    run(bucket, processes, scratch=tmp_path)
    check_left(bucket)
    assert not list(tmp_path.iterdir())


def test_scratch_in_another_bucket(bucket, store, processes):
    other = open_location(f"{store.make_bucket()}/tmp")
    run(bucket, processes, scratch=other.address)
    check_left(bucket)
    assert not list(other.names())


def test_scratch_there_and_labels_here(bucket, processes, tmp_path):
    target = tmp_path / "labels.zarr"
    before = set(bucket.names())
    segment(f"{bucket.address}/image.zarr", target, client=processes, scratch=f"{bucket.address}/tmp", **FEW)
    check_labels(open_location(target))
    assert [path.name for path in tmp_path.iterdir()] == ["labels.zarr"]
    assert set(bucket.names()) == before


def test_a_source_here(bucket, processes, tmp_path):
    save(open_location(tmp_path / "image.zarr"), IMAGE)
    segment(tmp_path / "image.zarr", f"{bucket.address}/labels.zarr", client=processes, **FEW)
    check_left(bucket)


def test_a_source_in_this_process(bucket, processes):
    segment(IMAGE, f"{bucket.address}/labels.zarr", client=processes, **FEW)
    check_left(bucket, (1.0, 1.0, 1.0))


def test_a_target_within_the_source(bucket, threads):
    image = bucket.at("plain.zarr")
    zarr.create_array(image.zarr(), data=IMAGE, chunks=(8, 8, 8))
    before = set(bucket.names())
    with pytest.raises(FileExistsError, match="lies in the source"):
        segment(image.address, image.at("labels/supervoxels").address, client=threads, **FEW)
    assert set(bucket.names()) == before


def test_a_source_by_http(bucket, processes, tmp_path):
    save(open_location(tmp_path / "image.zarr"), IMAGE)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        source = f"http://127.0.0.1:{server.server_port}/image.zarr"
        segment(source, f"{bucket.address}/labels.zarr", client=processes, **FEW)
        check_left(bucket)
        with pytest.raises(ValueError, match="neither a path nor an address in an object store"):
            segment(IMAGE, source.replace("image", "labels"), client=processes, **FEW)
        server.shutdown()


def test_labels_are_overwritten_only_on_request(bucket, threads):
    run(bucket, threads)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        run(bucket, threads)
    check_left(bucket)
    # Other chunks, in processes that have opened the earlier array.
    run(bucket, threads, step=4, region=8, chunks=4, overwrite=True)
    np.testing.assert_array_equal(
        zarr.open_array(bucket.at("labels.zarr").zarr("0"), mode="r")[:], supervoxels(IMAGE, step=4)
    )
    assert not list(bucket.names("labels.zarr.dseeds"))


@pytest.mark.parametrize("name", ["labels/0/zarr.json", "0/c/0/0/0.bak"])
def test_files_of_others_are_kept(bucket, threads, name):
    target = bucket.at("labels.zarr")
    target.write(name, b"precious")
    with pytest.raises(FileExistsError, match="was not written by dseeds"):
        run(bucket, threads, overwrite=True)
    target.delete([name])
    run(bucket, threads)
    target.write(name, b"precious")
    with pytest.raises(FileExistsError, match=f"holds {name}, which dseeds did not write"):
        run(bucket, threads, overwrite=True)
    assert target.read(name) == b"precious"
    target.delete([name])
    check_left(bucket)


def test_other_data_in_the_runs_folder_is_kept(bucket, threads):
    bucket.write("labels.zarr.dseeds/a", b"precious")
    with pytest.raises(FileExistsError, match="was not written by dseeds"):
        run(bucket, threads, overwrite=True)
    assert bucket.read("labels.zarr.dseeds/a") == b"precious"


@pytest.mark.parametrize("target", ["image.zarr", "image.zarr/0", ""])
def test_the_source_is_kept(bucket, threads, target):
    before = set(bucket.names())
    where = f"{bucket.address}/{target}".replace("s3://", "s3a://")
    with pytest.raises(FileExistsError, match="is the source, or holds it"):
        segment(f"{bucket.address}/image.zarr", where, client=threads, overwrite=True, **FEW)
    assert set(bucket.names()) == before


@pytest.mark.parametrize("stage", ["window", "quantise", "sweep-voxels", "label"])
def test_an_interrupted_run_is_resumed(bucket, threads, processes, stage):
    progress = When(stage, interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(bucket, threads, progress=progress)
    assert any("--resume" in note for note in caught.value.__notes__)
    with pytest.raises(FileExistsError, match="there is an unfinished run"):
        run(bucket, threads)
    report = run(bucket, processes, resume=True)
    assert report.resumed
    assert report.skipped or stage == "label", "labels are looked at once more"
    check_left(bucket)


def test_of_two_runs_one_is_refused(bucket, threads, capsys):
    def begin():
        for more in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FileExistsError, match="is at work on"):
                run(bucket, threads, **more)

    progress = When("sweep-voxels", begin)
    run(bucket, threads, progress=progress)
    assert progress.happened
    check_left(bucket)


def test_a_run_on_a_machine_that_is_gone_is_taken_over(bucket, threads):
    with pytest.raises(KeyboardInterrupt):
        run(bucket, threads, progress=When("sweep-voxels", interrupt))
    holder = {"host": "gone", "machine": "gone", "process": 1, "started": 0.0, "name": "gone", "beats": 7}
    bucket.write(f"labels.zarr.dseeds/{LEASE}/000007.json", json.dumps(holder).encode())
    began = time.monotonic()
    assert run(bucket, threads, resume=True).resumed
    assert time.monotonic() - began > 2
    check_left(bucket)


@pytest.mark.parametrize("faults", ["none", "all"])
def test_batch_jobs(bucket, store, faults, monkeypatch):
    monkeypatch.setattr(batch, "POLL_SECONDS", (0.1, 0.2))
    store.faults = FAULTS.get(faults, Faults())
    source, target = f"{bucket.address}/image.zarr", f"{bucket.address}/labels.zarr"
    plan = batch.begin_batch(source, target, RunOptions(**FEW), 1 << 30).folder.address
    assert plan == f"{target}.dseeds"

    def job(index):
        return batch.run_step(batch.open_batch_run(plan), Share(index, 2), wait=True)

    with ThreadPoolExecutor(2) as jobs:
        list(jobs.map(job, range(2)))
    batch.finalize_run(batch.open_batch_run(target))
    store.faults = Faults()
    check_left(bucket)


@pytest.fixture
def dseeds(capsys):
    def call(*arguments):
        code = cli.main([*map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_command_line(bucket, store, processes, dseeds):
    source, target = f"{bucket.address}/image.zarr", f"{bucket.address}/labels.zarr"
    words = ["segment", source, target, "--step", 2, "--region", 8, "--scheduler", processes.scheduler.address]
    assert dseeds("info", source, "--json")[0] == 0
    code, out, err = dseeds("info", target)
    assert (code, out) == (1, "")
    assert "does not exist" in err
    for stage in ("window", "label"):
        with pytest.raises(KeyboardInterrupt):
            run(bucket, processes, progress=When(stage, interrupt), resume=stage == "label")
        code, out, err = dseeds("info", target)
        assert (code, out) == (1, "")
        assert f"{target} is unfinished" in err
        assert "--resume" in err
        code, out, err = dseeds("status", f"{target}.dseeds", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["target"] == target
    assert dseeds(*words)[0] == 1
    code, out, err = dseeds(*words, "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["resumed"]
    check_left(bucket)
    code, out, err = dseeds("info", target, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["kind"], result["path"], result["supervoxels"]) == ("labels", target, LABELS.max())
    store.expire_now()
    for command in (words, ("info", target), ("status", f"{target}.dseeds")):
        code, out, err = dseeds(*command)
        assert (code, out) == (1, "")
        assert "renew the credentials" in err
        assert err.count("\n") == 1, err


# For a region with three neighbours: reads of each, writes, and the mark. A message is its own mark; in the first round
# a region reads what its neighbours have quantised. The voxels in each bin are read in the end.
PER_TASK = {
    "window": 1 + 1 + 1,
    "quantise": 1 + 1 + 1 + 1,
    "sweep-voxels": 3 + 1,
    "label": 1 + 1 + 1,
}
PER_PHASE, PER_ARRAY, PER_RUN = 9, 6, 25


def test_requests(bucket, store, threads):
    rng = np.random.default_rng(0)
    image = bucket.at("large.zarr")
    zarr.create_array(image.zarr(), data=rng.integers(0, 1000, (8, 16, 16), dtype="i2"), chunks=(8, 8, 8))
    store.requests.clear()
    report = segment(image.address, f"{bucket.address}/labels.zarr", client=threads, **FEW)
    paths = [(request.method, request.path.partition("?")[0]) for request in store.requests]
    paths = [(method, path) for method, path in paths if f"/{LEASE}/" not in path]
    for_tasks = [path for _, path in paths if re.search(r"/c/\d+/|/(done|messages)/.*/\d+-\w+$", path)]
    tasks = {stage.name: stage.tasks for stage in report.stages}
    bound = sum(tasks[stage] * PER_TASK[stage] for stage in tasks)
    assert report.regions == 4
    assert bound // 2 < len(for_tasks) <= bound
    described = Counter(path for method, path in paths if method == "GET" and path.endswith("zarr.json"))
    of_ours = {path: count for path, count in described.items() if "large.zarr" not in path}
    assert max(of_ours.values()) <= 1 + 4, "once to find that there is none yet, then each thread may open it"
    old = [path for _, path in paths if path.endswith((".zarray", ".zattrs")) and "large.zarr" not in path]
    assert len(old) <= 3, "once in a while, to find that there is no older output in Zarr v2"
    phases = sum(tasks.values()) // report.regions
    rest = len(paths) - len(for_tasks)
    assert rest <= PER_RUN + PER_PHASE * phases + PER_ARRAY * len(of_ours), Counter(paths)
