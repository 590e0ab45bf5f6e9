"""dseeds and its peers with their settings, behind one interface, for the benchmark study and the benchmarks.

All run in one thread, on the same volume, with the same intensity window and the same cells.
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
    """A volume to cut into supervoxels.

    Parameters
    ----------
    name : str
        Its name in tables.
    step : tuple of int
        The size of cells along (z, y, x), in voxels.
    image : ndarray, shape (z, y, x), or (c, z, y, x) with channels
        The intensities.
    truth : ndarray of integers, shape (z, y, x), or None
        The true structures; 0 is background.
    windows : tuple of (float, float)
        The intensity window of each channel.
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
        """The number of supervoxels that every method should make, one per cell."""
        return Lattice(self.shape, self.step).size

    @property
    def channel_axis(self) -> int | None:
        """The axis of channels, or None without channels."""
        return None if self.image.ndim == 3 else 0

    @cached_property
    def scaled(self) -> np.ndarray:
        """The image for the peers, clipped and scaled to [0, 1], in its own shape."""
        result = np.empty(self.image.shape, np.float32)
        pairs = zip(result.reshape(-1, *self.shape), self.image.reshape(-1, *self.shape), strict=True)
        for (scaled, channel), (lo, hi) in zip(pairs, self.windows, strict=True):
            scaled[:] = np.clip((channel - lo) / (hi - lo), 0, 1)
        return result


@dataclass(frozen=True)
class Method:
    """A method that cuts a case into labels from 1: dseeds, or a peer with a setting.

    The setting is the compactness of scikit-image's SLIC, the spatial proximity weight of SimpleITK's, or the size of
    the reference's smallest blocks, in voxels, and whether it visits blocks twice.
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
    """List the installed methods, dseeds first."""
    result = [Method("dseeds", "", _dseeds)]
    if find_spec("skimage"):
        result += [Method("SLIC", f"{c}", _slic(c)) for c in (0.03, 0.1, 0.3)]
    else:
        print("scikit-image is not installed; its SLIC is left out.")
    if find_spec("SimpleITK"):
        result += [Method("SimpleITK SLIC", f"{w}", _simpleitk(w)) for w in (10, 30, 60, 100)]
    else:
        print("SimpleITK is not installed; its SLIC is left out.")
    if find_spec("python_3d_seeds"):
        result += [
            Method("3D SEEDS", f"{block}{' double' * double}", _reference(block, double), takes_channels=False)
            for block, double in product((1, 2), (False, True))
        ]
    else:
        print("python_3d_seeds is not installed; the 3D SEEDS reference is left out.")
    return result


def best(run: Callable[[], Any], repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of the fastest of several calls."""
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
            # Three MR sequences are not colours.
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
    """Return the request, a number and levels, for which the reference makes closest to ``count`` supervoxels.

    The reference rounds down, and drops voxels beyond its last whole block.
    """
    result, smallest = (count, levels), count
    for request in product(range(count, 2 * count, 1 + count // 20), range(levels, 1, -1)):
        difference = abs(_grid(shape, *request).getNumberOfSuperpixels() - count)
        if difference < smallest:
            result, smallest = request, difference
        if smallest == 0:
            break
    return result
