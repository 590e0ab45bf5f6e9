"""Step 1: whether the intensity windows resolve the image; without contrast, supervoxels are the lattice's cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.voxels import BINS

# The share of the voxels in one bin, in hundredths, above which there is hardly any contrast.
MOST_IN_A_BIN = 99
# A mask from the image with less than one of so many voxels is hardly what was meant.
FEWEST_INSIDE = 1000


class ContrastWarning(UserWarning):
    """The intensity window or the mask of an image leaves hardly any contrast."""


@jit
def count_bins(bins: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add the voxels in each bin, uint8 (channels, z, y, x), to `counts`, int64 (channels, 256)."""
    for c in range(bins.shape[0]):
        for z in range(bins.shape[1]):
            for y in range(bins.shape[2]):
                for x in range(bins.shape[3]):
                    counts[c, bins[c, z, y, x]] += 1


def new_counts(channels: int) -> NDArray[np.int64]:
    """Return counts for `count_bins`: a bin takes a byte."""
    return np.zeros((channels, 256), np.int64)


def describe_contrast(
    windows: Sequence[Limits], counts: NDArray[np.int64], voxels: int, *, has_threshold: bool, has_map: bool = False
) -> tuple[str, ...]:
    """Return a sentence for each channel whose voxels inside the mask nearly all share a bin, as `counts` say.

    There is another if a mask by a threshold leaves few of the volume's voxels. A constant channel has no contrast to
    lose, and with a boundary map of the user's, intensities hardly matter.

    >>> [sentence] = describe_contrast([(0.0, 9.0)], np.array([[997, 3]]), 1000, has_threshold=False)
    >>> sentence.partition(",")[0]
    '99.7 % of the voxels share one of the 64 intensity bins of the window 0 to 9'
    """
    inside = int(counts[0, :BINS].sum())
    if has_threshold and inside * FEWEST_INSIDE < voxels:
        return (
            f'mask="auto" leaves {inside} of {voxels} voxels, those above a threshold within the window: pass a window '
            "around the intensities of interest, or a mask of your own.",
        )
    if has_map:
        return ()
    sentences = []
    for channel, ((low, high), own) in enumerate(zip(windows, counts[:, :BINS].tolist(), strict=True)):
        most = max(own)
        if low >= high or 100 * most <= MOST_IN_A_BIN * inside:
            continue
        where = "" if len(windows) == 1 else f" of channel {channel}"
        # Rounded down, so that no share is called 100 % that is not.
        share = f"{1000 * most // inside / 10:.4g} %" if most < inside else "all"
        beside = "" if most < inside or own[0] + own[-1] < inside else ", at or beyond an end of it"
        sentences.append(
            f"{share} of the voxels{where} share one of the 64 intensity bins of the window {low:g} to {high:g}"
            f"{beside}, so that the supervoxels follow little of the image: pass a window around the intensities of "
            "interest, or a mask."
        )
    return tuple(sentences)
