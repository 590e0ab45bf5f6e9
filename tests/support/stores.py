"""An image with its labels, faults, and checks of a bucket for tests of runs on an object store."""

import numpy as np
import pytest
import zarr

from dseeds import segment, supervoxels
from dseeds.io import ome_label_attributes
from tests.support.faulty_store import Faults

IMAGE = np.random.default_rng(0).integers(-100, 1000, (8, 8, 15), dtype="i2")
# Two regions, and few rounds.
FEW = {"step": 2, "region": 8}
LABELS = supervoxels(IMAGE, step=2)
SPACING = (2.0, 0.5, 0.5)
NAMES = {"zarr.json", "0/zarr.json", "0/c/0/0/0", "0/c/0/0/1"}
# About every eighth request fails, throughout the run.
FAULTS = {
    "errors": Faults(error_every=8),
    "slow down": Faults(error_every=8, status=503),
    "slow": Faults(slow_every=8, delay=0.2),
    "dropped": Faults(drop_every=8),
    "answers lost": Faults(lose_every=8),
    "answers cut": Faults(cut_every=8),
    "all": Faults(error_every=13, drop_every=17, lose_every=19, cut_every=11, slow_every=23, delay=0.1),
}


class When:
    """A progress that calls `do` once, after the first task of a stage."""

    def __init__(self, stage, do):
        self.stage, self.do, self.happened = stage, do, False

    def dashboard(self, link):
        pass

    def begin(self, stage, total):
        pass

    def advance(self, stage):
        if stage == self.stage and not self.happened:
            self.happened = True
            self.do()

    def end(self, stage):
        pass


both = pytest.mark.parametrize("client", ["threads", "processes"], indirect=True)


def save(place, voxels):
    """Write an OME-Zarr image."""
    ome = ome_label_attributes(spacing=SPACING, source="x")
    del ome["image-label"]
    group = zarr.create_group(place.zarr(), attributes={"ome": ome})
    array = group.create_array("0", shape=voxels.shape, dtype=voxels.dtype, chunks=(8, 8, 8))
    array[:] = voxels


def check_labels(place, spacing=SPACING):
    """Check that the location holds the labels, and nothing else."""
    assert set(place.names()) == NAMES
    group = zarr.open_group(place.zarr(), mode="r")
    np.testing.assert_array_equal(group["0"][:], LABELS)
    [scale] = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": list(spacing)}
    assert group.attrs["ome"]["image-label"] == {"version": "0.5"}
    assert group.attrs["dseeds"]["supervoxels"] == LABELS.max()


def check_left(bucket, spacing=SPACING):
    """Check that the bucket holds the image, the labels and the notes, and nothing else."""
    check_labels(bucket.at("labels.zarr"), spacing)
    assert {name.partition("/")[0] for name in bucket.names()} == {"image.zarr", "labels.zarr", "labels.zarr-notes"}
    assert bucket.read("labels.zarr-notes/a") == b"precious"


def run(bucket, client, **more):
    return segment(f"{bucket.address}/image.zarr", f"{bucket.address}/labels.zarr", client=client, **{**FEW, **more})
