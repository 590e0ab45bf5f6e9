"""How long small volumes take from the first second: cold starts, many volumes, and a whole CT from file to file.

Every figure is the best of several, and stands beside its bar, and what it is compared with in the same run:

    .venv/bin/python tests/benchmarks/small_volumes.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
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


@dataclass(frozen=True)
class Verdict:
    """A figure beside the bar that it has to meet."""

    what: str
    figure: str
    bar: str
    is_met: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.figure}; must be {self.bar}: {'met' if self.is_met else 'MISSED'}"


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, and return what it prints."""
    environment = {**os.environ, **variables}
    # Modules are compiled once, not by each process, as where packages are installed.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)


def best(repeats: int, *actions: Callable[[], object]) -> list[float]:
    """Return the shortest of several durations of each action in seconds; the actions take turns."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats):
        for action, durations in zip(actions, seconds, strict=True):
            start = time.perf_counter()
            action()
            durations.append(time.perf_counter() - start)
    return list(map(min, seconds))


def save(path: Path, image: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(image.T, np.diag([1.0, 1.0, 1.0, 1.0])), path)


def measure_cold_starts(folder: Path, repeats: int) -> Iterator[Verdict]:
    """Measure what the first calls take."""
    image = phantom(SHAPE)[0].astype(np.int16)
    np.save(folder / "image.npy", image)
    save(folder / "image.nii.gz", image)
    segment = (sys.executable, "-m", "dseeds", "segment", "image.nii.gz", "labels.nii.gz", "--step", str(STEP))
    command = (*segment, "--overwrite", "--quiet")
    start = time.perf_counter()
    said = run(folder, *segment, "--overwrite", DSEEDS_CACHE_DIR=str(folder / "empty")).stderr
    first, is_said = time.perf_counter() - start, "compiling kernels" in said
    figure = f"{first:.1f} s, {'said' if is_said else 'not said'} on the screen"
    yield Verdict("first run ever, dseeds segment", figure, "at most 15 s and said", first <= 15 and is_said)
    run(folder, *command)
    imports, again = best(
        repeats,
        lambda: run(folder, sys.executable, "-c", "import numba, nibabel, numpy"),
        lambda: run(folder, *command),
    )
    figure = f"{again:.2f} s, {again / imports:.2f} times import numba, nibabel, numpy ({imports:.2f} s)"
    yield Verdict("later run, dseeds segment", figure, "at most 2.5 times", again <= 2.5 * imports)
    call = min(float(run(folder, sys.executable, "-c", FIRST_CALL).stdout) for _ in range(repeats))
    what = "first supervoxels of a process, beyond the imports"
    yield Verdict(what, f"{call:.2f} s", "at most 0.5 s", call <= 0.5)


def measure_many(folder: Path, count: int) -> Iterator[Verdict]:
    """Measure what many volumes take with one command."""
    (folder / "many").mkdir()
    image = phantom(SHAPE)[0].astype(np.int16)
    for number in range(count):
        save(folder / "many" / f"{number}.nii.gz", np.roll(image, number, axis=2))
    into = ("--into", "labels", "--step", str(STEP), "--overwrite", "--quiet")
    sources = [f"many/{number}.nii.gz" for number in range(count)]
    one, together = best(
        2,
        lambda: run(folder, sys.executable, "-m", "dseeds", "segment", sources[0], *into),
        lambda: run(folder, sys.executable, "-m", "dseeds", "segment", *sources, *into),
    )
    loop = float(run(folder, sys.executable, "-c", LOOP.format(count=count)).stdout)
    # A tenth of a second for each volume.
    seconds, most = together - one, max(0.1 * count, loop)
    figure = f"{seconds:.2f} s, as calls of supervoxels {loop:.2f} s"
    yield Verdict(f"{count} volumes with one command, after start-up", figure, f"at most {most:.1f} s", seconds <= most)


def measure_ct(folder: Path, repeats: int, shape: tuple[int, int, int]) -> Iterator[Verdict]:
    """Measure what a whole CT takes from file to file, and SimpleITK's SLIC with all threads."""
    save(folder / "ct.nii.gz", (phantom(shape)[0].astype(np.int16) - 1024))
    segment = (sys.executable, "-m", "dseeds", "segment", "ct.nii.gz", "labels.nii.gz", "--step", "16")
    [ours] = best(repeats, lambda: run(folder, *segment, "--overwrite", "--quiet"))
    [theirs] = best(1, lambda: run(folder, sys.executable, "-c", SLIC))
    figure = (
        f"{ours:.1f} s, SimpleITK's SLIC with 5 iterations and all threads {theirs:.1f} s: {theirs / ours:.1f} times"
    )
    yield Verdict(f"CT of {shape}, dseeds segment, NIfTI in and out", figure, "at least 5 times", theirs >= 5 * ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--count", type=int, default=100, help="volumes with one command")
    parser.add_argument("--ct-shape", type=int, nargs=3, default=CT_SHAPE, help="0 0 0 for none")
    arguments = parser.parse_args()
    z, y, x = arguments.ct_shape
    with TemporaryDirectory() as name:
        folder = Path(name)
        measurements = [measure_cold_starts(folder, arguments.repeats), measure_many(folder, arguments.count)]
        if z:
            measurements.append(measure_ct(folder, min(arguments.repeats, 3), (z, y, x)))
        for verdict in chain.from_iterable(measurements):
            print(verdict, flush=True)


if __name__ == "__main__":
    main()
