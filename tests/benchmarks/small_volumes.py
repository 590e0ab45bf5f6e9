"""How long small volumes take from the first second: cold starts, many volumes, and a whole CT from file to file.

Every figure is the best of several runs, and stands beside what it is compared with in the same run:

    .venv/bin/python tests/benchmarks/small_volumes.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np

from dseeds.phantom import phantom

SHAPE = (35, 51, 35)
CT_SHAPE = (300, 512, 512)
STEP = 8

FIRST_CALL = f"""
import time
import numpy as np
import dseeds
from dseeds import supervoxels

image = np.load("image.npy")
start = time.perf_counter()
supervoxels(image, step={STEP})
print(time.perf_counter() - start)
"""
LOOP = f"""
import time
import nibabel
import numpy as np
import dseeds

dseeds.supervoxels(np.load("image.npy"), step={STEP})
start = time.perf_counter()
for number in range({{count}}):
    dseeds.supervoxels(np.asarray(nibabel.load(f"many/{{{{number}}}}.nii.gz").dataobj).T, step={STEP})
print(time.perf_counter() - start)
"""
SLIC = """
import sys
import SimpleITK as sitk

image = sitk.ReadImage("ct.nii.gz", sitk.sitkFloat32)
slic = sitk.SLICImageFilter()
slic.SetSuperGridSize([16, 16, 16])
slic.SetMaximumNumberOfIterations(5)
sitk.WriteImage(slic.Execute(image), "slic.nii.gz", useCompression=True)
"""


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a command in a folder, and return what it prints."""
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def best(repeats: int, action: Callable[[], object]) -> float:
    """Return the shortest of several durations in seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def save(path: Path, image: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(image.T, np.diag([1.0, 1.0, 1.0, 1.0])), path)


def measure_cold_starts(folder: Path, repeats: int) -> None:
    """Print what the first calls take."""
    image = phantom(SHAPE)[0].astype(np.int16)
    np.save(folder / "image.npy", image)
    save(folder / "image.nii.gz", image)
    segment = (sys.executable, "-m", "dseeds", "segment", "image.nii.gz", "labels.nii.gz", "--step", str(STEP))
    command = (*segment, "--overwrite", "--quiet")
    first = best(1, lambda: run(folder, *command, DSEEDS_CACHE_DIR=str(folder / "empty")))
    print(f"first run ever, dseeds segment: {first:.1f} s")
    run(folder, *command)
    imports = best(repeats, lambda: run(folder, sys.executable, "-c", "import numba, nibabel, numpy"))
    again = best(repeats, lambda: run(folder, *command))
    print(f"later run, dseeds segment: {again:.2f} s, {again / imports:.2f} times import numba, nibabel, numpy")
    call = min(float(run(folder, sys.executable, "-c", FIRST_CALL)) for _ in range(repeats))
    print(f"first supervoxels of a process, beyond the imports: {call:.2f} s")


def measure_many(folder: Path, count: int) -> None:
    """Print what many volumes take with one command."""
    (folder / "many").mkdir()
    image = phantom(SHAPE)[0].astype(np.int16)
    for number in range(count):
        save(folder / "many" / f"{number}.nii.gz", np.roll(image, number, axis=2))
    into = ("--into", "labels", "--step", str(STEP), "--overwrite", "--quiet")
    sources = [f"many/{number}.nii.gz" for number in range(count)]
    one = best(2, lambda: run(folder, sys.executable, "-m", "dseeds", "segment", sources[0], *into))
    together = best(2, lambda: run(folder, sys.executable, "-m", "dseeds", "segment", *sources, *into))
    loop = float(run(folder, sys.executable, "-c", LOOP.format(count=count)))
    print(f"{count} volumes with one command, after start-up: {together - one:.2f} s")
    print(f"the same as calls of supervoxels: {loop:.2f} s")


def measure_ct(folder: Path, repeats: int, shape: tuple[int, int, int]) -> None:
    """Print what a whole CT takes from file to file, and SimpleITK's SLIC with all threads."""
    save(folder / "ct.nii.gz", (phantom(shape)[0].astype(np.int16) - 1024))
    segment = (sys.executable, "-m", "dseeds", "segment", "ct.nii.gz", "labels.nii.gz", "--step", "16")
    ours = best(repeats, lambda: run(folder, *segment, "--overwrite", "--quiet"))
    print(f"CT of {shape}, dseeds segment, NIfTI in and out: {ours:.1f} s")
    theirs = best(1, lambda: run(folder, sys.executable, "-c", SLIC))
    print(f"SimpleITK's SLIC on the same, 5 iterations, all threads: {theirs:.1f} s, {theirs / ours:.1f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=100, help="volumes with one command")
    parser.add_argument("--ct-shape", type=int, nargs=3, default=CT_SHAPE, help="0 0 0 for none")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        measure_cold_starts(folder, arguments.repeats)
        measure_many(folder, arguments.count)
        if all(arguments.ct_shape):
            z, y, x = arguments.ct_shape
            measure_ct(folder, min(arguments.repeats, 3), (z, y, x))


if __name__ == "__main__":
    main()
