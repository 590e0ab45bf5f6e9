"""`describe` and `dseeds info`: everything that `segment` takes, with the options to choose."""

import re

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

from dseeds import cli
from dseeds.convert.describe import describe
from dseeds.io import ome_image_attributes, open_image


def test_volumes_to_choose_from(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4, 3), "i2"), np.diag([0.5, 0.5, 2, 1])), tmp_path / "a.nii.gz")
    description = describe(tmp_path / "a.nii.gz")
    assert (description["shape"], description["spacing"]) == ([4, 5, 6], [2, 0.5, 0.5])
    assert description["further_axes"] == {"t": 3}
    assert description["options"].startswith("pass volume= (--volume on the command line), 0 to 2, to say which, or")
    assert "further_axes" not in describe(tmp_path / "a.nii.gz", volume=1)


@pytest.mark.parametrize("axes", ["czyx", "tzyx", "tczyx"])
@pytest.mark.parametrize("channels", [2, 20])
def test_channels_and_times(tmp_path, axes, channels):
    sizes = {"c": channels, "t": 3, "z": 4, "y": 5, "x": 6}
    group = zarr.create_group(
        tmp_path / "a.zarr", attributes={"ome": ome_image_attributes(spacing=(2, 1, 1), name="a", axes=axes)}
    )
    group.create_array("0", data=np.zeros([sizes[axis] for axis in axes], "u1"))
    description = describe(tmp_path / "a.zarr")
    assert description["shape"] == [4, 5, 6]
    assert description["further_axes"] == {axis: sizes[axis] for axis in axes if axis in "tc"}
    assert "channel_axis=" in description["options"] or channels > 16


def test_colours(tmp_path):
    packed = np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])
    nibabel.save(nibabel.Nifti1Image(packed, np.eye(4)), tmp_path / "a.nii")
    assert describe(tmp_path / "a.nii")["channels"] == open_image(tmp_path / "a.nii").channels == 4
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 6, 3), "u1"), photometric="rgb")
    description = describe(tmp_path / "a.tif")
    assert (description["further_axes"], description["options"]) == ({"c": 3}, "all channels are taken together")


def test_microscopes_are_shown_in_micrometres(tmp_path, capsys):
    for spacing, shown in (((0.002, 0.0005, 0.0005), "2 x 0.5 x 0.5"), ((2.0, 0.5, 0.5), "2 x 0.5 x 0.5")):
        nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), "u1"), np.diag([*spacing[::-1], 1])), tmp_path / "a.nii")
        assert cli.main(["info", str(tmp_path / "a.nii")]) == 0
        out = capsys.readouterr().out
        assert re.search(
            rf"^spacing \(z, y, x\) +\S+ x \S+ x \S+ {'um' if spacing[0] < 1 else 'mm'} *$", out, re.MULTILINE
        )
        assert shown in out
