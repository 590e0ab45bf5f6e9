"""The phantom: reproducible voxels, its files, and overwriting."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
import zarr

import dseeds.phantom
from dseeds.phantom import PHANTOM_MARKER, phantom, write_phantom
from dseeds.phantom.anatomy import AIR, BONE, MUSCLE, ORGANS, TISSUES, VESSEL


def read(target):
    group = zarr.open_group(target, mode="r")
    return group["0"][:], group["labels/organs/0"][:]


def labels_of(organs):
    return [*TISSUES, *((name, intensity, texture) for name, _, _, intensity, texture in ORGANS[:organs])]


@pytest.mark.parametrize(
    ("shape", "chunk", "shard"),
    [
        ((1, 1, 1), 64, 256),
        ((37, 50, 41), 64, 256),
        ((37, 50, 41), 16, 32),
        ((37, 50, 41), (5, 17, 41), 20),
        ((65, 1, 33), (64, 8, 7), 8),
        ((3, 129, 40), (1, 64, 13), 64),
    ],
)
def test_chunks_and_shards_do_not_change_voxels(tmp_path, monkeypatch, shape, chunk, shard):
    monkeypatch.setattr(dseeds.phantom, "PHANTOM_SHARD", shard)
    options = {"shape": shape, "spacing": (2.0, 1.0, 1.5), "seed": 7}
    write_phantom(tmp_path / "p.zarr", chunk=chunk, threads=3, **options)
    for written, made in zip(read(tmp_path / "p.zarr"), phantom(**options, threads=1), strict=True):
        assert written.dtype == made.dtype
        np.testing.assert_array_equal(written, made)


def test_voxels_are_the_same_on_every_machine():
    image, truth = phantom((40, 48, 56), spacing=(2.0, 1.0, 1.0), seed=3)
    digest = hashlib.sha256(image.astype("<u2").tobytes() + truth.tobytes()).hexdigest()
    # Change this only together with VERSION.
    assert (dseeds.phantom.VERSION, digest[:16]) == (1, "ba0d252d9fcd650f")


def test_the_seed_determines_the_body():
    shape = (24, 24, 24)
    first, second = phantom(shape, seed=1), phantom(shape, seed=2)
    assert (first[1] != second[1]).any()
    for one, other in zip(first, phantom(shape, seed=1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_thick_slices_are_samples_of_the_same_body():
    fine = phantom((96, 40, 48), spacing=(1.0, 2.0, 2.0), noise=0)
    thick = phantom((32, 40, 48), spacing=(3.0, 2.0, 2.0), noise=0)
    for one, other in zip(fine, thick, strict=True):
        np.testing.assert_array_equal(one[1::3], other)


def test_only_proportions_of_spacing_matter():
    millimetres = phantom((20, 30, 30), spacing=(2.0, 0.5, 0.5))
    micrometres = phantom((20, 30, 30), spacing=(2.0 / 1024, 0.5 / 1024, 0.5 / 1024))
    np.testing.assert_array_equal(millimetres[0], micrometres[0])


@pytest.mark.parametrize("shape", [(96, 96, 96), (4, 96, 96), (300, 40, 40), (1, 1, 500)])
def test_intensities_match_the_truth(shape):
    image, truth = phantom(shape, noise=0, organs=10)
    for label, (name, intensity, texture) in enumerate(labels_of(10)):
        values = image[truth == label].astype(int)
        assert (abs(values - intensity) <= texture + 1).all(), name


def test_all_tissues_are_present():
    _, truth = phantom((128, 128, 128), organs=40)
    counts = np.bincount(truth.ravel(), minlength=50)
    assert (counts[: VESSEL + 1] > 50).all()
    assert (counts[VESSEL + 1 :] > 50).sum() >= 36
    assert (truth[[0, -1]] == AIR).all()
    assert 0.35 < (truth != AIR).mean() < 0.55


def test_noise_has_the_requested_deviation():
    clean, truth = phantom((64, 64, 64), noise=0)
    noisy, _ = phantom((64, 64, 64), noise=50)
    noise = (noisy.astype(int) - clean)[truth != AIR]
    assert abs(noise.mean()) < 1
    assert noise.std() == pytest.approx(50, rel=0.02)
    # The noise of neighbouring voxels is independent.
    plane = noisy.astype(float) - clean
    plane = plane[:, 20:44, 20:44]
    assert abs(np.corrcoef(plane[:, :, 1:].ravel(), plane[:, :, :-1].ravel())[0, 1]) < 0.03


def test_dtypes_hold_the_same_intensities():
    shape = (20, 24, 24)
    image, _ = phantom(shape)
    assert image.max() > 2000
    np.testing.assert_array_equal(phantom(shape, dtype="float32")[0], image.astype(np.float32))
    np.testing.assert_array_equal(phantom(shape, dtype=np.int16)[0], image.astype(int) - 1024)
    np.testing.assert_array_equal(phantom(shape, dtype="uint8")[0], image // 16)


def test_number_of_organs():
    none, few, many = (phantom((48, 48, 48), organs=n)[1] for n in (0, 3, 300))
    assert none.max() <= VESSEL
    assert few.max() == VESSEL + 3
    assert many.dtype == np.uint16
    assert many.max() > 255
    assert (none == BONE).sum() > 0
    assert (none == MUSCLE).sum() > 0


def test_the_output_is_an_ome_zarr_image(tmp_path):
    target = tmp_path / "deep" / "p.zarr"
    seen = []
    spacing = (2.5, 0.75, 0.75)
    write_phantom(
        target,
        shape=(300, 70, 20),
        spacing=spacing,
        organs=12,
        progress=lambda done, total: seen.append((done, total)),
    )
    group = zarr.open_group(target, mode="r")
    image, truth = group["0"], group["labels/organs/0"]
    assert image.metadata.zarr_format == 3
    assert image.shape == truth.shape == (300, 70, 20)
    assert image.chunks == truth.chunks == (64, 64, 20)
    assert image.shards == truth.shards == (256, 128, 20)
    assert image.metadata.dimension_names == ("z", "y", "x")
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert group["labels"].attrs["ome"] == {"version": "0.5", "labels": ["organs"]}
    for attributes in (group.attrs["ome"], group["labels/organs"].attrs["ome"]):
        assert attributes["version"] == "0.5"
        (multiscale,) = attributes["multiscales"]
        assert [(a["name"], a["type"], a["unit"]) for a in multiscale["axes"]] == [
            (axis, "space", "millimeter") for axis in "zyx"
        ]
        assert multiscale["datasets"] == [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(spacing)}]}
        ]
    about = group["labels/organs"].attrs["ome"]["image-label"]
    assert about["source"] == {"image": "../../"}
    assert "colors" not in about
    assert about["properties"][VESSEL + 1] == {"label-value": VESSEL + 1, "name": "right lung"}
    assert len(about["properties"]) == len(TISSUES) + 12
    assert group.attrs["dseeds"]["phantom"]["organs"] == 12
    assert not (target / PHANTOM_MARKER).exists()


def test_attributes_reproduce_the_phantom(tmp_path):
    write_phantom(tmp_path / "p.zarr", shape=(12, 20, 16), dtype="int16", seed=11, noise=3.5, organs=20)
    parameters = zarr.open_group(tmp_path / "p.zarr", mode="r").attrs["dseeds"]["phantom"]
    assert parameters.pop("version") == dseeds.phantom.VERSION
    for one, other in zip(read(tmp_path / "p.zarr"), phantom(**parameters), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "bad",
    [
        {"shape": (8, 8)},
        {"shape": (8, 0, 8)},
        {"shape": (8, 8, 8.5)},
        {"shape": 8},
        {"spacing": (1, 1)},
        {"spacing": (1, 0, 1)},
        {"spacing": (1, float("nan"), 1)},
        {"spacing": 2},
        {"noise": -1},
        {"noise": float("nan")},
        {"dtype": "float64"},
        {"dtype": "voxels"},
        {"organs": -1},
        {"organs": 1001},
        {"seed": -1},
        {"chunk": 0},
        {"chunk": (64, 64)},
        {"threads": 0},
    ],
)
def test_bad_parameters_change_no_files(tmp_path, bad):
    target = tmp_path / "p.zarr"
    write_phantom(target, shape=(8, 8, 8))
    before = read(target)
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be .*[.]$"):
        write_phantom(target, overwrite=True, **{"shape": (4, 4, 4)} | bad)
    np.testing.assert_array_equal(read(target)[0], before[0])


def test_a_url_is_refused():
    with pytest.raises(ValueError, match="local path"):
        write_phantom("s3://bucket/p.zarr", shape=(8, 8, 8))


def test_a_phantom_is_overwritten_on_request(tmp_path):
    target = tmp_path / "p.zarr"
    write_phantom(target, shape=(8, 8, 8))
    with pytest.raises(FileExistsError, match="exists"):
        write_phantom(target, shape=(4, 5, 6))
    assert read(target)[0].shape == (8, 8, 8)
    write_phantom(target, shape=(4, 5, 6), overwrite=True)
    assert read(target)[0].shape == (4, 5, 6)


def test_an_unfinished_phantom_is_overwritten(tmp_path):
    target = tmp_path / "p.zarr"
    target.mkdir()
    (target / PHANTOM_MARKER).write_text("{}")
    (target / "0").mkdir()
    with pytest.raises(FileExistsError):
        write_phantom(target, shape=(4, 5, 6))
    write_phantom(target, shape=(4, 5, 6), overwrite=True)
    assert read(target)[0].shape == (4, 5, 6)


def make_file(target):
    target.write_text("mine")


def make_empty_directory(target):
    target.mkdir()


def make_other_zarr(target):
    zarr.create_group(target).attrs["ome"] = {"version": "0.5"}


def make_other_dseeds_zarr(target):
    zarr.create_group(target).attrs["dseeds"] = {"segment": {}}


def make_broken_zarr(target):
    target.mkdir()
    (target / "zarr.json").write_text(json.dumps([1]))


def make_phantom_with_labels_of_mine(target):
    write_phantom(target, shape=(4, 4, 4))
    zarr.open_group(target, mode="a").create_group("labels/supervoxels")


def make_phantom_with_a_file_of_mine(target):
    write_phantom(target, shape=(4, 4, 4))
    (target / "notes.txt").write_text("mine")


def make_link_to_a_phantom(target):
    write_phantom(target.parent / "real.zarr", shape=(4, 4, 4))
    target.symlink_to(target.parent / "real.zarr")


def make_dangling_link(target):
    target.symlink_to(target.parent / "nowhere")


@pytest.mark.parametrize(
    "make",
    [
        make_file,
        make_empty_directory,
        make_other_zarr,
        make_other_dseeds_zarr,
        make_broken_zarr,
        make_phantom_with_labels_of_mine,
        make_phantom_with_a_file_of_mine,
        make_link_to_a_phantom,
        make_dangling_link,
    ],
)
def test_nothing_else_is_overwritten(tmp_path, make):
    make(tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="was not written by dseeds as a phantom"):
        write_phantom(tmp_path / "mine", shape=(8, 8, 8), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_call_leaves_no_files(tmp_path, monkeypatch, error):
    monkeypatch.setattr(dseeds.phantom, "PHANTOM_SHARD", 16)
    target = tmp_path / "p.zarr"

    def stop(done, total):
        assert (target / PHANTOM_MARKER).exists()
        assert "ome" not in zarr.open_group(target, mode="r").attrs
        if done == 3:
            raise error

    with pytest.raises(error):
        write_phantom(target, shape=(32, 64, 64), chunk=16, threads=2, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_task_leaves_no_files(tmp_path, monkeypatch):
    def render(recipe, body, box):
        raise OSError("No space left on device")

    monkeypatch.setattr(dseeds.phantom, "_render", render)
    with pytest.raises(OSError, match="No space"):
        write_phantom(tmp_path / "p.zarr", shape=(8, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_memory_is_that_of_a_few_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(dseeds.phantom, "PHANTOM_SHARD", 64)
    shape = (64, 128, 1024)
    write_phantom(tmp_path / "warm.zarr", shape=(64, 64, 64), threads=2)
    tracemalloc.start()
    try:
        write_phantom(tmp_path / "p.zarr", shape=shape, threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Image and truth take 24 MiB for the volume, and 0.75 MiB for a shard.
    assert peak < 12 * 2**20
