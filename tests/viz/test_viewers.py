"""Supervoxels in viewers: the files that are served to a browser, Neuroglancer's link, and napari's layers."""

import http.client
import json
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import nibabel
import numpy as np
import pytest
import zarr

from dseeds import cli
from dseeds.viz import viewers
from dseeds.viz.viewers import add_to_napari, has_napari, neuroglancer_link, open_layers, select_viewable
from tests.support.paths import ROOT

SHAPE = (12, 16, 20)


def multiscale(path, data, *, labels=False, attributes=None):
    """Write an OME-Zarr image of two levels."""
    group = zarr.open_group(path, mode="w")
    datasets = []
    for number, level in enumerate((data, data[::2, ::2, ::2])):
        array = group.create_array(str(number), shape=level.shape, chunks=(6, 8, 10), dtype=level.dtype)
        array[...] = level
        steps = [{"type": "scale", "scale": [3.0 * 2**number, 2.0 * 2**number, 2.0 * 2**number]}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs.put({"ome": {**ome, **({"image-label": {}} if labels else {})}, **(attributes or {})})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with labels and their image as OME-Zarr and NIfTI, and a secret file."""
    from dseeds.io import open_image

    where = tmp_path_factory.mktemp("view")
    image = np.random.default_rng(1).integers(0, 1000, SHAPE).astype("uint16")
    labels = (1 + np.arange(image.size).reshape(SHAPE) // 64).astype("uint32")
    multiscale(where / "image.zarr", image)
    record = {"source": open_image(where / "image.zarr").identity, "parameters": {"windows": [[10, 900]]}}
    multiscale(where / "labels.zarr", labels, labels=True, attributes={"dseeds": record})
    for name, data in (("labels", labels.astype("int32")), ("image", image)):
        nibabel.save(nibabel.Nifti1Image(data.T, np.diag([2.0, 2, 3, 1])), where / f"{name}.nii.gz")
    (where / "secret").write_text("secret")
    (where / "labels.zarr" / "secret").symlink_to(where / "secret")
    return where


@contextmanager
def served(*arguments):
    """Run `dseeds view`, and yield the state in its link and the process."""
    command = [sys.executable, "-m", "dseeds", "view", *map(str, arguments), "--serve"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            link = child.stdout.readline()
            assert link, child.stderr.read()
            yield parse_state(link.strip()), child
        finally:
            child.kill()


def parse_state(text):
    address, _, state = text.partition("#!")
    assert address == "https://neuroglancer-demo.appspot.com/"
    return json.loads(unquote(state))


@pytest.fixture(scope="module")
def zarrs(folder):
    with served(folder / "labels.zarr") as (state, _):
        yield state, {layer["type"]: layer["source"].partition("|")[0] for layer in state["layers"]}


def request(url, path=None, method="GET", **headers):
    """Send a request with exactly this path; other clients normalise paths."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)) as connection:
        connection.request(method, parts.path if path is None else path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()


def test_link(zarrs):
    state, urls = zarrs
    assert state["dimensions"] == {"x": [0.002, "m"], "y": [0.002, "m"], "z": [0.003, "m"]}
    assert state["position"] == [10, 8, 6]
    image, labels = state["layers"]
    assert [image["name"], labels["name"]] == ["image.zarr", "labels.zarr"]
    assert image["shaderControls"] == {"normalized": {"range": [10, 900]}}
    for layer in state["layers"]:
        assert layer["source"].endswith("/|zarr3:")
        # The path is too long to guess.
        assert len(urlsplit(layer["source"]).path.split("/")[1]) >= 20
    assert {urlsplit(url).hostname for url in urls.values()} == {"127.0.0.1"}


def test_served_arrays_are_those_stored(zarrs, folder):
    for kind, name in (("segmentation", "labels.zarr"), ("image", "image.zarr")):
        for level in "01":
            served = zarr.open_array(f"{zarrs[1][kind]}{level}", mode="r")
            assert np.array_equal(served[...], zarr.open_array(folder / name / level)[...])


def test_any_page_may_read_if_it_knows_the_path(zarrs):
    url = zarrs[1]["segmentation"] + "zarr.json"
    for method in ("GET", "HEAD", "OPTIONS"):
        status, headers, body = request(url, method=method, Origin="https://neuroglancer-demo.appspot.com")
        assert status == (204 if method == "OPTIONS" else 200)
        assert headers["access-control-allow-origin"] == headers["access-control-expose-headers"] == "*"
        assert "Range" in headers["access-control-allow-headers"]
        assert bool(body) == (method == "GET")
    status, headers, body = request(url)
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["node_type"] == "group"
    # The tag lets a browser use its cache.
    assert request(url, **{"If-None-Match": headers["etag"]})[0] == 304


@pytest.mark.parametrize(
    ("byte_range", "begin", "end"), [("0-9", 0, 10), ("5-", 5, None), ("-7", -7, None), ("3-99999999", 3, None)]
)
def test_ranges(zarrs, folder, byte_range, begin, end):
    whole = (folder / "labels.zarr" / "0" / "c" / "0" / "0" / "0").read_bytes()
    status, headers, body = request(zarrs[1]["segmentation"] + "0/c/0/0/0", Range=f"bytes={byte_range}")
    assert (status, body) == (206, whole[begin:end])
    first = whole.find(body)
    assert headers["content-range"] == f"bytes {first}-{first + len(body) - 1}/{len(whole)}"


def test_ranges_beyond_the_end(zarrs):
    assert request(zarrs[1]["segmentation"] + "0/c/0/0/0", Range="bytes=9999999-")[0] == 416


@pytest.mark.parametrize(
    "path",
    [
        "0/c/9/9/9",
        "",
        "0",
        "0/c",
        "secret",
        "../secret",
        "..%2fsecret",
        "%2e%2e/secret",
        "../../../../../../etc/passwd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "0/../../secret",
        "..\\secret",
        "%00",
    ],
)
def test_nothing_else_is_served(zarrs, path):
    url = zarrs[1]["segmentation"]
    status, headers, body = request(url, urlsplit(url).path + path)
    assert status in (400, 404)
    assert b"secret" not in body
    assert b"root:" not in body
    assert headers.get("access-control-allow-origin") == "*" or status == 400


@pytest.mark.parametrize("path", ["/", "/labels.zarr/zarr.json", "/0123456789012345678901/1-labels.zarr/zarr.json"])
def test_nothing_is_served_without_the_random_path(zarrs, path):
    assert request(zarrs[1]["image"], path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_server_is_read_only(zarrs, folder, method):
    before = (folder / "labels.zarr" / "zarr.json").read_bytes()
    assert request(zarrs[1]["segmentation"] + "zarr.json", method=method)[0] == 405
    assert (folder / "labels.zarr" / "zarr.json").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nifti_is_served_until_ctrl_c(folder, number):
    with served(folder / "labels.nii.gz", folder / "image.nii.gz") as (state, child):
        assert "position" not in state
        for layer, name in zip(state["layers"], ("image", "labels"), strict=True):
            url, *pipeline = layer["source"].split("|")
            assert pipeline == ["gzip:", "nifti:"]
            with urlopen(url, timeout=20) as answer:
                assert answer.read() == (folder / f"{name}.nii.gz").read_bytes()
            assert request(url, urlsplit(url).path + "/secret")[0] == 404
        child.send_signal(number)
        assert child.wait(20) == 0
        assert child.stderr.read() == "serving until Ctrl-C\n"


def test_port(folder, capsys):
    with served(folder / "labels.zarr") as (state, _):
        port = urlsplit(state["layers"][0]["source"]).port
        assert cli.main(["view", str(folder / "labels.zarr"), "--serve", "--port", str(port)]) == 1
    assert "in use" in capsys.readouterr().err


def test_links_lead_to_buckets_directly(folder):
    shown, missing = open_layers(folder / "labels.zarr")
    assert missing is None
    [image, _] = parse_state(neuroglancer_link(shown, {0: "s3://lab/image.zarr"}))["layers"]
    assert image["source"] == "s3://lab/image.zarr/|zarr3:"


def test_labels_that_neuroglancer_cannot_show_are_refused(tmp_path, capsys):
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, dtype="float64")
    array[...] = 1
    assert cli.main(["view", str(tmp_path / "a.zarr"), "--serve"]) == 1
    assert "Neuroglancer does not show voxels of type float64" in capsys.readouterr().err


def test_images_that_neuroglancer_cannot_show_are_left_out(folder, tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, dtype="float64")
    array[...] = 1
    shown, _ = open_layers(folder / "labels.zarr", tmp_path / "a.zarr")
    kept, [reason] = select_viewable(shown)
    assert [layer.name for layer in kept] == ["labels.zarr"]
    assert "float64" in reason


@pytest.mark.filterwarnings("ignore")
def test_napari_gets_all_levels(folder, monkeypatch):
    components = pytest.importorskip("napari.components")
    viewer = components.ViewerModel()
    shown, _ = open_layers(folder / "labels.zarr")
    add_to_napari(viewer, shown)
    image, labels = viewer.layers
    assert [image.name, labels.name] == ["image.zarr", "labels.zarr"]
    assert type(labels).__name__ == "Labels"
    assert tuple(image.contrast_limits) == (10, 900)
    for layer, name in ((image, "image.zarr"), (labels, "labels.zarr")):
        assert layer.scale.tolist() == [3, 2, 2]
        for level, array in enumerate(layer.data):
            assert np.array_equal(array.compute(), zarr.open_array(folder / name / str(level))[...])
            assert array.chunksize == (6, 8, 10)


@pytest.mark.parametrize("display", [None, ":0"])
def test_napari_needs_a_display_and_qt(monkeypatch, display):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(viewers, "find_spec", lambda name: name in ("napari", "PySide6") or None)
    assert has_napari() is bool(display)
    monkeypatch.setattr(viewers, "find_spec", lambda name: name == "napari" or None)
    assert not has_napari()
