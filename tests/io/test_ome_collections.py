"""OME-Zarr around images, and their coordinate systems: roots of bioformats2raw, plates, wells, version 0.6."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

import dseeds
from dseeds import cli
from dseeds.convert.describe import describe
from dseeds.convert.export_volume import export_volume
from dseeds.io import multiscale_of, ome_image_attributes, open_source

WHOLE = (slice(None),) * 3
VOXELS = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype("u2")


def image(path, add=0, zarr_format=3, **more):
    ome = ome_image_attributes(spacing=(2.0, 0.5, 0.5), name="a", **more)
    attributes = {"ome": ome} if zarr_format == 3 else {"multiscales": ome["multiscales"]}
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format, attributes=attributes)
    group.create_array("0", data=VOXELS + add)
    return path


@pytest.mark.parametrize("root_format", [2, 3])
@pytest.mark.parametrize("image_format", [2, 3])
def test_the_only_image_of_a_root_is_read(tmp_path, root_format, image_format):
    attributes = {"bioformats2raw.layout": 3}
    attributes = attributes if root_format == 2 else {"ome": attributes}
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=root_format, attributes=attributes)
    image(tmp_path / "a.zarr/0", zarr_format=image_format)
    source = open_source(tmp_path / "a.zarr")
    np.testing.assert_array_equal(source.read(WHOLE), VOXELS)
    assert source.spacing == (2, 0.5, 0.5)
    assert multiscale_of(tmp_path / "a.zarr").where == str(tmp_path / "a.zarr/0")
    image(tmp_path / "a.zarr/1", 1, zarr_format=image_format)
    with pytest.raises(
        ValueError, match=r"is a root of bioformats2raw that holds 2 images \(0, 1\): pass one of .*/a\.zarr/0$"
    ) as _:
        open_source(tmp_path / "a.zarr")
    listed = {"series": ["1"]} if root_format == 2 else {"ome": {"series": ["1"]}}
    zarr.open_group(tmp_path / "a.zarr/OME", mode="w", zarr_format=root_format, attributes=listed)
    np.testing.assert_array_equal(open_source(tmp_path / "a.zarr").read(WHOLE), VOXELS + 1)


def test_plates_and_wells(tmp_path):
    path = tmp_path / "a.zarr"
    wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}]
    group = zarr.open_group(path, mode="w", attributes={"ome": {"version": "0.5", "plate": {"wells": wells}}})
    with pytest.raises(ValueError, match="is a plate that names A/1/0, which is missing"):
        open_source(path)
    well = {"version": "0.5", "well": {"images": [{"path": "0"}]}}
    zarr.open_group(path / "A/1", mode="w", attributes={"ome": well})
    image(path / "A/1/0")
    for address in (path, path / "A/1", path / "A/1/0"):
        np.testing.assert_array_equal(open_source(address).read(WHOLE), VOXELS)
    well["well"]["images"].append({"path": "1"})
    zarr.open_group(path / "A/1").attrs["ome"] = well
    for address in (path, path / "A/1"):
        with pytest.raises(ValueError, match=r"holds 2 images \(.*, .*\): pass one of them, such as .*/A/1/0"):
            open_source(address)
    wells += [{"path": f"A/{n}", "rowIndex": 0, "columnIndex": n} for n in range(2, 9)]
    group.attrs["ome"] = {"plate": {"wells": wells}}
    with pytest.raises(ValueError, match=r"images \(.*\): pass one of them, such as .*/A/1/0"):
        open_source(path)
    group.attrs["ome"] = {"plate": {"wells": [{"path": "../../b.zarr"}]}}
    with pytest.raises(ValueError, match="which is missing"):
        open_source(path)
    zarr.open_group(tmp_path / "b.zarr", mode="w", attributes={"bioformats2raw.layout": 3})
    with pytest.raises(ValueError, match="without an OME-Zarr image"):
        open_source(tmp_path / "b.zarr")


# Several images in one group


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_one_of_several_images_in_a_group_is_chosen(tmp_path, zarr_format):
    path = image(tmp_path / "a.zarr", zarr_format=zarr_format)
    group = zarr.open_group(path)
    other = ome_image_attributes(spacing=(3.0, 1.0, 1.0), name="b")["multiscales"][0]
    other["datasets"][0]["path"] = "second/0"
    group.create_array("second/0", data=VOXELS + 1)
    ome = {"multiscales": [ome_image_attributes(spacing=(2.0, 0.5, 0.5), name="a")["multiscales"][0], other]}
    group.attrs.update({"ome": ome} if zarr_format == 3 else ome)
    for source in (path, str(path), zarr.open_group(path, mode="r")):
        with pytest.raises(ValueError, match=r"a\.zarr holds 2 images: 0 'a', 1 'b'; pass .*a\.zarr:0 for the first"):
            open_source(source)
    for address, spacing, add in ((f"{path}:0", 2, 0), (f"{path}:a", 2, 0), (f"{path}:1", 3, 1), (f"{path}:b", 3, 1)):
        source = open_source(address)
        np.testing.assert_array_equal(source.read(WHOLE), VOXELS + add)
        assert source.spacing[0] == spacing
        assert describe(address)["spacing"][0] == spacing
        assert multiscale_of(address).frames[0].spacing[0] == spacing
    # The arrays of each image have the size of its voxels.
    assert [open_source(path / name).spacing[0] for name in ("0", "second/0")] == [2, 3]
    with pytest.raises(ValueError, match=r"has no image '2': it holds 2 images"):
        open_source(f"{path}:2")
    with pytest.raises(ValueError, match=r"is a Zarr array, not a group of images: leave out :1 \(--image\)"):
        open_source(f"{path}/0:1")
    target = tmp_path / "labels.zarr"
    assert cli.main(["segment", str(path), str(target), "--image", "1", "--step", "2", "--quiet"]) == 0
    assert open_source(target).spacing[0] == 3


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "rotation", "rotation": [[0, 1, 0], [1, 0, 0], [0, 0, 1]]}, "of type 'rotation', which is read in"),
        ({"type": "affine", "affine": [[1, 0, 0, 0]] * 3}, "of type 'affine', which is read in version 0.6 only"),
        ({"type": "scale", "path": "scales"}, "keeps the values of a scale in an array, which is not read"),
    ],
)
def test_transformations_that_the_version_does_not_know(tmp_path, step, message):
    group = zarr.open_group(image(tmp_path / "a.zarr"))
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"].append(step)
    group.attrs["ome"] = ome
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.zarr")


def test_arrays_of_a_group_without_images_are_listed(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for name in ("ct", "x"):
        group.create_array(name, data=VOXELS)
    with pytest.raises(ValueError, match=r"pass one of its arrays \(ct, x\), such as .*a\.zarr/ct$"):
        open_source(tmp_path / "a.zarr")


# Translations, in a space whose axes are those of NIfTI


@pytest.mark.parametrize(("units", "factor"), [("millimeter", 1), ("micrometer", 1e-3)])
def test_a_translation_is_exported(tmp_path, units, factor):
    image(tmp_path / "a.zarr", translation=(30.0, -20.0, 10.0), units=(units,) * 3)
    affine = np.diag([0.5 * factor, 0.5 * factor, 2 * factor, 1])
    affine[:3, 3] = np.array([10, -20, 30]) * factor
    export_volume(tmp_path / "a.zarr", tmp_path / "a.nii.gz")
    np.testing.assert_allclose(nibabel.load(tmp_path / "a.nii.gz").affine, affine, rtol=1e-6)
    for ending in ("nrrd", "mha"):
        export_volume(tmp_path / "a.zarr", tmp_path / f"a.{ending}")
        written = sitk.ReadImage(tmp_path / f"a.{ending}")
        place = np.array(written.TransformIndexToPhysicalPoint((1, 2, 3))) * (-1, -1, 1)
        np.testing.assert_allclose(place, (affine @ (1, 2, 3, 1))[:3], rtol=1e-6)
    dseeds.segment(tmp_path / "a.zarr", tmp_path / "labels.zarr", step=2)
    export_volume(tmp_path / "labels.zarr", tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(nibabel.load(tmp_path / "labels.nii.gz").affine, affine, rtol=1e-6)


# Version 0.6


def in_systems(
    path, steps, *, unit="millimeter", further=(), orientations=(None,) * 3, names="zyx", start="physical", named=str
):
    axes = [
        {
            "name": name,
            "type": "space",
            "unit": unit,
            **({"orientation": {"type": "anatomical", "value": o}} if o else {}),
        }
        for name, o in zip(names, orientations, strict=True)
    ]
    systems = [{"name": name, "axes": axes} for name in ("physical", "world")]
    steps = [{**step, "input": "0", "output": named("physical")} for step in steps]
    further = [{**step, "input": named(start), "output": named("world")} for step in further]
    attributes = {
        "version": "0.6",
        "multiscales": [
            {
                "name": "m",
                "coordinateSystems": systems,
                "datasets": [{"path": "0", "coordinateTransformations": steps}],
                "coordinateTransformations": further,
            }
        ],
    }
    group = zarr.open_group(path, mode="w", attributes={"ome": attributes})
    group.create_array("0", data=VOXELS)
    return path


SCALE = {"type": "scale", "scale": [4.0, 3.0, 2.0]}
SHIFT = {"type": "translation", "translation": [30.0, 20.0, 10.0]}
TURN = [[1.0, 0, 0], [0, 0.0, -1], [0, 1, 0.0]]


def test_scales_and_translations_of_version_06(tmp_path):
    source = open_source(in_systems(tmp_path / "a.zarr", [SCALE], unit="micrometer"))
    assert (source.spacing, source.affine) == ((0.004, 0.003, 0.002), None)
    source = open_source(in_systems(tmp_path / "a.zarr", [{"type": "sequence", "transformations": [SCALE, SHIFT]}]))
    assert (source.spacing, source.frame.translation) == ((4, 3, 2), (30, 20, 10))
    # Drafts name coordinate systems by texts, the version itself by objects.
    for named in (str, lambda name: {"name": name}):
        source = open_source(in_systems(tmp_path / "a.zarr", [SCALE], further=[SHIFT], named=named))
        assert (source.spacing, source.frame.translation) == ((4, 3, 2), (30, 20, 10))


@pytest.mark.parametrize("how", ["rotation", "affine", "further"])
def test_rotations_and_affines_of_version_06(tmp_path, how):
    linear = np.array(TURN) @ np.diag([4.0, 3, 2])
    rotation = {"type": "rotation", "rotation": TURN}
    whole = {"type": "affine", "affine": np.column_stack([linear, [30, 20, 10]]).tolist()}
    if how == "affine":
        path = in_systems(tmp_path / "a.zarr", [whole])
    elif how == "rotation":
        path = in_systems(tmp_path / "a.zarr", [{"type": "sequence", "transformations": [SCALE, rotation, SHIFT]}])
    else:
        path = in_systems(
            tmp_path / "a.zarr", [SCALE], further=[{"type": "sequence", "transformations": [rotation, SHIFT]}]
        )
    source = open_source(path)
    assert source.spacing == pytest.approx((4, 3, 2))
    for zyx in ((0, 0, 0), (1, 2, 3), (3, 0, 5)):
        expected = (linear @ zyx + [30, 20, 10])[::-1]
        np.testing.assert_allclose((source.affine @ (*zyx[::-1], 1))[:3], expected)


def test_anatomical_orientations(tmp_path):
    orientations = ("superior-to-inferior", "anterior-to-posterior", "right-to-left")
    path = in_systems(tmp_path / "a.zarr", [SCALE], orientations=orientations)
    np.testing.assert_array_equal(open_source(path).affine, np.diag([-2.0, -3, -4, 1]))
    orientations = ("left-to-right", "superior-to-inferior", "posterior-to-anterior")
    affine = open_source(in_systems(tmp_path / "a.zarr", [SCALE], orientations=orientations)).affine
    np.testing.assert_array_equal(affine[:3, :3], [[0, 0, 4], [2, 0, 0], [0, -3, 0]])


@pytest.mark.parametrize("kind", ["displacements", "coordinates", "byDimension", "bijection", "mapAxis"])
def test_what_resamples_is_refused(tmp_path, kind):
    with pytest.raises(ValueError, match=f"has a transformation of type '{kind}', which is not read: resample"):
        open_source(in_systems(tmp_path / "a.zarr", [{"type": kind, kind: []}]))


def test_damaged_coordinate_systems(tmp_path):
    for step in ({"type": "scale", "scale": [1, 2]}, {"type": "scale"}, {"type": "affine", "affine": "no"}):
        with pytest.raises(ValueError, match="has OME metadata that cannot be read"):
            open_source(in_systems(tmp_path / "a.zarr", [step]))
    with pytest.raises(ValueError, match="places an array in 2 coordinate systems"):
        open_source(in_systems(tmp_path / "a.zarr", [SCALE, SCALE]))
    with pytest.raises(ValueError, match="does not say where an array lies"):
        open_source(in_systems(tmp_path / "a.zarr", []))
    with pytest.raises(ValueError, match="has a transformation that does not follow that of its arrays"):
        open_source(in_systems(tmp_path / "a.zarr", [SCALE], further=[SHIFT], start="world"))
