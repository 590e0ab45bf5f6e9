"""Intensities as bins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.compilation import jit
from dseeds.kernel.layout import enter
from dseeds.kernel.voxels import BINS
from dseeds.windows import SLAB_BYTES, plain


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse what has no intensities.

    Raises
    ------
    TypeError
        If the dtype is neither an integer nor a float of at most 64 bits.
    """
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise TypeError(f"supervoxels need integer or float intensities of at most 64 bits, but the image is {dtype}.")


@jit
def _quantise(values: NDArray[Any], lo: float, hi: float, bins: NDArray[np.uint8]) -> bool:
    # Halved where the widest float64 windows would overflow.
    unit = 1.0 if np.isfinite(hi - lo) else 0.5
    width = unit * hi - unit * lo
    finite = False
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                value = np.float64(values[z, y, x])
                # Infinities and NaN give NaN.
                finite |= value - value == 0
                # At and below the window, and NaN.
                bins[z, y, x] = 0
                if value >= hi:
                    bins[z, y, x] = BINS - 1
                elif value > lo:
                    bins[z, y, x] = np.uint8(min(BINS - 1.0, (unit * value - unit * lo) / width * BINS))
    return finite


def quantise(image: NDArray[Any], window: tuple[float, float], bins: NDArray[np.uint8]) -> bool:
    """Turn intensities into 64 bins of equal width over the window, in place.

    Values outside go to the first and last bin, NaN to the first.

    Parameters
    ----------
    image : ndarray, shape (z, y, x)
        Any integer or float dtype and memory order.
    window : tuple of float
        Low and high.
    bins : ndarray of uint8, shape (z, y, x)
        Is filled; may be a view.

    Returns
    -------
    bool
        Whether the image holds a finite value.
    """
    if window[0] >= window[1]:
        bins[:] = 0
        return True
    finite = False
    thickness = max(1, SLAB_BYTES * len(image) // max(1, image.nbytes))
    for begin in range(0, len(image), thickness):
        part = slice(begin, begin + thickness)
        finite |= _quantise(plain(image[part]), *window, bins[part])
    return finite


def quantise_window(image: NDArray[Any], window: tuple[float, float], bins: NDArray[np.uint8]) -> bool:
    """Do as `quantise`, but into a window of `kernel.layout`."""
    finite = False
    thickness = max(1, SLAB_BYTES * len(image) // max(1, image.nbytes))
    for begin in range(0, len(image), thickness):
        part = image[begin : begin + thickness]
        slab = np.empty(part.shape, np.uint8)
        finite |= quantise(part, window, slab)
        enter(slab, begin, bins)
    return finite
