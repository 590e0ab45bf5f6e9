"""OME-Zarr in and out, against other packages that write, validate and read it."""

import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models import v04, v05

import dseeds
from dseeds.cli import main
from dseeds.convert.describe import describe
from dseeds.engine import batch, publishing
from dseeds.engine.job_array import Share
from dseeds.io import open_image, open_source
from dseeds.io.label_listing import list_labels
from tests.support.runs import when

with warnings.catch_warnings():
    # It calls its own deprecated functions.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ome_zarr.writer import write_labels, write_multiscale

FORMATS = {"0.4": FormatV04(), "0.5": FormatV05()}
PER_MM = {"micrometer": 1000, "millimeter": 1, "nanometer": 1000000, "centimeter": 0.1}


@pytest.fixture
def version():
    """The version of an image's OME-Zarr, for tests that do not take several."""
    return "0.5"


both_versions = pytest.mark.parametrize("version", ["0.4", "0.5"])


@pytest.fixture
def ct(ct_3mm, tmp_path, version):
    """A CT written by ome-zarr, in three levels, in micrometres, not at the origin; and its voxels."""
    image = ct_3mm[0][:64, :60, :71]
    return write(tmp_path / "ct.zarr", image, "zyx", version, translation=[5.0, -30.0, 7.5]), image


def write(path, image, axes, version="0.5", scale=3000.0, translation=None, unit="micrometer"):
    """Have ome-zarr write an image in three levels."""
    pyramid = [image[tuple(slice(None, None, f if a in "zyx" else 1) for a in axes)] for f in (1, 2, 4)]
    steps = []
    for factor in (1, 2, 4):
        along = [scale * factor if axis in "zyx" else 1.0 for axis in axes]
        steps.append([{"type": "scale", "scale": along}])
        if translation:
            steps[-1].append({"type": "translation", "translation": translation})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": a, "type": kinds[a]} if a in kinds else {"name": a, "type": "space", "unit": unit} for a in axes]
    with warnings.catch_warnings():
        # Otherwise it derives translations that ignore the first voxel's.
        warnings.simplefilter("ignore", DeprecationWarning)
        write_multiscale(
            pyramid,
            zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3),
            axes=named,
            coordinate_transformations=steps,
            fmt=FORMATS[version],
        )
    return path


def paths(path):
    """Return the paths of an image's arrays in its group."""
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    return [dataset["path"] for dataset in attributes.get("ome", attributes)["multiscales"][0]["datasets"]]


def whole(source):
    return source.read((slice(None),) * 3)


# Images in


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_levels_that_ome_zarr_writes(tmp_path, version, level):
    image = np.arange(2 * 3 * 8 * 9 * 10, dtype=np.uint16).reshape(2, 3, 8, 9, 10)
    path = write(tmp_path / "a.zarr", image, "tczyx", version, translation=[0, 0, 1.0, 2.0, 3.0])
    expected = image[1, :, :: 2**level, :: 2**level, :: 2**level]
    name, group = paths(path)[level], zarr.open_group(path, mode="r")
    for source, which in ((path, {"level": level}), (group, {"level": level}), (path / name, {}), (group[name], {})):
        result = open_image(source, volume=1, channel_axis="c", **which)
        np.testing.assert_array_equal(result.read((slice(None),) * 3), expected)
        assert result.spacing == (3.0 * 2**level,) * 3
        assert result.frame.translation == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="has no level 3: it has 3"):
        open_image(path, volume=0, channel_axis="c", level=3)
    with pytest.raises(ValueError, match="is level 1 of an image: leave out level"):
        open_image(path / paths(path)[1], volume=0, channel_axis="c", level=2)


@st.composite
def images(draw):
    """Draw metadata: axes in any order, units, transformations of the level and of the whole image."""
    space = draw(st.permutations(draw(st.sampled_from(["zyx", "yx"]))))
    axes = [*draw(st.sampled_from([[], ["t"], ["t", "c"], ["c"]])), *space]
    number = st.sampled_from([0.25, 0.5, 1.0, 3.0])
    steps = [
        [
            {"type": "scale", "scale": [draw(number) for _ in axes]},
            {"type": "translation", "translation": [draw(number) for _ in axes]},
        ][: draw(st.integers(1, 2))]
        for _ in range(draw(st.integers(1, 2)))
    ]
    shape = [draw(st.integers(2, 4)) if axis in "zyx" else 1 for axis in axes]
    return axes, steps, shape, draw(st.sampled_from(sorted(PER_MM))), draw(st.sampled_from(["0.4", "0.5"]))


@given(images(), st.integers(0, 1), st.booleans())
@settings(max_examples=15)
def test_axes_come_in_any_order(tmp_path_factory, image, level, by_path):
    axes, steps, shape, unit, version = image
    path = tmp_path_factory.mktemp("image") / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    datasets = [{"path": "0"}, {"path": "1"}]
    datasets[level]["coordinateTransformations"] = steps[0]
    for dataset in datasets:
        held = values if dataset is datasets[level] else np.zeros_like(values)
        group.create_array(dataset["path"], data=held, chunks=tuple(1 + n // 2 for n in shape))
    multiscale = {
        "axes": [
            {"name": a, "type": {"t": "time", "c": "channel"}.get(a, "space"), **({"unit": unit} if a in "zyx" else {})}
            for a in axes
        ],
        "datasets": datasets,
        **({"coordinateTransformations": steps[1]} if len(steps) > 1 else {}),
    }
    group.attrs.update({"multiscales": [multiscale]} if version == "0.4" else {"ome": {"multiscales": [multiscale]}})
    source = open_source(path / str(level)) if by_path else open_source(path, level=level)
    # The position of an array's point as the specification defines it.
    corner, apart = np.zeros(len(axes)), np.ones(len(axes))
    for step in itertools.chain.from_iterable(steps):
        apart = apart * step["scale"] if "scale" in step else apart
        corner = corner * step["scale"] if "scale" in step else corner + step["translation"]
    space = [axes.index(axis) for axis in "zyx" if axis in axes]
    expected = values.transpose([*(n for n in range(len(axes)) if n not in space), *space])
    expected = expected.reshape([1] * (3 - len(space)) + [shape[n] for n in space])
    np.testing.assert_array_equal(whole(source), expected)
    assert source.shape == expected.shape
    assert source.chunks == (1,) * (3 - len(space)) + tuple(1 + shape[n] // 2 for n in space)
    box = tuple(slice(n // 2, n) for n in source.shape)
    np.testing.assert_array_equal(source.read(box), expected[box])
    assert source.spacing[-len(space) :] == pytest.approx([apart[n] / PER_MM[unit] for n in space])
    assert source.frame.translation[-len(space) :] == pytest.approx([corner[n] for n in space])
    assert source.frame.units == (unit,) * 3


def test_arrays_without_levels_have_no_level_1(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((4, 4, 4), np.uint8))
    for source in (np.zeros((4, 4, 4), np.uint8), tmp_path / "a.zarr"):
        assert open_source(source, level=0).shape == (4, 4, 4)
        with pytest.raises(ValueError, match="leave out level"):
            open_source(source, level=1)


def test_info_tells_of_levels(ct):
    result = describe(ct[0], level=1)
    assert result["shape"] == [32, 30, 36]
    assert (result["level"], result["levels"], result["translation"]) == (1, 3, [5.0, -30.0, 7.5])
    assert result["units"] == ["micrometer"] * 3


# Labels out


def blocks_of(labels, factors):
    """Return the most frequent label of each block, the smallest of several."""
    out = np.empty([-(-n // f) for n, f in zip(labels.shape, factors, strict=True)], labels.dtype)
    for place in np.ndindex(*out.shape):
        block = labels[tuple(slice(i * f, i * f + f) for i, f in zip(place, factors, strict=True))]
        result, counts = np.unique(block, return_counts=True)
        out[place] = result[np.argmax(counts)]
    return out


def ome(group):
    """Return the metadata of OME-Zarr of a group, which is in one version of Zarr only."""
    names = {path.name for path in Path(group.store.root, group.path).iterdir()}
    one, other = {".zattrs", ".zgroup", ".zarray"}, {"zarr.json"}
    assert not names & (other if group.metadata.zarr_format == 2 else one)
    attributes = {name: value for name, value in group.attrs.items() if name != "dseeds"}
    return attributes.get("ome", attributes)


def placed(group, level):
    """Return the scale and the translation of a level of labels."""
    steps = ome(group)["multiscales"][0]["datasets"][level]["coordinateTransformations"]
    assert [step["type"] for step in steps] == ["scale", "translation"][: len(steps)]
    return steps[0]["scale"], steps[1]["translation"] if len(steps) > 1 else [0.0] * 3


def listed(path):
    return ome(zarr.open_group(path, mode="r").get("labels"))["labels"] if has_list(path) else []


def has_list(path):
    return any((path / "labels" / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))


def validated(path):
    """Validate an image and all its labels with ome-zarr-models."""
    group = zarr.open_group(path, mode="r")
    models = v04 if group.metadata.zarr_format == 2 else v05
    models.Image.from_zarr(group)
    models.Labels.from_zarr(zarr.open_group(path / "labels", mode="r"))
    for name in listed(path):
        models.ImageLabel.from_zarr(zarr.open_group(path / "labels" / name, mode="r"))


@both_versions
def test_labels_go_into_their_image(ct, client):
    path, image = ct
    report = dseeds.segment(path, into_image=True, step=8, region=32, levels=1, client=client)
    assert report.target == str(path / "labels" / "supervoxels")
    group = zarr.open_group(report.target, mode="r")
    np.testing.assert_array_equal(group["0"][:], dseeds.supervoxels(image, step=8))
    for prefix, depth in (("", 2), ("2x/", 3)):
        inner = group[prefix] if prefix else group
        assert ome(inner)["image-label"]["source"]["image"] == "../" * depth
        for level in (1, 2):
            before, labels = group[f"{prefix}{level - 1}"][:], group[f"{prefix}{level}"]
            np.testing.assert_array_equal(labels[:], blocks_of(before, (2, 2, 2)))
            assert labels.shape == zarr.open_group(path, mode="r")[paths(path)[level]].shape
            scale, translation = placed(inner, level)
            assert scale == [3000.0 * 2**level] * 3
            # The centre of a block.
            assert translation == [c + 3000 * (2**level - 1) / 2 for c in (5.0, -30.0, 7.5)]
    assert listed(path) == ["supervoxels"]
    validated(path)
    # Labels of a coarser level of the image, beside them.
    dseeds.segment(path, into_image="half", level=1, step=8, pyramid="nearest", client=client)
    half = zarr.open_group(path / "labels" / "half", mode="r")
    np.testing.assert_array_equal(half["0"][:], dseeds.supervoxels(image[::2, ::2, ::2], step=8))
    np.testing.assert_array_equal(half["1"][:], half["0"][::2, ::2, ::2])
    # As many levels as the image has, as OME-NGFF requires.
    assert [half[level].shape for level in "012"] == [(32, 30, 36), (16, 15, 18), (8, 8, 9)]
    assert placed(half, 0) == ([6000.0] * 3, [5.0, -30.0, 7.5])
    assert placed(half, 1) == ([12000.0] * 3, [5.0, -30.0, 7.5])
    assert listed(path) == ["supervoxels", "half"]
    validated(path)
    seen_by_ome_zarr(path)
    seen_by_napari(path)


def seen_by_ome_zarr(path):
    nodes = list(Reader(parse_url(str(path)))())
    result = {Path(node.zarr.path).name: [level.shape for level in node.data] for node in nodes if node.data}
    assert result["supervoxels"] == [(64, 60, 71), (32, 30, 36), (16, 15, 18)]
    assert result["half"] == [(32, 30, 36), (16, 15, 18), (8, 8, 9)]


NAPARI = """
import json, sys
from napari_ome_zarr._reader import napari_get_reader
layers = napari_get_reader(sys.argv[1])(sys.argv[1])
print()
print(json.dumps([[kind, [one.shape for one in data], told["scale"], told["units"]] for data, told, kind in layers]))
"""


def seen_by_napari(path):
    # In a process of its own because its imports warn.
    command = [sys.executable, "-W", "ignore", "-c", NAPARI, str(path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout
    shapes, units = [[64, 60, 71], [32, 30, 36], [16, 15, 18], [8, 8, 9]], ["micrometer"] * 3
    assert json.loads(printed.splitlines()[-1]) == [
        ["image", shapes[:3], [3000.0] * 3, units],
        ["labels", shapes[:3], [3000.0] * 3, units],
        ["labels", shapes[1:], [6000.0] * 3, units],
    ]


def test_labels_of_their_own_have_a_pyramid_too(tmp_path, client, ct_3mm):
    """Without levels of an image they are halved until they are small."""
    image = np.tile(ct_3mm[0][:16, :16, :64], (1, 1, 9))
    zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(16, 16, 64))
    target = tmp_path / "labels.zarr"
    planned = dseeds.plan(tmp_path / "a.zarr", target, step=16, spacing=(1, 1, 1), client=client, calibrate=False)
    report = dseeds.segment(tmp_path / "a.zarr", target, step=16, spacing=(1, 1, 1), client=client)
    group = zarr.open_group(target, mode="r")
    assert [group[str(level)].shape for level in range(3)] == [(16, 16, 576), (16, 16, 288), (16, 16, 144)]
    np.testing.assert_array_equal(group["1"][:], blocks_of(group["0"][:], (1, 1, 2)))
    assert placed(group, 2) == ([1.0, 1.0, 4.0], [0.0, 0.0, 1.5])
    v05.ImageLabel.from_zarr(group)
    assert report.stages[-1].name == planned.stages[-1].name == "pyramid"
    assert report.stages[-1].tasks == planned.stages[-1].tasks
    assert report.stages[-1].written == planned.stages[-1].written
    dseeds.segment(tmp_path / "a.zarr", target, step=16, pyramid="none", client=client, overwrite=True)
    assert [name for name, _ in zarr.open_group(target, mode="r").arrays()] == ["0"]
    with pytest.raises(ValueError, match="pyramid must be one of mode, nearest, none"):
        dseeds.plan(image, target, step=16, pyramid="mean", client=client, overwrite=True)


@both_versions
def test_others_labels_stay(ct, client, version):
    path, image = ct
    theirs = (image > 0).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        write_labels(theirs, zarr.open_group(path, mode="r+"), name="organs", axes="zyx", fmt=FORMATS[version])
    before = {file: file.read_bytes() for file in (path / "labels" / "organs").rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match="was not written by dseeds"):
        dseeds.segment(path, into_image="organs", step=16, client=client, overwrite=True)
    dseeds.segment(path, into_image=True, step=16, client=client)
    with pytest.raises(FileExistsError, match="--overwrite"):
        dseeds.segment(path, into_image=True, step=16, client=client)
    dseeds.segment(path, into_image=True, step=8, client=client, overwrite=True)
    assert sorted(listed(path)) == ["organs", "supervoxels"]
    assert all(file.read_bytes() == content for file, content in before.items())
    # Theirs have more levels than the image.
    models = v04 if version == "0.4" else v05
    models.ImageLabel.from_zarr(zarr.open_group(path / "labels" / "supervoxels", mode="r"))
    with pytest.raises(ValueError, match="as many levels as it has"):
        dseeds.segment(path, into_image="none", step=16, pyramid="none", client=client)


def test_labels_of_others_that_come_meanwhile_stay_listed(ct, client):
    path = ct[0]

    def appear():
        (path / "labels" / "supervoxels").mkdir()
        (path / "labels" / "supervoxels" / "theirs").touch()
        list_labels(str(path / "labels" / "supervoxels"))

    progress = when("begin", "quantise", None, appear)
    with pytest.raises(FileExistsError, match="was not written by dseeds"):
        dseeds.segment(path, into_image=True, step=16, client=client, progress=progress)
    assert progress.happened
    assert listed(path) == ["supervoxels"]


def test_labels_lie_upon_their_image_whatever_the_spacing(ct, client):
    path = ct[0]
    dseeds.segment(path, into_image=True, step="90mm", spacing=(5, 5, 5), client=client)
    labels = zarr.open_group(path / "labels" / "supervoxels", mode="r")
    assert placed(labels, 0) == ([3000.0] * 3, [5.0, -30.0, 7.5])


class Stop(Exception):
    pass


@pytest.fixture
def stopped(monkeypatch):
    """Run until a function of `publishing` is called, and no further."""

    def stop(*_arguments):
        raise Stop

    def run(what, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(publishing, what, stop)
            with pytest.raises(Stop):
                dseeds.segment(*arguments, **options)

    return run


@both_versions
def test_labels_that_are_not_whole_are_not_listed(ct, client, stopped):
    path, requested = ct[0], {"into_image": True, "client": client}
    stopped("publish_labels", path, step=16, **requested)
    assert not has_list(path)
    # A resumed run writes the list that an interrupted one did not.
    stopped("list_labels", path, step=16, resume=True, **requested)
    assert not has_list(path)
    report = dseeds.segment(path, step=16, resume=True, **requested)
    assert listed(path) == ["supervoxels"]
    # Labels that are being replaced are not listed.
    stopped("publish_labels", path, step=8, overwrite=True, **requested)
    assert listed(path) == []
    list_labels(report.target)
    assert listed(path) == ["supervoxels"]


@both_versions
def test_batch_jobs_write_the_same_into_the_image(ct, client, capsys):
    path, _ = ct
    dseeds.segment(path, into_image="dask", step=16, region=32, client=client)
    assert main(["init", str(path), "--into-image", "--label-name", "jobs", "--step", "16", "--region", "32"]) == 0
    plan = capsys.readouterr().out.strip()
    run = batch.open_batch_run(plan)
    batch.run_step(run, Share(0, 1), wait=True)
    batch.finalize_run(run)
    assert listed(path) == ["dask", "jobs"]
    dask, jobs = (zarr.open_group(path / "labels" / name, mode="r") for name in ("dask", "jobs"))
    for level in ("0", "1", "2"):
        np.testing.assert_array_equal(dask[level][:], jobs[level][:])
    assert ome(dask) == ome(jobs)


@pytest.mark.parametrize(
    ("axes", "version", "message"),
    [("zyx", "0.3", "version 0.3 or before"), ("xyz", "0.5", "need z, y and x in this order"), ("yx", "0.5", "need z")],
)
def test_images_that_no_labels_fit_into(tmp_path, client, axes, version, message):
    path = write(tmp_path / "a.zarr", np.zeros((20, 20, 20)[: len(axes)], np.uint8), axes, max(version, "0.4"))
    if version == "0.3":
        group = zarr.open_group(path)
        group.attrs["multiscales"] = [{**group.attrs["multiscales"][0], "axes": list(axes)}]
    with pytest.raises(ValueError, match=message):
        dseeds.segment(path, into_image=True, step=16, client=client)
    assert not (path / "labels").exists()
    # They can be written elsewhere.
    dseeds.segment(path, tmp_path / "labels.zarr", step=8, client=client)
    assert zarr.open_array(tmp_path / "labels.zarr" / "0").shape == ((1, 20, 20) if axes == "yx" else (20, 20, 20))


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a.nii", "a.dseeds"])
def test_names_that_labels_cannot_have(ct, client, name):
    with pytest.raises(ValueError, match="is not a name for labels"):
        dseeds.segment(ct[0], into_image=name, step=16, client=client)


def test_labels_go_to_one_place(tmp_path, client, capsys):
    image = np.zeros((16, 16, 16), np.uint8)
    for places in ({}, {"target": tmp_path / "a.zarr", "into_image": True}):
        with pytest.raises(ValueError, match="pass a target, or into_image"):
            dseeds.segment(image, step=8, client=client, **places)
    with pytest.raises(ValueError, match="is not an OME-Zarr image"):
        dseeds.segment(image, into_image=True, step=8, client=client)
    for arguments in (["image.zarr"], [], ["image.zarr", "labels.zarr", "--label-name", "a"]):
        assert main(["segment", *arguments]) == 2
        assert "--into-image" in capsys.readouterr().err or not arguments


def test_painted_volumes_lie_on_their_labels(ct, client, tmp_path):
    path, _ = ct
    dseeds.segment(path, tmp_path / "labels.zarr", step=16, client=client)
    dseeds.paint(tmp_path / "labels.zarr", {1: 1}, tmp_path / "painted.zarr")
    one, other = (open_source(tmp_path / name).frame for name in ("labels.zarr", "painted.zarr"))
    assert one == other == open_source(path).frame
