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

    A few hot pixels may reach far beyond all other intensities:

    >>> counts = np.array([[900, 80, 0, *[0] * 60, 20]])
    >>> [sentence] = describe_contrast([(0.0, 9.0)], counts, 1000, has_threshold=False)
    >>> sentence.partition(":")[0]
    '2 % of the voxels lie at the upper end of the window 0 to 9, and nearly all others in its lowest sixteenth'
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
    for channel, (limits, own) in enumerate(zip(windows, counts[:, :BINS].tolist(), strict=True)):
        where = "" if len(windows) == 1 else f" of channel {channel}"
        if limits[0] < limits[1]:
            sentences.append(_describe_channel(limits, own, inside, where))
    return tuple(filter(None, sentences))


def describe_knees(windows: Sequence[Limits], knees: Sequence[float | None]) -> tuple[str, ...]:
    """Return a sentence for each channel whose bins have a knee, see `dseeds.seeds.order_statistics`.

    >>> describe_knees([(0.0, 900.0), (0.0, 9.0)], [40.0, None])[0].partition(":")[0]
    'of the intensity bins of channel 0, half are below and half above 40, since few voxels widen the window 0 to 900'
    """
    return tuple(
        f"of the intensity bins{'' if len(windows) == 1 else f' of channel {channel}'}, half are below and half above "
        f"{knee:g}, since few voxels widen the window {low:g} to {high:g}: if only those few matter, pass "
        'bins="linear" (--bins linear).'
        for channel, ((low, high), knee) in enumerate(zip(windows, knees, strict=True))
        if knee is not None
    )


def _describe_channel(limits: Limits, own: list[int], inside: int, where: str) -> str:
    """Return the sentence of a channel, from the voxels in each of its bins; an empty one if it has contrast."""
    window, most = f"the window {limits[0]:g} to {limits[1]:g}", max(own)
    if 100 * most > MOST_IN_A_BIN * inside:
        # Rounded down, so that no share is called 100 % that is not.
        share = f"{1000 * most // inside / 10:.4g} %" if most < inside else "all"
        beside = "" if most < inside or own[0] + own[-1] < inside else ", at or beyond an end of it"
        return (
            f"{share} of the voxels{where} share one of the 64 intensity bins of {window}{beside}, so that the "
            "supervoxels follow little of the image: pass a window around the intensities of interest, or a mask."
        )
    lowest = sum(own[: BINS // 16])
    # In an image of two values, the others share one bin.
    is_spread = 100 * (lowest - most) > inside
    if own[-1] and is_spread and 1000 * lowest > 999 * (inside - own[-1]):
        return (
            f"{100 * own[-1] / inside:.2g} % of the voxels{where} lie at the upper end of {window}, and nearly all "
            "others in its lowest sixteenth: if these few are hot pixels, pass a window around the intensities of "
            'interest, or bins="equalised".'
        )
    return ""
