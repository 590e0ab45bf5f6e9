"""Mutated files: each is refused in one sentence, or read as nibabel, zarr or pydicom read it."""

import math
import sys

import nibabel
import numpy as np
import pytest
import zarr

from dseeds import cli
from dseeds.io import open_source
from tests.support.dicom_mutants import by_pydicom, files_of, mutant_dicom, write_sound_dicom
from tests.support.mutants import (
    BATCH,
    BATCHES,
    HEADER_BYTES,
    READABLE,
    assert_sentence,
    examine,
    examine_header,
    files_below,
    mutant_header,
    mutant_nifti,
    mutant_zarr,
    sound_array,
    sound_header_files,
    sound_image,
    watched,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does it")
HEADERS = 1000  # of each format
SAMPLE = 20  # on the command line


def by_nibabel(path, _source):
    voxels = nibabel.load(path).dataobj
    # Later volumes of a series may be truncated.
    return np.asanyarray(voxels[(..., *(0,) * (voxels.ndim - 3))] if voxels.ndim > 3 else voxels).T


@pytest.mark.parametrize("seed", range(BATCHES))
def test_mutated_nifti(tmp_path, seed):
    opened = 0
    with watched():
        for number in range(BATCH):
            folder = tmp_path / str(number)
            folder.mkdir()
            rng = np.random.default_rng([seed, number])
            path = mutant_nifti(rng, folder)
            opened += examine(path, rng.choice([None, 0, 0, 0]), by_nibabel)
    assert 0.1 * BATCH < opened < 0.9 * BATCH


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Valid images as {path: content}."""
    folder = tmp_path_factory.mktemp("sound")
    for zarr_format in (2, 3):
        sound_array(folder / f"array-{zarr_format}", zarr_format)
        sound_image(folder / f"image-{zarr_format}", zarr_format)
    sound_array(folder / "sharded", 3, shards=(6, 8, 8))
    return [files_below(path) for path in sorted(folder.iterdir())]


def by_zarr(path, source):
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Group):
        ome = node.attrs.get("ome", node.attrs)
        node = node[str(ome["multiscales"][0]["datasets"][0]["path"])]
    assert all(axis in (0, slice(None)) for axis in source.index)
    return node[source.index]


def examine_folders(tmp_path, seed, mutate, sound, reader):
    """Examine a batch of mutants, each in a folder of its own; some are opened, and some refused."""
    opened = 0
    with watched():
        for number in range(BATCH):
            folder = tmp_path / str(number)
            folder.mkdir()
            rng = np.random.default_rng([seed, number])
            path = mutate(rng, folder, sound)
            opened += examine(path, rng.choice([None, 0, 0, 0]), reader)
    assert 0.1 * BATCH < opened < 0.9 * BATCH


@pytest.mark.parametrize("seed", range(BATCHES))
def test_mutated_zarr(tmp_path, sound, seed):
    examine_folders(tmp_path, seed, mutant_zarr, sound, by_zarr)


@pytest.fixture(scope="module")
def sound_dicom(tmp_path_factory):
    """Valid files and folders of DICOM, each as {name: content}."""
    folder = tmp_path_factory.mktemp("dicom")
    write_sound_dicom(folder)
    return [files_of(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("seed", range(BATCHES))
def test_mutated_dicom(tmp_path, sound_dicom, seed):
    examine_folders(tmp_path, seed, mutant_dicom, sound_dicom, by_pydicom)


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    return sound_header_files(tmp_path_factory.mktemp("headers"))


@pytest.mark.parametrize("ending", HEADER_BYTES)
def test_mutated_headers(tmp_path, headers, ending):
    opened = 0
    with watched():
        for number in range(HEADERS):
            path = mutant_header(np.random.default_rng([7, number]), tmp_path, ending, headers)
            opened += examine_header(path)
    assert 0.05 * HEADERS < opened < 0.95 * HEADERS


def small(path):
    """Return whether a file is refused, or small enough to segment quickly."""
    try:
        return math.prod(open_source(path, volume=0).shape) <= READABLE
    except (ValueError, TypeError, OSError):
        return True


def assert_good_end(code, out, err, folder, before):
    """Check that a command either succeeded, or printed one sentence and wrote nothing."""
    if code == 0:
        assert err == ""
    else:
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert_sentence(err.strip())
        assert files_below(folder) == before


@pytest.mark.filterwarnings("ignore:Extension size", "ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("make", ["nifti", "zarr"])
def test_mutants_on_the_command_line(tmp_path, capsys, sound, make):
    codes = []
    for number in range(SAMPLE):
        rng = np.random.default_rng([BATCHES, number])
        folder = tmp_path / str(number)
        (folder / "image").mkdir(parents=True)
        path = mutant_nifti(rng, folder / "image") if make == "nifti" else mutant_zarr(rng, folder / "image", sound)
        before = files_below(folder)
        assert_good_end(cli.main(["info", str(path), "--volume", "0"]), *capsys.readouterr(), folder, before)
        if not small(path):
            continue
        target = folder / ("labels.nii.gz" if make == "nifti" and rng.random() < 0.5 else "labels.zarr")
        codes.append(cli.main(["segment", str(path), str(target), "--step", "4", "--volume", "0", "--quiet"]))
        assert_good_end(codes[-1], *capsys.readouterr(), folder, before)
        assert target.exists() == (codes[-1] == 0)
    assert len(codes) >= SAMPLE * 3 // 4
    assert set(codes) == {0, 1}
