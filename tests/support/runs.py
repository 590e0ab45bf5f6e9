"""Volumes, progress recorders, strategies and checks that tests of whole runs share."""

import re
import shutil
from math import prod
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st

from tests.support import oracle
from tests.support.waiting import wait_until


class Recorder:
    """A progress that records events, and may act on them."""

    def __init__(self, act=None):
        self.events = []
        self.act = act

    def _tell(self, event, stage, number):
        self.events.append((event, stage, number))
        if self.act:
            self.act(event, stage, number)

    def dashboard(self, link):
        self.link = link

    def begin(self, stage, total):
        self._tell("begin", stage, total)

    def advance(self, stage):
        self._tell("advance", stage, 1 + sum(events[:2] == ("advance", stage) for events in self.events))

    def end(self, stage):
        self._tell("end", stage, None)


def when(event, stage, number, do):
    """Return a progress that calls `do` at one point of the run, and then sets `happened`."""

    def act(*events):
        if events[:2] == (event, stage) and number in (events[2], None):
            recorder.happened = True
            do()

    recorder = Recorder(act)
    recorder.happened = False
    return recorder


def noise(shape, seed=0, dtype="float32"):
    """Return blobs in noise: boundaries move far, so every region's neighbours matter."""
    rng = np.random.default_rng(seed)
    waves = sum(
        np.sin(np.tensordot(rng.uniform(-0.6, 0.6, 3), np.indices(shape), 1) + phase) for phase in rng.uniform(0, 6, 5)
    )
    return (100 * (waves + rng.normal(size=shape))).astype(dtype)


GOOD = noise((12, 14, 40))
# Two regions, and few rounds.
FEW = {"step": 4, "region": (12, 14, 20)}
STAGES = (
    "import",
    "mask",
    "window",
    "contrast",
    "histogram",
    "quantise",
    "sweep-blocks",
    "sweep-voxels",
    "parts",
    "graph",
    "label",
    "export",
)


def labels_in(target):
    return zarr.open_array(Path(target) / "0", mode="r")[:]


def snapshot(folder):
    """Return everything in a folder: the content of files, the targets of links."""
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def assert_sentence(error):
    """Check that an error is one clear sentence that a user can act on."""
    text = str(error)
    assert "\n" not in text
    assert 20 < len(text) < 400
    assert len(text.split()) >= 4
    assert not re.search(r"[a-z]\.\s+[A-Z]", text), "more than one sentence"
    assert not re.search(r"object (is not|has no)|could not convert|cannot convert|literal for int", text), text


@st.composite
def voxels(draw, shape):
    """Draw an image of any dtype and memory order, and a window or None."""
    image = draw(oracle.images(shape))
    dtype = np.dtype(
        draw(st.sampled_from(["u1", "i1", "<i2", ">i2", "<u2", "i4", ">u4", "i8", "u8", "f2", "f4", ">f4", "f8"]))
    )
    image = (image - image.min()) / (np.ptp(image) or 1)
    if dtype.kind == "f":
        image = (image * draw(st.sampled_from([1, 1e-3, 3e4])) - draw(st.sampled_from([0, 7]))).astype(dtype)
        if draw(st.booleans()):
            places = np.random.default_rng(0).random(shape)
            image[places < 0.1], image[places > 0.95] = np.nan, np.inf
            image.flat[0] = 1
    else:
        top = draw(st.sampled_from([np.iinfo(dtype).max, 100, 3]))
        # The largest float below the largest 64-bit integer.
        image = np.minimum(image * top, np.nextafter(np.float64(top), 0)).astype(dtype)
    window = draw(st.sampled_from([None, None, (0.25, 0.75), (-2.5, 90)]))
    return np.asarray(image, order=draw(st.sampled_from("CF"))), window


@st.composite
def cuts(draw, lattice, at_most=12):
    """Draw a region shape for a bounded number of regions: often odd, larger than the volume, or a single cell."""
    extents, room = {}, at_most
    for axis in draw(st.permutations(range(3))):
        count, step = lattice.cells[axis], lattice.step[axis]
        regions = draw(st.integers(1, min(room, count)))
        cells = -(-count // regions)
        room //= -(-count // cells)
        # Rounds up to the same number of cells.
        extents[axis] = cells * step - draw(st.integers(0, step - 1))
        if cells == count and draw(st.booleans()):
            extents[axis] += draw(st.integers(0, 300))
    return tuple(extents[axis] for axis in range(3))


@st.composite
def sizes(draw, shape):
    """Draw a step for all axes or for each, or a number of supervoxels; with or without a spacing."""
    spacing = draw(st.sampled_from([None, None, (3.27, 1.0, 1.0), (0.5, 0.75, 2)]))
    if draw(st.integers(0, 3)) == 0:
        return {"n_segments": draw(st.integers(1, max(1, prod(shape) // 30))), "spacing": spacing}
    step = draw(oracle.steps)
    return {"step": step[0] if step == step[:1] * 3 else step, "spacing": spacing}


def as_zarr(path, image, chunk):
    array = zarr.create_array(path, shape=image.shape, dtype=image.dtype, chunks=[min(chunk, n) for n in image.shape])
    array[:] = image
    return path


@st.composite
def mostly_constant(draw):
    """Draw a constant volume with small islands of noise."""
    shape = draw(st.permutations((draw(st.integers(90, 150)), 16, draw(st.integers(8, 20)))))
    image = np.zeros(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(1, 3))):
        lo = [int(rng.integers(0, n - 4)) for n in shape]
        island = tuple(slice(a, a + int(rng.integers(3, 16))) for a in lo)
        image[island] = rng.normal(3, 1, image[island].shape)
    step = draw(st.sampled_from([4, 8, (3, 8, 5)]))
    return image, {"step": step, "window": (0, 6), "compactness": draw(st.sampled_from([0, 1]))}


def text(target):
    target.write_text("precious")


def folder(target):
    target.mkdir()


def interrupt():
    raise KeyboardInterrupt


def assert_no_image(target):
    with pytest.raises(FileNotFoundError):
        zarr.open(target, mode="r")


def nifti_saver(ending, kind=nibabel.Nifti1Image):
    """Return a function that saves an image in a folder as NIfTI and returns the path."""

    def save(folder, image):
        nibabel.save(kind(image.T, np.diag([0.5, 0.75, 3.25, 1])), folder / f"a{ending}")
        return folder / f"a{ending}"

    return save


def copy_of_ours(target, ours):
    shutil.copytree(ours, target)


def assert_idle(client):
    """Check that no worker has a task, and that the scheduler soon has none of ours left."""
    assert not any(client.run(lambda dask_worker: len(dask_worker.active_keys)).values())
    # A traceback that is still referenced may hold a result.
    wait_until(lambda: not tasks_known(client, but=("memory", "erred")))


def tasks_known(client, but=("erred",)):
    """Return the keys of the scheduler's tasks, without failed ones, which live as long as their tracebacks."""

    def ask(dask_scheduler):
        return [str(key) for key, task in dask_scheduler.tasks.items() if task.state not in but]

    return client.run_on_scheduler(ask)
