"""Network: TLS to a cluster, and a local cluster that listens on loopback only."""

import datetime
import gc
import os
import re
import subprocess
import sys
import time
import uuid
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dask import config as configuration

import dseeds
from dseeds.parallel.capacity import Capacity
from dseeds.parallel.clients import CONNECT_SECONDS
from dseeds.parallel.cluster import connect
from tests.support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed <s:pytest.PytestUnraisableExceptionWarning")
SCRIPT = Path(sys.executable).with_name("dseeds")
OURS = "--tls-ca-file ca.crt --tls-cert client.crt --tls-key client.key"
CONFIGURED = {"CA_FILE": "ca.crt", "CLIENT__CERT": "client.crt", "CLIENT__KEY": "client.key"}


def certify(folder, name, issuer=None):
    """Write a key and a certificate signed by the issuer or itself; return what signs others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signing_key = issuer or (subject, key)
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(signer, subject, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(signing_key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(encoding))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return subject, key


@contextmanager
def dask(folder, line):
    """Run a Dask command; yield the path of its log."""
    path = folder / f"{uuid.uuid4().hex}.log"
    with path.open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "dask", *line.split()], cwd=folder, stdout=log, stderr=log)
        try:
            yield path
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def dask_scheduler(folder, protocol, options=""):
    """Run a scheduler on a free port; yield its address."""
    address = f"--host {protocol}://127.0.0.1 --port 0 --dashboard-address 127.0.0.1:0"
    with dask(folder, f"scheduler {address} {options}") as log:
        pattern = re.compile(r"Scheduler at: +(\S+)\n")
        wait_until(lambda: pattern.search(log.read_text()), explain=log.read_text)
        yield pattern.search(log.read_text())[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an image, the cluster's certificates, and certificates of another authority."""
    folder = tmp_path_factory.mktemp("network")
    ca, other_ca = certify(folder, "ca"), certify(folder, "other-ca")
    for name, issuer in (("cluster", ca), ("client", ca), ("other", other_ca)):
        certify(folder, name, issuer)
    joined = (folder / "client.key").read_text() + (folder / "client.crt").read_text()
    (folder / "joined.pem").write_text(joined)
    image = np.random.default_rng(0).integers(0, 1000, (20, 24, 28)).astype("int16")
    zarr.create_array(folder / "image.zarr", data=image, chunks=(16, 16, 16))
    return folder


@pytest.fixture(scope="module")
def scheduler(folder):
    """The address of a cluster with TLS, started from the command line."""
    tls = "--tls-ca-file ca.crt --tls-cert cluster.crt --tls-key cluster.key"
    working = "--no-nanny --no-dashboard --nthreads 1 --memory-limit 2GiB"
    with dask_scheduler(folder, "tls", tls) as address, dask(folder, f"worker {address} {working} {tls}"):
        yield address


@pytest.fixture
def refuse(folder, call, monkeypatch):
    """Return a function that runs `dseeds segment` and checks that it fails with one sentence and no output.

    Dask leaves the sockets of refused connections to the garbage collector.
    """

    def refuse(words, *arguments, code=1):
        monkeypatch.chdir(folder)
        status, output, error = call("segment", "image.zarr", "refused.zarr", "--step", 8, "--quiet", *arguments)
        assert (status, output) == (code, "")
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert all(word in error for word in words), error
        assert not (folder / "refused.zarr").exists()

    yield refuse
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize(
    ("options", "tls"),
    [(OURS, {}), ("--tls-ca-file ca.crt --tls-cert joined.pem", {}), ("", CONFIGURED)],
)
def test_a_run_over_tls_gives_the_labels(folder, scheduler, tmp_path, options, tls):
    assert scheduler.startswith("tls://")
    environment = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in tls.items()}
    arguments = ["--step", "8", "--quiet", "--scheduler", scheduler, *options.split()]
    process = subprocess.run(
        [SCRIPT, "segment", "image.zarr", tmp_path / "labels.zarr", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    labels = zarr.open_array(tmp_path / "labels.zarr/0", mode="r")[...]
    image = zarr.open_array(folder / "image.zarr", mode="r")[...]
    np.testing.assert_array_equal(labels, dseeds.supervoxels(image, step=8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "--tls-cert"),
        ("--tls-ca-file ca.crt", "--tls-cert"),
        ("--tls-cert client.crt --tls-key client.key", "--tls-ca-file"),
        ("--tls-ca-file other-ca.crt --tls-cert client.crt --tls-key client.key", "do not belong together"),
        ("--tls-ca-file ca.crt --tls-cert other.crt --tls-key other.key", "do not belong together"),
        ("--tls-ca-file ca.crt --tls-cert client.crt --tls-key other.key", "cannot be used"),
        ("--tls-ca-file ca.crt --tls-cert client.crt", "cannot be used"),
        ("--tls-ca-file client.key --tls-cert client.crt --tls-key client.key", "cannot be used"),
        ("--tls-ca-file nowhere.crt --tls-cert client.crt --tls-key client.key", "nowhere.crt"),
    ],
)
def test_wrong_certificates_are_refused(refuse, scheduler, options, words):
    start = time.monotonic()
    # Typer checks that the files exist.
    refuse([words], "--scheduler", scheduler, *options.split(), code=2 if "nowhere" in options else 1)
    assert time.monotonic() - start < CONNECT_SECONDS, "it waited for the connection"


def test_a_missing_file_in_the_configuration(refuse, scheduler):
    files = {"ca-file": "nowhere.crt", "client.cert": "client.crt", "client.key": "client.key"}
    with configuration.set({f"distributed.comm.tls.{name}": file for name, file in files.items()}):
        refuse(["cannot be used"], "--scheduler", scheduler)


def test_only_one_side_uses_tls(refuse, folder, scheduler):
    refuse(["one side uses TLS"], "--scheduler", scheduler.replace("tls://", "tcp://"))
    with dask_scheduler(folder, "tcp") as plain:
        refuse(["one side uses TLS"], "--scheduler", plain.replace("tcp://", "tls://"), *OURS.split())


@pytest.mark.parametrize("address", ["", "--scheduler tcp://127.0.0.1:8786", "--scheduler 127.0.0.1:8786"])
@pytest.mark.parametrize("option", ["--tls-ca-file ca.crt", "--tls-cert client.crt", "--tls-key client.key"])
def test_certificates_are_for_tls_addresses(refuse, address, option):
    refuse(["--scheduler", "tls://"], *address.split(), *option.split(), code=2)


def listening():
    """Return the addresses on which this process and its children listen."""
    this = psutil.Process()
    return {
        connection.laddr
        for process in (this, *this.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_a_local_cluster_is_reached_from_this_machine_alone():
    before = listening()
    with connect(None, Capacity(1, 1, 1 << 30, 1), None) as client:
        began = listening() - before
        dashboard = int(client.dashboard_link.split(":")[2].split("/")[0])
    assert {address.ip for address in began} == {"127.0.0.1"}
    assert dashboard in {address.port for address in began}
    # At least the scheduler, its dashboard, a worker and its nanny.
    assert len(began) >= 4
