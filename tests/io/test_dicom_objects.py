"""Objects of many frames, series of several volumes, and special objects: read right, or refused by name.

The right voxels are those from which a file was made, the right places those of highdicom and SimpleITK.
"""

import importlib
import re
import warnings

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from dseeds.io import open_image, open_source
from tests.support import dicom_files as files
from tests.support.dicom_files import groups_of, item, new_enhanced, new_slice, save

WHOLE = (slice(None),) * 3


def voxels(count, depth=5, dtype="u2"):
    """Return volumes (v, z, y, x) whose voxels are all different."""
    return np.arange(count * depth * 42).reshape(count, depth, 6, 7).astype(dtype)


def written_by_pydicom(name):
    """Return the path of a file that pydicom brings along."""
    return get_testdata_file(name, download=False)


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        open_image(path, **options).read(WHOLE)
    text = str(caught.value)
    assert "\n" not in text
    assert not re.search(r"itk|gdcm|pydicom|Traceback|0x|frame\.dcm", text.replace(str(path), ""), re.IGNORECASE), text
    return text


def agree(source, expected, affine):
    np.testing.assert_array_equal(source.read(WHOLE), expected)
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in source.slabs(2)]), expected)
    np.testing.assert_array_equal(source.read(np.s_[1:3, 2:4, 0:5]), expected[1:3, 2:4, 0:5])
    np.testing.assert_allclose(source.affine, affine, atol=1e-6)


def agree_with_highdicom(source, path):
    """Compare every voxel and its place; highdicom may turn the axes."""
    volume = highdicom.imread(path).get_volume()
    np.testing.assert_allclose(
        sorted(volume.spacing), sorted(np.linalg.norm(source.affine[:3, :3], axis=0)), rtol=0, atol=1e-6
    )
    indices = np.indices(volume.array.shape).reshape(3, -1)
    to_ours = np.linalg.inv(source.affine) @ np.diag([-1, -1, 1, 1]) @ volume.affine
    x, y, z = np.rint((to_ours @ [*indices, np.ones(indices.shape[1])])[:3]).astype(int)
    np.testing.assert_array_equal(source.read(WHOLE)[z, y, x], volume.array.ravel())


@pytest.mark.parametrize("axes", [files.STRAIGHT, files.OBLIQUE, np.diag([1, -1, -1.0]), np.eye(3)[[1, 2, 0]]])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 4, 1, 2]])
def test_frames_in_the_order_of_their_places(tmp_path, axes, order):
    [volume] = voxels(1)
    groups = [groups_of(z, axes) for z in order]
    path = save(new_enhanced(volume[order], groups, axes), tmp_path / "a.dcm")
    source = open_source(path)
    agree(source, volume, files.affine_of(axes))
    assert (source.dtype, source.spacing) == (np.uint16, pytest.approx((3, 0.8, 0.9)))
    agree_with_highdicom(source, path)
    if order[0] == 0:
        image = sitk.ReadImage(path)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume)
        np.testing.assert_allclose(image.GetOrigin(), (-1, -1, 1) * source.affine[:3, 3])


# How two volumes differ: the groups of the first and of the second.
DIFFERENCES = {
    "temporal index": ({"time": 1}, {"time": 2}),
    "echo time": ({"MREchoSequence": {"EffectiveEchoTime": 4.6}}, {"MREchoSequence": {"EffectiveEchoTime": 20.0}}),
    "b-value": ({"MRDiffusionSequence": {"DiffusionBValue": 0.0}}, {"MRDiffusionSequence": {"DiffusionBValue": 1e3}}),
    "component": tuple({"MRImageFrameTypeSequence": {"ComplexImageComponent": c}} for c in ("MAGNITUDE", "PHASE")),
    "image type": tuple(
        {"MRImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", c, "NONE"]}} for c in ("WATER", "FAT")
    ),
    "trigger time": tuple(
        {"CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": c}} for c in (9.0, 100.0)
    ),
    "gradient": tuple(
        {
            "MRDiffusionSequence": {
                "DiffusionBValue": 1e3,
                "DiffusionGradientDirectionSequence": [item(DiffusionGradientOrientation=c)],
            }
        }
        for c in ([1.0, 0, 0], [0.0, 1, 0])
    ),
    "kernel": tuple({"CTReconstructionSequence": {"ConvolutionKernel": c}} for c in ("Hr40", "Hr64")),
    "stack": ({"stack": "1"}, {"stack": "2"}),
}


@pytest.mark.parametrize("order", ["volumes", "places", "shuffled"])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_volumes_of_one_object(tmp_path, name, order):
    volumes = voxels(2)
    frames = [(v, z) for v in range(2) for z in range(5)]
    if order == "places":
        frames = [(v, z) for z in range(5) for v in range(2)]
    elif order == "shuffled":
        # Text has no order of its own: its volumes are numbered as their first frames.
        frames = [frames[0], *(frames[n] for n in 1 + np.random.default_rng(1).permutation(9))]
    groups = [groups_of(z, **DIFFERENCES[name][v]) for v, z in frames]
    path = save(new_enhanced(np.stack([volumes[v, z] for v, z in frames]), groups), tmp_path / "a.dcm")
    refused(path, rf"volumes differ in {name}, holds 2 volumes: pass volume= \(--volume on the command line\), 0 to 1")
    for number in (0, 1):
        agree(open_source(path, volume=number), volumes[number], files.affine_of())
    assert open_source(path, volume=0).identity != open_source(path, volume=1).identity
    np.testing.assert_array_equal(open_image(path, channel_axis=0).read(WHOLE), volumes)
    [(_, slabs)] = open_image(path, channel_axis=0).slabs(9)
    np.testing.assert_array_equal(slabs, volumes)
    refused(path, "has no volume 2: it holds 2", volume=2)
    refused(path, "no axis of channels but 0", channel_axis=1)


def test_volumes_differ_in_two_ways(tmp_path):
    volumes = voxels(6)
    pairs = [(time, echo) for time in (1, 2, 3) for echo in (4.6, 20.0)]
    frames = np.random.default_rng(2).permutation(30)
    groups = [
        groups_of(n % 5, time=pairs[n // 5][0], MREchoSequence={"EffectiveEchoTime": pairs[n // 5][1]}) for n in frames
    ]
    path = save(new_enhanced(volumes.reshape(30, 6, 7)[frames], groups), tmp_path / "a.dcm")
    refused(path, "differ in temporal index and echo time, holds 6 volumes")
    for number, volume in enumerate(volumes):
        np.testing.assert_array_equal(open_source(path, volume=number).read(WHOLE), volume)


def test_dimensions_tell_volumes_apart(tmp_path):
    volumes = voxels(2)
    groups = []
    for n in range(10):
        group = groups_of(n // 2)
        group.FrameContentSequence[0].DimensionIndexValues = [1, 1 + n // 2, 2 - n % 2]
        groups.append(group)
    pointers = [
        item(DimensionIndexPointer=0x00209056),
        item(DimensionIndexPointer=0x00209057),
        item(DimensionIndexPointer=0x20051413),
    ]
    frames = volumes.swapaxes(0, 1).reshape(10, 6, 7)
    path = save(new_enhanced(frames, groups, DimensionIndexSequence=pointers), tmp_path / "a.dcm")
    refused(path, "differ in dimension 3, holds 2 volumes")
    for number in (0, 1):
        np.testing.assert_array_equal(open_source(path, volume=number).read(WHOLE), volumes[1 - number])


def test_stacks_of_several_directions_and_depths(tmp_path):
    [volume] = voxels(1, 8)
    groups = []
    for n in range(8):
        axes = files.STRAIGHT if n < 5 else files.OBLIQUE
        orientation = [item(ImageOrientationPatient=files.directions(axes))]
        stack = "1" if n < 5 else "2"
        groups.append(groups_of(n if n < 5 else n - 5, axes, stack=stack, PlaneOrientationSequence=orientation))
    path = save(new_enhanced(volume, groups, shared={"PlaneOrientationSequence": None}), tmp_path / "a.dcm")
    refused(path, "differ in stack, holds 2 volumes")
    agree(open_source(path, volume=0), volume[:5], files.affine_of())
    agree(open_source(path, volume=1), volume[5:], files.affine_of(files.OBLIQUE))
    refused(path, "volumes in different places", channel_axis=0)


def test_one_stack_may_be_wrong(tmp_path):
    [volume] = voxels(1, 8)
    heights = [0, 1, 2, 3, 4, 0, 1, 5]
    groups = [groups_of(height, stack="1" if n < 5 else "2") for n, height in enumerate(heights)]
    path = save(new_enhanced(volume, groups), tmp_path / "a.dcm")
    agree(open_source(path, volume=0), volume[:5], files.affine_of())
    refused(path, "unevenly spaced, from 3 to 12 mm, such as frames 7 and 8", volume=1)


def test_scales_of_their_own(tmp_path):
    volumes = voxels(2)
    for shared in (False, True):
        slopes = (2.0, 2.0) if shared else (0.5, 2.0)
        scales = [{"RescaleSlope": slope, "RescaleIntercept": -3, "RescaleType": "US"} for slope in slopes]
        groups = [
            groups_of(
                n % 5, time=1 + n // 5, **({} if shared else {"PixelValueTransformationSequence": scales[n // 5]})
            )
            for n in range(10)
        ]
        more = {"PixelValueTransformationSequence": scales[0]} if shared else {}
        path = save(new_enhanced(volumes.reshape(10, 6, 7), groups, shared=more), tmp_path / "a.dcm")
        for number in (0, 1):
            source = open_source(path, volume=number)
            agree(source, volumes[number] * slopes[number] - 3, files.affine_of())
            assert source.dtype == (np.float64 if slopes[number] == 0.5 else np.int32)
        frame = pydicom.dcmread(path)
        apply = pydicom.pixels.apply_rescale
        if not shared:
            scale = frame.PerFrameFunctionalGroupsSequence[7].PixelValueTransformationSequence[0]
            np.testing.assert_array_equal(
                open_source(path, volume=1).read(WHOLE)[2], apply(frame.pixel_array[7], scale)
            )


def test_groups_of_each_frame_or_of_all(tmp_path):
    [volume] = voxels(1)
    own = {
        "PixelMeasuresSequence": files.measures(),
        "PlaneOrientationSequence": [item(ImageOrientationPatient=files.directions(files.OBLIQUE))],
    }
    groups = [groups_of(z, files.OBLIQUE, **own) for z in range(5)]
    for shared in ({"PixelMeasuresSequence": None, "PlaneOrientationSequence": None}, {}):
        dataset = new_enhanced(volume, groups, shared=shared)
        if shared:
            del dataset.SharedFunctionalGroupsSequence
        agree(open_source(save(dataset, tmp_path / "a.dcm")), volume, files.affine_of(files.OBLIQUE))


@pytest.mark.parametrize(
    ("own", "size"), [({}, 2.5), ({"SpacingBetweenSlices": 4.0}, 4), ({"SliceThickness": None}, None)]
)
def test_one_frame(tmp_path, own, size):
    [[plane]] = voxels(1, 1)
    shared = {"PixelMeasuresSequence": files.measures(**own)}
    path = save(new_enhanced(plane[None], [groups_of(0)], shared=shared), tmp_path / "a.dcm")
    source = open_source(path)
    np.testing.assert_array_equal(source.read(WHOLE), plane[None])
    assert source.spacing == (None if size is None else pytest.approx((size, 0.8, 0.9)))
    assert source.affine is None if size is None else np.allclose(source.affine, files.affine_of(gap=size))


def test_an_object_for_each_moment(tmp_path):
    volumes = voxels(3)
    for number, volume in enumerate(volumes):
        groups = [groups_of(z, time=number + 1) for z in range(5)]
        save(new_enhanced(volume, groups, InstanceNumber=3 - number), tmp_path / "all" / f"{number}.dcm")
    refused(tmp_path / "all", "differ in temporal index, holds 3 volumes")
    for number, volume in enumerate(volumes):
        agree(open_source(tmp_path / "all", volume=number), volume, files.affine_of())
        # Without an index, the number of the object tells its moment.
        save(
            new_enhanced(volume, [groups_of(z) for z in range(5)], InstanceNumber=3 - number),
            tmp_path / f"b/{number}.dcm",
        )
    refused(tmp_path / "b", "differ in the order of their files, holds 3 volumes")
    for number, volume in enumerate(volumes):
        agree(open_source(tmp_path / "b", volume=2 - number), volume, files.affine_of())


def test_an_object_in_several_files(tmp_path):
    [volume] = voxels(1, 6)
    for part in (1, 2):
        numbers = range(3) if part == 1 else range(3, 6)
        dataset = new_enhanced(
            volume[list(numbers)],
            [groups_of(z) for z in numbers],
            **{"ConcatenationUID": "1.2.9", "InConcatenationNumber": part, "InConcatenationTotalNumber": 2},
            ConcatenationFrameOffsetNumber=3 * part - 3,
        )
        save(dataset, tmp_path / "all" / f"{part}.dcm")
    agree(open_source(tmp_path / "all"), volume, files.affine_of())
    refused(tmp_path / "all" / "1.dcm", "holds 1 of the 2 files of an object: pass a folder with all of them")


def without(name):
    return lambda dataset: delattr(dataset, name)


def change_groups(edit):
    def change(dataset):
        for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            edit(number, group)

    return change


def set_place(number, place):
    return change_groups(
        lambda n, group: setattr(group.PlanePositionSequence[0], "ImagePositionPatient", place) if n == number else None
    )


def set_content(**elements):
    return change_groups(
        lambda n, group: [setattr(group.FrameContentSequence[0], k, v(n)) for k, v in elements.items()]
    )


BROKEN = {
    "no positions": (
        change_groups(lambda n, group: delattr(group, "PlanePositionSequence")),
        "where its 10 frames lie",
    ),
    "no orientation": (
        lambda dataset: delattr(dataset.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"),
        "where its 10 frames lie",
    ),
    "no groups": (without("PerFrameFunctionalGroupsSequence"), "10 frames, and functional groups for 0"),
    "too few groups": (lambda dataset: dataset.PerFrameFunctionalGroupsSequence.pop(), "and functional groups for 9"),
    "no number of frames": (without("NumberOfFrames"), "1 frames, and functional groups for 10|promises 84 bytes"),
    "fewer frames": (
        lambda dataset: setattr(dataset, "NumberOfFrames", 9),
        "9 frames, and functional|promises 756 bytes",
    ),
    "more frames": (lambda dataset: setattr(dataset, "NumberOfFrames", 11), "incomplete"),
    "no temporal index": (
        change_groups(lambda n, group: delattr(group.FrameContentSequence[0], "TemporalPositionIndex")),
        "several slices of one place, such as frames 1 and 6, and nothing that tells 2 volumes apart",
    ),
    "a frame elsewhere": (set_place(3, [-10, -12, 100]), "several slices of one place"),
    "a frame shifted": (set_place(3, [-10, 12, 14]), "do not lie one behind the other"),
    "one more in the first volume": (
        set_content(TemporalPositionIndex=lambda n: 1 + (n > 5)),
        "nothing that tells 2 volumes apart",
    ),
    "places twice as far": (set_place(4, [-10, -12, 29]), "several slices|unevenly"),
    "spacing differs": (
        change_groups(
            lambda n, group: setattr(group, "PixelMeasuresSequence", files.measures(PixelSpacing=[1 + n, 1]))
        ),
        r"voxels have different sizes, frames 1 and 2 \(1 x 1 and 2 x 1 mm\)",
    ),
    "axes at no right angle": (
        lambda dataset: setattr(
            dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0],
            "ImageOrientationPatient",
            [1, 0, 0, 1, 0, 0],
        ),
        "not two directions at right angles",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_objects(tmp_path, name):
    edit, message = BROKEN[name]
    dataset = new_enhanced(voxels(2).reshape(10, 6, 7), [groups_of(n % 5, time=1 + n // 5) for n in range(10)])
    edit(dataset)
    # The places within a volume are checked when it is read.
    volume = 0 if name == "a frame shifted" else None
    refused(save(dataset, tmp_path / "a.dcm"), message, volume=volume)


def test_parts_of_several_volumes_in_one_stack(tmp_path):
    groups = [groups_of(z, time=1 + z // 3) for z in range(6)]
    path = save(new_enhanced(voxels(1, 6)[0], groups), tmp_path / "a.dcm")
    refused(path, r"frames that differ in temporal index \(1.0, 2.0\) and lie in different places")
    groups = [groups_of(n % 5, time=1 + n // 5) for n in range(9)]
    path = save(new_enhanced(voxels(1, 9)[0], groups), tmp_path / "a.dcm")
    refused(path, r"several slices of one place, such as frames 1 and 6 \(2, but 1 of another place\)", volume=0)


def test_real_values_are_as_stored_if_all_frames_have_the_same(tmp_path):
    [volume] = voxels(1)
    for slopes in ([0.5] * 5, [0.5, 0.5, 0.5, 0.5, 2.0]):
        maps = [{"RealWorldValueSlope": slope, "RealWorldValueIntercept": 0.0, "LUTLabel": "ADC"} for slope in slopes]
        groups = [groups_of(z, RealWorldValueMappingSequence=maps[z]) for z in range(5)]
        path = save(new_enhanced(volume, groups, uid=files.PARAMETRIC_MAP), tmp_path / "a.dcm")
        if slopes[4] == 0.5:
            agree(open_source(path), volume, files.affine_of())
        else:
            refused(path, r"frames that differ in real-world slope \(0.5, 2.0\)")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floating_point_voxels(tmp_path, dtype):
    volume = voxels(1)[0].astype(dtype) / 7
    groups = [groups_of(z) for z in range(5)]
    path = save(new_enhanced(volume, groups, uid=files.PARAMETRIC_MAP), tmp_path / "a.dcm")
    agree(open_source(path), volume, files.affine_of())


# Doses.


def new_dose(offsets, volume, **elements):
    fields = {"DoseGridScaling": 0.001, "GridFrameOffsetVector": offsets, "PixelSpacing": [0.8, 0.9]}
    fields |= {"ImageOrientationPatient": files.directions(files.STRAIGHT), "ImagePositionPatient": files.place(0)}
    return files.new_image(files.RT_DOSE, volume, **{**fields, **elements})


@pytest.mark.parametrize("offsets", [[0, 3, 6, 9, 12], [5, 8, 11, 14, 17]])
def test_doses_lie_where_their_offsets_say(tmp_path, offsets):
    volume = voxels(1, dtype="u4")[0] * 70000
    path = save(new_dose(offsets, volume), tmp_path / "a.dcm")
    agree(open_source(path), volume, files.affine_of())
    image = sitk.ReadImage(path)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), open_source(path).read(WHOLE))
    np.testing.assert_allclose(image.GetSpacing()[::-1], open_source(path).spacing)


def test_doses_from_the_last_plane_to_the_first(tmp_path):
    volume = voxels(1)[0]
    path = save(new_dose([0, -3, -6, -9, -12], volume), tmp_path / "a.dcm")
    agree(open_source(path), volume[::-1], files.affine_of(origin=files.ORIGIN - (0, 0, 12)))


def test_doses_in_any_direction(tmp_path):
    volume = voxels(1)[0]
    dataset = new_dose([0, 3, 6, 9, 12], volume, ImageOrientationPatient=files.directions(files.OBLIQUE))
    agree(open_source(save(dataset, tmp_path / "a.dcm")), volume, files.affine_of(files.OBLIQUE))


def test_doses_whose_places_are_not_certain(tmp_path):
    volume = voxels(1)[0]
    for elements, message in [
        ({"GridFrameOffsetVector": None}, "does not say where its 5 frames lie"),
        ({"GridFrameOffsetVector": [0, 3]}, "does not say where its 5 frames lie"),
        ({"GridFrameOffsetVector": [7, 10, 13, 16, 19]}, "says in two ways where its planes lie"),
        ({"GridFrameOffsetVector": [0, 3, 6, 9, 14]}, "unevenly spaced"),
        ({"ImagePositionPatient": None}, "does not say where its 5 frames lie"),
    ]:
        refused(save(new_dose([0, 3, 6, 9, 12], volume, **elements), tmp_path / "a.dcm"), message)


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"])
def test_doses_of_pydicom(name):
    dataset, source = pydicom.dcmread(written_by_pydicom(name)), open_source(written_by_pydicom(name))
    np.testing.assert_array_equal(source.read(WHOLE), dataset.pixel_array)
    np.testing.assert_allclose(source.affine[:3, 3], np.array(dataset.ImagePositionPatient, float) * (-1, -1, 1))
    assert source.spacing == (5, 10, 10)


def test_big_endian_voxels_of_32_bits(tmp_path):
    volume = voxels(1, dtype="u4")[0] * 70000
    path = files.save_big_endian(new_dose([0, 3, 6, 9, 12], volume), tmp_path / "a.dcm", 4)
    agree(open_source(path), volume, files.affine_of())
    # SimpleITK reads other values.
    assert (sitk.GetArrayFromImage(sitk.ReadImage(path)) != volume).any()


def test_two_doses(tmp_path):
    for name in "ab":
        save(new_dose([0, 3, 6, 9, 12], voxels(1)[0]), tmp_path / "all" / f"{name}.dcm")
    refused(tmp_path / "all", "holds 2 files that are volumes of their own: pass one of them")


# Nuclear medicine.


def new_scan(volume, kind="RECON TOMO", pointers=(0x00540080,), **elements):
    detector = item(
        ImageOrientationPatient=files.directions(files.OBLIQUE), ImagePositionPatient=files.place(0, files.OBLIQUE)
    )
    return files.new_image(
        files.NUCLEAR_MEDICINE,
        volume,
        ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"],
        FrameIncrementPointer=list(pointers),
        DetectorInformationSequence=[detector],
        **{"PixelSpacing": [0.8, 0.9], "SpacingBetweenSlices": 3.0, "SliceThickness": 3.0, **elements},
    )


def test_reconstructions_of_nuclear_medicine(tmp_path):
    volumes = voxels(2)
    path = save(new_scan(volumes[0], SliceVector=[1, 2, 3, 4, 5]), tmp_path / "a.dcm")
    agree(open_source(path), volumes[0], files.affine_of(files.OBLIQUE))
    path = save(new_scan(volumes[0], SliceVector=[1, 2, 3, 4, 5], SpacingBetweenSlices=-3.0), tmp_path / "a.dcm")
    origin = files.ORIGIN - 12 * files.OBLIQUE[2]
    agree(open_source(path), volumes[0][::-1], files.affine_of(files.OBLIQUE, origin=origin))
    vectors = {"SliceVector": [1, 2, 3, 4, 5] * 2, "TimeSlotVector": [1] * 5 + [2] * 5}
    frames = volumes.reshape(10, 6, 7)
    path = save(new_scan(frames, "RECON GATED TOMO", (0x00540070, 0x00540080), **vectors), tmp_path / "a.dcm")
    refused(path, "differ in time slot, holds 2 volumes")
    agree(open_source(path, volume=1), volumes[1], files.affine_of(files.OBLIQUE))


@pytest.mark.parametrize(
    ("kind", "pointers", "elements"),
    [
        ("TOMO", (0x00540080,), {"SliceVector": [1, 2, 3, 4, 5]}),
        ("STATIC", (0x00540010,), {"EnergyWindowVector": [1, 2, 3, 4, 5]}),
        ("RECON TOMO", (0x00540080,), {}),
        ("RECON TOMO", (0x00540080,), {"SliceVector": [1, 2, 3, 4]}),
        ("RECON TOMO", (0x00540080,), {"SliceVector": [1, 2, 3, 4, 5], "SpacingBetweenSlices": None}),
        ("RECON TOMO", (0x00181063, 0x00540080), {"SliceVector": [1, 2, 3, 4, 5], "FrameTime": 3.0}),
    ],
)
def test_projections_of_nuclear_medicine(tmp_path, kind, pointers, elements):
    refused(save(new_scan(voxels(1)[0], kind, pointers, **elements), tmp_path / "a.dcm"), "where its 5 frames lie")


# Objects that are no volumes.


def test_special_objects_are_refused_by_name(tmp_path):
    volume = voxels(1)[0]
    enhanced = [groups_of(z) for z in range(5)]
    special = {
        "is a segmentation: convert": new_enhanced(volume.astype("u1"), enhanced, uid=files.SEGMENTATION),
        "is a whole slide image, whose frames are tiles": new_enhanced(volume, enhanced, uid=files.WHOLE_SLIDE),
        "is an image of tiles": new_enhanced(volume, enhanced, TotalPixelMatrixColumns=70),
        r"\(Ultrasound Multi-frame Image\) does not say where": files.new_image(files.ULTRASOUND_FRAMES, volume),
        "is a mosaic, with all slices in one plane": new_slice(
            volume[0], 0, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        ),
        "PALETTE COLOR": files.new_image(files.CT, volume[0], PhotometricInterpretation="PALETTE COLOR"),
        "a table of the values of its voxels": files.new_image(files.CT, volume[0], ModalityLUTSequence=[item()]),
        "has voxels of 12 of 16 bits, up to bit 15": new_slice(volume[0], 0, BitsStored=12),
    }
    for message, dataset in special.items():
        refused(save(dataset, tmp_path / "a.dcm"), message)


def test_mosaics_without_a_name(tmp_path):
    dataset = new_slice(voxels(1)[0, 0], 0)
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", 36)
    refused(save(dataset, tmp_path / "a.dcm"), "is a mosaic")
    for count in (0, 36):
        dataset = new_slice(voxels(1)[0, 0], 0)
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", files.csa_header(NumberOfImagesInMosaic=count))
        path = save(dataset, tmp_path / "a.dcm")
        refused(path, "is a mosaic") if count else open_source(path)
    kind = {"FrameType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}
    dataset = new_enhanced(voxels(1)[0, :1], [groups_of(0, MRImageFrameTypeSequence=kind)])
    refused(save(dataset, tmp_path / "a.dcm"), "is a mosaic")


@pytest.mark.parametrize("axes", [files.STRAIGHT, files.OBLIQUE])
@pytest.mark.parametrize("normal", [1, -1])
@pytest.mark.parametrize("depth", [4, 5])
def test_mosaics_lie_where_siemens_says(tmp_path, axes, normal, depth):
    volume = voxels(1, depth)[0]
    path = save(files.new_mosaic(volume, axes, normal=normal), tmp_path / "a.dcm")
    with warnings.catch_warnings(action="ignore"):
        nicom = importlib.import_module("nibabel.nicom.dicomwrappers")
    dataset = pydicom.dcmread(path)
    csa = nicom.csar.read(dataset.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value)
    wrapper = nicom.MosaicWrapper(dataset, csa)
    # nibabel's axes are (row, column, slice); ours are sorted along the normal.
    expected, affine = np.moveaxis(wrapper.get_data(), -1, 0), np.diag([-1, -1, 1, 1]) @ wrapper.affine[:, [1, 0, 2, 3]]
    if normal < 0:
        expected, affine = expected[::-1], affine @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, depth - 1], [0, 0, 0, 1]]
    agree(open_source(path), expected, affine)
    np.testing.assert_array_equal(expected, volume[::normal])
    save(files.new_mosaic(volume + 1, axes, normal=normal, moment=1), tmp_path / "b.dcm")
    refused(tmp_path, "holds 2 volumes")
    agree(open_source(tmp_path, volume=1), expected + 1, affine)


@pytest.mark.parametrize(
    "csa", [{"ProtocolSliceNumber": 3}, {"SliceNormalVector": None}, {"NumberOfImagesInMosaic": 30}, {"gap": 0}]
)
def test_mosaics_whose_places_are_not_certain(tmp_path, csa):
    path = save(files.new_mosaic(voxels(1, 4)[0], **csa), tmp_path / "a.dcm")
    refused(path, "is a mosaic, with all slices in one plane, and does not say for certain where these lie")


@pytest.mark.parametrize(("bits", "first"), [(8, 0), (16, 0), (16, 3)])
def test_colours_of_a_palette(tmp_path, bits, first):
    volume = np.random.default_rng(0).integers(0, 8, (5, 6, 7)).astype("u1")
    tables = np.random.default_rng(1).integers(0, 2**bits, (3, 8)).astype(f"u{bits // 8}")
    for z, plane in enumerate(volume):
        dataset = new_slice(plane, z, PhotometricInterpretation="PALETTE COLOR")
        for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
            setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [8, first, bits])
            setattr(dataset, f"{name}PaletteColorLookupTableData", table.tobytes())
        if z % 2:
            dataset.compress(RLELossless, generate_instance_uid=False)
        save(dataset, tmp_path / f"{z}.dcm")
    image = open_image(tmp_path)
    assert (image.channels, image.dtypes[0], image.spacing) == (3, tables.dtype, (3, 0.8, 0.9))
    expected = tables[:, np.clip(volume.astype(int) - first, 0, 7)]
    np.testing.assert_array_equal(np.stack(image.read(WHOLE)), expected)
    pixels = pydicom.dcmread(tmp_path / "2.dcm")
    np.testing.assert_array_equal(
        pydicom.pixels.apply_color_lut(pixels.pixel_array, pixels), np.moveaxis(expected[:, 2], 0, -1)
    )
    for change in ({"RescaleSlope": 2, "RescaleIntercept": 0}, {"BluePaletteColorLookupTableDescriptor": [8, 0, 12]}):
        for name, value in change.items():
            setattr(pixels, name, value)
        refused(save(pixels, tmp_path / "z.dcm"), r"has a palette \(PALETTE COLOR\) that is incomplete or unusual")


def test_objects_without_images_are_named(tmp_path):
    for uid, message in [
        (files.REPORT, "holds no image but a Comprehensive SR"),
        (files.STRUCTURE_SET, "holds no image but a RT Structure Set"),
        (files.PRESENTATION_STATE, "holds no image but a Grayscale Softcopy Presentation State"),
        ("1.2.840.10008.1.3.10", "is the index of a medium: pass the folder of one of its series"),
        ("1.2.840.10008.5.1.4.1.1.4", "ends before its voxels or holds none"),
    ]:
        refused(save(files.new_object(uid), tmp_path / "a.dcm"), message)


# Series.


def write_series(folder, volume, axes=files.STRAIGHT, write=save, **elements):
    for z, plane in enumerate(volume):
        changing = {name: value(z) if callable(value) else value for name, value in elements.items()}
        write(new_slice(plane, z, axes, **changing), folder / f"{z:03}.dcm")
    return folder


def test_what_lies_beside_a_series_is_ignored(tmp_path):
    [volume] = voxels(1)
    folder = write_series(tmp_path / "series", volume)
    for uid in (files.REPORT, files.STRUCTURE_SET, files.PRESENTATION_STATE):
        save(files.new_object(uid, SeriesInstanceUID=uid), folder / f"{uid}.dcm")
    save(files.new_object("1.2.840.10008.1.3.10"), folder / "DICOMDIR")
    save(files.new_object("1.2.840.10008.1.3.10"), folder / "000-index")
    (folder / "README.txt").write_text("Thorax, second scan")
    (folder / "empty").touch()
    agree(open_source(folder), volume, files.affine_of())


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", ExplicitVRLittleEndian])
@pytest.mark.parametrize("count", [2, 5])
def test_files_without_a_preamble(tmp_path, count, syntax):
    [volume] = voxels(1)

    def write(dataset, path):
        files.save_without_preamble(dataset, path, syntax) if path.stem < f"{count:03}" else save(dataset, path)

    folder = write_series(tmp_path / "series", volume, write=write)
    agree(open_source(folder), volume, files.affine_of())
    assert open_source(folder / "000.dcm").shape == (1, 6, 7)


def test_a_header_of_files_without_its_preamble(tmp_path):
    [volume] = voxels(1)
    folder = write_series(tmp_path / "series", volume)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    agree(open_source(folder), volume, files.affine_of())


def test_other_files_are_not_taken_for_dicom(tmp_path):
    for content in (
        b"",
        b"\x08\x00",
        b"\x08\x00\x05\x00" * 200,
        b"\x02\x00\x00\x00UL" + bytes(500),
        b"II*\0\x08\0\0\0",
    ):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(ValueError, match="folder without Zarr metadata"):
            open_source(tmp_path)


def test_voxels_of_monochrome1_are_as_stored(tmp_path):
    [volume] = voxels(1)
    folder = write_series(tmp_path / "series", volume, PhotometricInterpretation="MONOCHROME1")
    agree(open_source(folder), volume, files.affine_of())
    folder = write_series(
        tmp_path / "scaled", volume, PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=-7
    )
    np.testing.assert_array_equal(open_source(folder).read(WHOLE), volume.astype(int) * 2 - 7)


def test_surplus_bytes(tmp_path):
    [volume] = voxels(1)
    folder = write_series(tmp_path / "series", volume, PixelData=lambda z: volume[z].tobytes() + bytes(14))
    agree(open_source(folder), volume, files.affine_of())
    for more in (bytes(84), b"\1\0"):
        folder = write_series(tmp_path / "more", volume, PixelData=lambda z, more=more: volume[z].tobytes() + more)
        refused(folder, "promises 84 bytes of voxels, and it holds (168|86), so")


def test_elements_that_an_image_does_not_need_may_be_wrong(tmp_path):
    [volume] = voxels(1)
    folder = write_series(
        tmp_path / "series", volume, EchoTime=1, InstanceNumber=1, FrameOfReferenceUID=lambda z: "1.2"[: 3 * (z % 2)]
    )
    for path in folder.iterdir():
        path.write_bytes(
            path.read_bytes().replace(b"IS\x02\x001 ", b"IS\x02\x00x ").replace(b"DS\x02\x001 ", b"DS\x02\x00x ")
        )
    agree(open_source(folder), volume, files.affine_of())


def test_identifiers_may_be_lost(tmp_path):
    folder = write_series(tmp_path / "series", voxels(1)[0], SOPInstanceUID="1.2.3.4", SeriesInstanceUID=None)
    agree(open_source(folder), voxels(1)[0], files.affine_of())


def test_descriptions_may_differ_within_a_series(tmp_path):
    folder = write_series(tmp_path / "series", voxels(1)[0], SeriesDescription=lambda z: f"part {z // 3}")
    assert open_source(folder).shape == (5, 6, 7)


def at(*places):
    return lambda z: [-10, -12, places[z]]


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (
            {"PixelSpacing": lambda z: [0.8, 0.9] if z < 3 else [1.6, 1.8]},
            r"voxels have different sizes, 000.dcm and 003.dcm \(0.8 x 0.9 and 1.6 x 1.8 mm\)",
        ),
        ({"PixelSpacing": lambda z: [0.8, 0.9] if z < 3 else None}, r"\(0.8 x 0.9 and unknown mm\)"),
        (
            {"ImagePositionPatient": at(0, 2, 4, 8, 12), "SliceThickness": lambda z: 2 if z < 3 else 4},
            "unevenly spaced, from 2 to 4 mm, such as 002.dcm and 003.dcm",
        ),
        ({"ImagePositionPatient": at(0, 2, 4, 8, 12)}, "unevenly spaced, from 2 to 4 mm"),
        (
            {"ImagePositionPatient": at(0, 2, 4, 6, 10), "SliceThickness": lambda z: 2 if z < 4 else 4},
            "unevenly spaced, from 2 to 4 mm",
        ),
        ({"ImagePositionPatient": at(0, 2, 4, 6, 10)}, "lacks slices between 003.dcm and 004.dcm"),
        ({"ImagePositionPatient": lambda z: [(-1) ** z * 9, 0, 2 * z]}, "do not lie one behind the other"),
        ({"FrameOfReferenceUID": lambda z: f"1.2.{z // 3 + 1}"}, "slices in 2 frames of reference"),
        ({"ImageOrientationPatient": None}, "000.dcm does not say where its slice lies"),
        (
            {"SOPInstanceUID": "1.2.3.4", "ImagePositionPatient": at(0, 0, 2, 4, 6)},
            "holds the same slice twice, 000.dcm and 001.dcm: remove one",
        ),
    ],
)
def test_series_whose_places_are_not_certain(tmp_path, elements, message):
    refused(write_series(tmp_path / "series", voxels(1)[0], **elements), message)


def test_distances_that_change_a_little(tmp_path):
    # Each is within 10 % of the others, but the places are up to a slice off those of even ones.
    heights = np.cumsum([0] + [2] * 20 + [2.15] * 20)
    folder = write_series(
        tmp_path / "series", voxels(1, 41)[0], ImagePositionPatient=lambda z: [0, 0, float(heights[z])]
    )
    refused(folder, "unevenly spaced, from 2 to 2.15 mm")


def test_a_tilted_gantry(tmp_path):
    # The slices are moved along y as they go along z.
    [volume] = voxels(1)
    folder = write_series(tmp_path / "series", volume, ImagePositionPatient=lambda z: [-10, -12 - 0.75 * z, 5 + 3 * z])
    expected = files.affine_of()
    expected[1, 2] = 0.75
    agree(open_source(folder), volume, expected)
    assert open_source(folder).spacing == pytest.approx((3, 0.8, 0.9))


# Series of several volumes.


SERIES_DIFFERENCES = {
    "temporal position": {"TemporalPositionIdentifier": (1, 2, 3)},
    "echo time": {"EchoTime": (2.3, 4.6, 11.0)},
    "trigger time": {"TriggerTime": (0, 90, 100)},
    "frame reference time": {"FrameReferenceTime": (0, 900, 10000)},
    "acquisition": {"AcquisitionNumber": (1, 2, 10)},
    "b-value": {"DiffusionBValue": (0.0, 500.0, 1000.0)},
    "image type": {"ImageType": tuple(["ORIGINAL", "PRIMARY", c] for c in "MPR")},
    "inversion time": {"InversionTime": (100, 900, 1000)},
}


def write_volumes(folder, volumes, instance, **elements):
    """Write volumes (v, z, y, x) as slices, whose number is `instance(v, z)`."""
    for v, volume in enumerate(volumes):
        for z, plane in enumerate(volume):
            changing = {name: value(v, z) if callable(value) else value[v] for name, value in elements.items()}
            number = {"InstanceNumber": instance(v, z)} if instance else {"InstanceNumber": None}
            save(new_slice(plane, z, **number, **changing), folder / f"{(7 * v + 3 * z) % 11:02}-{v}-{z}.dcm")
    return folder


@pytest.mark.parametrize("order", [lambda v, z: v * 5 + z, lambda v, z: z * 3 + v, lambda v, z: (v * 5 + z) * 7 % 31])
@pytest.mark.parametrize("name", SERIES_DIFFERENCES)
def test_volumes_of_one_series(tmp_path, name, order):
    volumes = voxels(3)
    folder = write_volumes(
        tmp_path / "series",
        volumes,
        order,
        **SERIES_DIFFERENCES[name],
        # Each slice has its own time: it does not tell volumes apart.
        AcquisitionTime=lambda v, z: f"{120000 + 100 * v + 7 * z}",
    )
    refused(folder, rf"differ in {name}, holds 3 volumes: pass volume= \(--volume on the command line\), 0 to 2")
    for number, volume in enumerate(volumes):
        agree(open_source(folder, volume=number), volume, files.affine_of())
    np.testing.assert_array_equal(open_image(folder, channel_axis=0).read(WHOLE), volumes)


@pytest.mark.parametrize("order", [lambda v, z: v * 5 + z, lambda v, z: z * 3 + v, lambda v, z: 100 - (v * 5 + z)])
def test_volumes_in_the_order_of_their_slices(tmp_path, order):
    volumes = voxels(3)
    folder = write_volumes(tmp_path / "series", volumes, order)
    refused(folder, "differ in the order of their files, holds 3 volumes")
    numbers = range(3) if order(1, 0) > order(0, 0) else range(2, -1, -1)
    for number, volume in zip(numbers, volumes, strict=True):
        agree(open_source(folder, volume=number), volume, files.affine_of())


@pytest.mark.parametrize("order", [None, lambda v, z: z, lambda v, z: (v * 5 + z) * 7 % 31])
def test_volumes_that_nothing_tells_apart(tmp_path, order):
    folder = write_volumes(tmp_path / "series", voxels(3), order)
    refused(folder, "several slices of one place.*nothing that tells 3 volumes apart")


def test_an_incomplete_volume(tmp_path):
    folder = write_volumes(tmp_path / "series", voxels(3), lambda v, z: v * 5 + z, AcquisitionNumber=(1, 2, 3))
    next(folder.glob("*-2-4.dcm")).unlink()
    refused(
        folder, r"several slices of one place.* \(3, but 2 of another place\): .* copy the whole series again", volume=0
    )


def test_moments_of_one_slice(tmp_path):
    volumes = voxels(4, 1)
    folder = write_volumes(tmp_path / "series", volumes, lambda v, z: v, TriggerTime=(0, 20, 40, 100))
    refused(folder, "differ in trigger time, holds 4 volumes")
    np.testing.assert_array_equal(open_source(folder, volume=3).read(WHOLE), volumes[3])
    folder = write_volumes(tmp_path / "unclear", volumes, None)
    refused(folder, "several slices of one place")


# Compressed voxels.


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_compressed_frames(tmp_path, syntax):
    """Frames of JPEG have scales and an order of their own, too, and MONOCHROME1 is as stored."""
    [volume] = voxels(1)
    order = [3, 0, 4, 1, 2]
    groups = [
        groups_of(z, PixelValueTransformationSequence={"RescaleSlope": 1 + z, "RescaleIntercept": 0}) for z in order
    ]
    dataset = new_enhanced(volume[order], groups, PhotometricInterpretation="MONOCHROME1")
    dataset.compress(syntax, generate_instance_uid=False)
    source = open_source(save(dataset, tmp_path / "a.dcm"))
    agree(source, volume.astype(int) * np.arange(1, 6)[:, None, None], files.affine_of())


@pytest.mark.parametrize(
    "name",
    [
        *("SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm", "SC_rgb_rle.dcm", "SC_rgb_small_odd_big_endian.dcm"),
        *("MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "image_dfl.dcm", "693_J2KI.dcm"),
        *("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "J2K_pixelrep_mismatch.dcm"),
        *("JPEGLSNearLossless_16.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm"),
        *("SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm", "examples_overlay.dcm", "rtdose_expb_1frame.dcm"),
    ],
)
def test_voxels_are_those_of_pydicom(name):
    path = written_by_pydicom(name)
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    read = np.stack(open_image(path).read(WHOLE), -1)[0]
    np.testing.assert_array_equal(read.squeeze(), expected)


def test_no_internals_in_messages(tmp_path):
    dataset = pydicom.dcmread(written_by_pydicom("MR_small_jp2klossless.dcm"))
    path = tmp_path / "a.dcm"
    dataset.save_as(path)
    data = path.read_bytes()
    at = data.index(b"\xff\x4f\xff\x51")
    for damaged in (data[: at + 1000], data[:at] + bytes(40) + data[at + 40 :]):
        path.write_bytes(damaged)
        refused(path, r"a.dcm cannot be read as DICOM: it.*, so copy or export it again")
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.99"))
    refused(path, r"compressed in a way that is not read \(1.2.840.10008.1.2.4.99\): decompress it")
