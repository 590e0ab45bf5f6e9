"""Clusters set up by the files in `deploy/`, as processes of this machine: whole runs give the labels."""

import inspect
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import textwrap
import types
from contextlib import ExitStack, contextmanager

import numpy as np
import psutil
import pytest
import yaml
import zarr
from distributed import LocalCluster, Worker

from dseeds import supervoxels
from dseeds.storage.location import open_location
from tests.support.deployment import DEPLOY
from tests.support.faulty_store import s3
from tests.support.runs import as_zarr, labels_in
from tests.support.waiting import wait_until

IMAGE = np.random.default_rng(0).integers(0, 1000, (8, 8, 15)).astype("int16")
# Few rounds.
LABELS = supervoxels(IMAGE, step=2)
PROGRAMS = {"dask": ["-m", "dask"], "dseeds": ["-m", "dseeds"], "python": []}
SECRETS = {"S3_ACCESS_KEY": "dseeds", "S3_SECRET_KEY": "secret", "JUPYTER_TOKEN": "secret"}


def free_port():
    with socket.socket() as result:
        result.bind(("127.0.0.1", 0))
        return result.getsockname()[1]


def merged(first, second):
    """Overlay a compose file: merge mappings, join lists of volumes, replace the rest."""

    def joined(key, value):
        if isinstance(value, dict) and key in first:
            return merged(first[key], value)
        return [*first.get(key, []), *value] if key == "volumes" and isinstance(value, list) else value

    return first | {key: joined(key, value) for key, value in second.items()}


class Composed:
    """The services of compose files as processes: volumes are folders, services are addresses of this machine."""

    def __init__(self, folder, files, store, environment):
        self.folder, self.environment, self.running = folder, environment, ExitStack()
        port = free_port()
        self.names = {"scheduler:8786": f"127.0.0.1:{port}", "store:8333": store.removeprefix("http://"), ":8787": ":0"}
        self.names["8786"] = str(port)
        self.services = {}
        for file in files:
            whole = yaml.safe_load((DEPLOY / "compose" / file).read_text(encoding="utf-8"))
            self.services = merged(self.services, whole["services"])

    def translated(self, text, volumes):
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda result: SECRETS[result[1]], text)
        for name, here in {**self.names, **volumes}.items():
            text = text.replace(name, here)
        return text

    def process(self, name, command=None):
        """Return a service's command, or another one, and its environment."""
        service, volumes = self.services[name], {}
        for volume in service.get("volumes", []):
            origin, place = volume.split(":")[:2]
            path = (DEPLOY / "compose" if origin.startswith(".") else self.folder / "volumes") / origin
            volumes[place] = str(path.resolve() if origin.startswith(".") else path)
        # The default is the image's entrypoint.
        program, *options = service.get("entrypoint", ["dseeds"])
        words = [*options, *(command or service["command"])]
        own = {key: self.translated(value, volumes) for key, value in service.get("environment", {}).items()}
        kept = {key: value for key, value in self.environment.items() if not key.startswith(("AWS_", "DASK_"))}
        line = [sys.executable, *PROGRAMS[program], *(self.translated(word, volumes) for word in words)]
        return line, {**kept, **own}

    def run(self, name, command=None):
        """Run a service to its end; return its output."""
        line, environment = self.process(name, command)
        done = subprocess.run(
            line, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (name, done.stderr, self.logs())
        return done.stdout

    def start(self, name):
        """Start a service that runs until the end."""
        line, environment = self.process(name)
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(line, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self.running.callback(process.wait, 60)
        self.running.callback(process.terminate)

    def logs(self):
        return {path.stem: path.read_text(encoding="utf-8") for path in self.folder.glob("*.log")}


@contextmanager
def composed(folder, files, store, environment, compiled):
    """Start the services that a worker needs, with compiled kernels."""
    kernels = folder / "volumes" / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "code").symlink_to(compiled, target_is_directory=True)
    result = Composed(folder, files, store, environment)
    with result.running:
        if "certificates" in result.services:
            assert "valid for a year" in result.run("certificates")
        result.start("scheduler")
        yield result


@pytest.fixture
def bucket(object_store, monkeypatch):
    """The bucket of the compose file's store, which moto replaces, with an image."""
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yml").read_text(encoding="utf-8"))["services"]
    name = services["store"]["environment"]["S3_BUCKET"]
    s3(object_store).create_bucket(Bucket=name)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    place = open_location(f"s3://{name}")
    zarr.create_array(place.at("body.zarr").zarr(), data=IMAGE, chunks=(8, 8, 8))
    yield place
    place.clear()
    s3(object_store).delete_bucket(Bucket=name)


def as_said(step):
    """Return the README's command for a run with compose, with another step."""
    (result,) = re.findall(
        r"^docker compose run --rm dseeds (segment .*)$", (DEPLOY / "README.md").read_text(encoding="utf-8"), re.M
    )
    return re.sub(r"--step \S+", f"--step {step}", result).split()


def check_labels(bucket):
    """Check that the labels equal those in memory, and that nothing else is left."""
    np.testing.assert_array_equal(zarr.open_array(bucket.at("labels.zarr/0").zarr(), mode="r")[...], LABELS)
    assert {name.partition("/")[0] for name in bucket.names()} == {"body.zarr", "labels.zarr"}


def wait_for(pattern, log):
    wait_until(lambda: re.search(pattern, log()), explain=log)


@pytest.mark.slow
def test_compose_with_a_worker_that_restarts_regularly(tmp_path, object_store, bucket, environment, compiled):
    with composed(tmp_path, ["compose.yml"], object_store, environment, compiled) as services:
        services.names |= {"4h": "4s", "30m": "0s"}
        services.start("worker")
        services.run("dseeds", as_said(2))
        wait_for("worker-lifetime-reached(.|\n)*Restarting worker", lambda: services.logs()["worker"])
        assert re.search("Scheduler at: +tcp://", services.logs()["scheduler"])
    check_labels(bucket)


@pytest.mark.slow
def test_compose_with_tls(tmp_path, object_store, bucket, environment, compiled):
    with composed(tmp_path, ["compose.yml", "compose.tls.yml"], object_store, environment, compiled) as services:
        services.start("worker")
        services.run("dseeds", as_said(2))
        assert re.search("Scheduler at: +tls://", services.logs()["scheduler"])
        assert re.search("Registered to: +tls://", services.logs()["worker"])
    check_labels(bucket)


def test_certificates_are_made_once_and_for_their_owner_alone(tmp_path):
    create = runpy.run_path(str(DEPLOY / "certificates.py"))["create_certificate"]
    folder = tmp_path / "new" / "tls"
    create(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == {"dask.crt", "dask.key"}
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    create(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "dask.key").unlink()
    with pytest.raises(SystemExit, match="only one"):
        create(folder)


# Like the real one, it copies the script, and the job outlives the command.
SBATCH = """#!/bin/sh
set -eu
script=$SPOOL/$$.script
cp "$1" "$script"
setsid sh "$script" >> "$SPOOL/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
echo "$*" >> "$SPOOL/cancelled"
for job; do kill -- "-$job"; done
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SLURM and its stand-in are of Unix")
def test_slurm_jobs_as_workers(tmp_path, environment):
    spool, programs = tmp_path / "spool", tmp_path / "bin"
    spool.mkdir()
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    as_zarr(tmp_path / "body.zarr", IMAGE, 8)
    edited = """
        import dask_cluster

        dask_cluster.JOBS, dask_cluster.CORES = 1, 1
        if __name__ == "__main__":
            dask_cluster.run("body.zarr", "labels.zarr", "2")
    """
    (tmp_path / "edited.py").write_text(textwrap.dedent(edited))
    done = subprocess.run(
        [sys.executable, "edited.py"],
        cwd=tmp_path,
        env={
            **environment,
            "PATH": f"{programs}:{environment['PATH']}",
            "PYTHONPATH": f"{environment['PYTHONPATH']}:{DEPLOY / 'slurm'}",
            "SPOOL": str(spool),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    (script,), (log,) = spool.glob("*.script"), spool.glob("*.log")
    assert done.returncode == 0, (done.stderr, log.read_text(encoding="utf-8"))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), LABELS)
    assert re.search(r"Registered to: +tls://", log.read_text(encoding="utf-8"))
    asks = script.read_text(encoding="utf-8")
    assert "#SBATCH --cpus-per-task=1\n" in asks
    # In MB, which SLURM reads as MiB: more than the worker's 2 GiB.
    assert "#SBATCH --mem=2560M\n" in asks
    assert "--memory-limit 2.00GiB" in asks
    hours, minutes = map(int, re.search(r"#SBATCH -t (\d+):(\d+):00", asks).groups())
    lifetime, stagger = map(int, re.search(r"--lifetime (\d+)m --lifetime-stagger (\d+)m", asks).groups())
    assert lifetime + stagger < 60 * hours + minutes
    # The job was cancelled, and no worker is left.
    (job,) = {int(number) for number in (spool / "cancelled").read_text(encoding="utf-8").split()}
    wait_until(lambda: not psutil.pid_exists(job))


def test_coiled(tmp_path, monkeypatch):
    """A local cluster replaces the machines."""
    asked = {}

    def cluster(**options):
        asked.update(options)
        threads = options["worker_options"]["nthreads"]
        return LocalCluster(
            processes=False,
            n_workers=1,
            threads_per_worker=threads,
            memory_limit="4GiB",
            dashboard_address="127.0.0.1:0",
        )

    monkeypatch.setitem(sys.modules, "coiled", types.SimpleNamespace(Cluster=cluster))
    source, target = as_zarr(tmp_path / "body.zarr", IMAGE, 8), tmp_path / "labels.zarr"
    runpy.run_path(str(DEPLOY / "coiled" / "run.py"))["run"](str(source), str(target), "2")
    np.testing.assert_array_equal(labels_in(target), LABELS)
    assert asked["worker_options"].keys() <= inspect.signature(Worker.__init__).parameters.keys()
    json.dumps(asked)
