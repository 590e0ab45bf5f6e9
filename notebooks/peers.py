"""dseeds and its peers with their settings, behind one interface: what the benchmark study and the benchmarks compare.

All work in one thread, and see the same volume, the same window of intensities and the same cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np

import dseeds
from dseeds.core.geometry import Lattice, Triple

REPEATS = 3
Window = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A volume to be cut.

    Parameters
    ----------
    name : str
        What it is called.
    step : tuple of int
        The cells' size along (z, y, x), in voxels.
    image : ndarray, shape (z, y, x), or (c, z, y, x) where there are channels
        The intensities.
    truth : ndarray of integers, shape (z, y, x), or None
        The true structures, 0 is background.
    windows : tuple of (float, float)
        For each channel, the intensities between which differences count.
    """

    name: str
    step: Triple
    image: np.ndarray
    truth: np.ndarray | None
    windows: tuple[Window, ...]

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""
        z, y, x = self.image.shape[-3:]
        return z, y, x

    @property
    def count(self) -> int:
        """How many supervoxels every method is to make: a cell each."""
        return Lattice(self.shape, self.step).size

    @property
    def channel_axis(self) -> int | None:
        """Where channels lie, if there are any."""
        return None if self.image.ndim == 3 else 0

    @cached_property
    def scaled(self) -> np.ndarray:
        """The image for the peers, from 0 to 1, shape as that of the image."""
        out = np.empty(self.image.shape, np.float32)
        pairs = zip(out.reshape(-1, *self.shape), self.image.reshape(-1, *self.shape), strict=True)
        for (scaled, channel), (lo, hi) in zip(pairs, self.windows, strict=True):
            scaled[:] = np.clip((channel - lo) / (hi - lo), 0, 1)
        return out


@dataclass(frozen=True)
class Method:
    """A way to cut a case into labels from 1: dseeds, or a peer with a setting.

    The setting is SLIC's compactness, SimpleITK's spatial proximity weight, or voxels along the reference's smallest
    blocks and whether it visits blocks twice.
    """

    peer: str
    setting: str
    cut: Callable[[Case], np.ndarray]
    takes_channels: bool = True

    @property
    def name(self) -> str:
        """The peer and its setting."""
        return f"{self.peer} {self.setting}".strip()


def methods() -> list[Method]:
    """List the methods that are installed, ours first."""
    found = [Method("dseeds", "", _dseeds)]
    if find_spec("skimage"):
        found += [Method("SLIC", f"{c}", _slic(c)) for c in (0.03, 0.1, 0.3)]
    else:
        print("The SLIC of scikit-image, which is not installed, is left out.")
    if find_spec("SimpleITK"):
        found += [Method("SimpleITK SLIC", f"{w}", _simpleitk(w)) for w in (10, 30, 60, 100)]
    else:
        print("The SLIC of SimpleITK, which is not installed, is left out.")
    if find_spec("python_3d_seeds"):
        found += [
            Method("3D SEEDS", f"{block}{' double' * double}", _reference(block, double), takes_channels=False)
            for block, double in product((1, 2), (False, True))
        ]
    else:
        print("The 3D SEEDS reference, python_3d_seeds, which is not installed, is left out.")
    return found


def best(run: Callable[[], Any], repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Give the least seconds that a call takes."""
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def _dseeds(case: Case) -> np.ndarray:
    return dseeds.supervoxels(
        case.image, step=case.step, window=case.windows, channel_axis=case.channel_axis, threads=1
    )


def _slic(compactness: float) -> Callable[[Case], np.ndarray]:
    def cut(case: Case) -> np.ndarray:
        from skimage.segmentation import slic

        return slic(
            case.scaled,
            n_segments=case.count,
            compactness=compactness,
            spacing=[max(case.step) / s for s in case.step],
            # Three sequences of an MR are no colours.
            convert2lab=False,
            channel_axis=case.channel_axis,
            start_label=1,
        )

    return cut


def _simpleitk(weight: float) -> Callable[[Case], np.ndarray]:
    def cut(case: Case) -> np.ndarray:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        vectors = case.channel_axis is not None
        values = np.moveaxis(case.scaled, 0, -1) if vectors else case.scaled
        labels = sitk.SLIC(
            sitk.GetImageFromArray(values * 255, isVector=vectors),
            superGridSize=case.step[::-1],
            spatialProximityWeight=weight,
            maximumNumberOfIterations=10,
        )
        return sitk.GetArrayFromImage(labels).astype(np.int64) + 1

    return cut


def _reference(block: int, double: bool) -> Callable[[Case], np.ndarray]:
    def cut(case: Case) -> np.ndarray:
        levels = (min(case.step) // block).bit_length()
        seeds = _grid(case.shape, *_closest_grid(case.shape, case.count, levels), double)
        seeds.iterate(case.scaled, 12)
        return seeds.getLabels() + 1

    return cut


def _grid(shape: Triple, count: int, levels: int, double: bool = False) -> object:
    import python_3d_seeds

    z, y, x = shape
    return python_3d_seeds.createSupervoxelSEEDS(
        width=x, height=y, depth=z, channels=1, num_superpixels=count, num_levels=levels, double_step=double
    )


@cache
def _closest_grid(shape: Triple, count: int, levels: int) -> tuple[int, int]:
    """Find what to ask the reference for to get a count: it rounds down, and drops what its blocks do not divide."""
    best, off = (count, levels), count
    for asked in product(range(count, 2 * count, 1 + count // 20), range(levels, 1, -1)):
        found = abs(_grid(shape, *asked).getNumberOfSuperpixels() - count)
        if found < off:
            best, off = asked, found
        if off == 0:
            break
    return best
