"""Network: TLS to a cluster, and a local cluster that listens on loopback only."""

import datetime
import os
import re
import subprocess
import sys
import time
import uuid
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

import dseeds
from dseeds.parallel.cluster import Capacity, connect

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
        end = time.monotonic() + 60
        while not (found := re.search(r"Scheduler at: +(\S+)\n", log.read_text())):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield found[1]


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


def segment(folder, target, *arguments, tls=()):
    """Run `dseeds segment` with a configuration of Dask in its environment."""
    configuration = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in dict(tls).items()}
    return subprocess.run(
        [SCRIPT, "segment", "image.zarr", target, "--step", "8", "--quiet", *arguments],
        cwd=folder,
        env=os.environ | configuration,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def assert_refused(done, folder, *words):
    """Check that the error is one sentence and that no output exists."""
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (folder / "refused.zarr").exists()


@pytest.mark.parametrize(
    ("options", "tls"),
    [(OURS, {}), ("--tls-ca-file ca.crt --tls-cert joined.pem", {}), ("", CONFIGURED)],
)
def test_a_run_over_tls_gives_the_labels(folder, scheduler, tmp_path, options, tls):
    assert scheduler.startswith("tls://")
    done = segment(folder, tmp_path / "labels.zarr", "--scheduler", scheduler, *options.split(), tls=tls)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
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
def test_who_has_not_the_right_certificates_is_refused(folder, scheduler, options, words):
    start = time.monotonic()
    done = segment(folder, "refused.zarr", "--scheduler", scheduler, *options.split())
    assert_refused(done, folder, words)
    # It fails at once, without waiting for the connection timeout.
    assert time.monotonic() - start < 15


def test_a_file_that_the_configuration_names_in_vain(folder, scheduler):
    done = segment(folder, "refused.zarr", "--scheduler", scheduler, tls=CONFIGURED | {"CA_FILE": "nowhere.crt"})
    assert_refused(done, folder, "cannot be used")


def test_only_one_side_uses_tls(folder, scheduler):
    done = segment(folder, "refused.zarr", "--scheduler", scheduler.replace("tls://", "tcp://"))
    assert_refused(done, folder, "one side uses TLS")
    with dask_scheduler(folder, "tcp") as plain:
        done = segment(folder, "refused.zarr", "--scheduler", plain.replace("tcp://", "tls://"), *OURS.split())
    assert_refused(done, folder, "one side uses TLS")


@pytest.mark.parametrize("scheduler", ["", "--scheduler tcp://127.0.0.1:8786", "--scheduler 127.0.0.1:8786"])
@pytest.mark.parametrize("option", ["--tls-ca-file ca.crt", "--tls-cert client.crt", "--tls-key client.key"])
def test_certificates_are_for_tls_addresses(folder, scheduler, option):
    done = segment(folder, "refused.zarr", *scheduler.split(), *option.split())
    assert_refused(done, folder, "--scheduler", "tls://")
    assert done.returncode == 2


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
