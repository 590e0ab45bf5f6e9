"""A small image with its labels, interrupted runs, and damaged files for the fault matrix."""

import itertools
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import nibabel
import numpy as np
import pytest

from dseeds import segment, supervoxels
from dseeds.engine.run import SUFFIX
from tests.support.runs import (
    Recorder,
    interrupt,
    labels_in,
    names_in,
    noise,
    when,
)

# Four regions in a row, so that not all are neighbours, and two levels of blocks.
IMAGE = noise((16, 16, 64), dtype="int16")
ASKED = {"step": 8, "region": 16}
WHOLE = supervoxels(IMAGE, step=8)
# The window search takes two turns.
FLOATS = noise((16, 16, 64))
WORK = ("window", "quantise", "sweep-blocks", "sweep-voxels", "label")


def as_nifti(path, image=IMAGE):
    nibabel.save(nibabel.Nifti1Image(image.T, np.eye(4)), path)
    return path


def read_labels(target):
    if target.name.endswith(".zarr"):
        return labels_in(target)
    return np.asarray(nibabel.load(target, mmap=False).dataobj).T


def assert_labels(target, whole=WHOLE):
    """Check that the labels are right and that nothing else lies in the folder."""
    np.testing.assert_array_equal(read_labels(target), whole)
    assert names_in(target.parent) == [target.name]


def run_folder(target):
    return target.with_name(target.name + SUFFIX)


def identity_folder(target):
    """Return the folder under the run's identity, which holds marks and scratch."""
    return next(path for path in run_folder(target).iterdir() if path.is_dir() and len(path.name) == 16)


def resume_run(target, client, source=IMAGE, whole=WHOLE, **parameters):
    report = segment(source, target, resume=True, client=client, **parameters)
    assert report.resumed
    assert_labels(target, whole)
    return report


def interrupt_run(target, client, stage="sweep-voxels", number=3, source=IMAGE, **parameters):
    """Start a run and interrupt it in a stage."""
    progress = when("advance", stage, number, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(source, target, client=client, progress=progress, **{**ASKED, **parameters})
    assert progress.happened


def once(condition, do):
    """Return a progress that calls `do` the first time that a condition holds, and then sets `happened`."""

    def act(*events):
        if not recorder.happened and condition(*events):
            recorder.happened = True
            do()

    recorder = Recorder(act)
    recorder.happened = False
    return recorder


@contextmanager
def program(*arguments):
    """Run the command line in a process group of its own, which is killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "dseeds", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            kill_group(process)


def kill_group(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    if path.is_dir():
        for inner in path.iterdir():
            remove(inner)
        path.rmdir()
    else:
        path.unlink()


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


DAMAGES = [flip, truncate, remove, zero]


def damage(files):
    for harm, path in zip(itertools.cycle(DAMAGES), files, strict=False):
        harm(path)
