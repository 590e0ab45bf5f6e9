"""Labels from the kernels, and the owners of units."""

import numpy as np

from dseeds.core.geometry import Lattice
from dseeds.seeds.in_memory import run_rounds
from dseeds.seeds.kernels.label_codes import write_global_labels
from dseeds.seeds.kernels.layout import (
    new_window,
    pack_box,
)
from dseeds.seeds.kernels.voxels import MASKED
from dseeds.seeds.schedule import schedule


def owners(lattice, grid, labels):
    """Return the numbers of the cells that own the units of a window of the whole volume."""
    out = np.zeros(grid.shape, np.uint32)
    write_global_labels(labels, grid.cells, lattice.cells, out)
    return out.astype(np.int64) - 1


def climbed(channels, step, weights=(1,), inside=None, compactness=0, threads=1):
    """Return the labels of a run in memory on bins, (c, z, y, x)."""
    lattice = Lattice(channels[0].shape, step)
    bins = new_window(lattice.shape, 0, len(channels))
    for window, channel in zip(bins, channels, strict=True):
        pack_box(channel if inside is None else np.where(inside, channel, np.uint8(MASKED)), (0, 0, 0), window)
    labels = run_rounds(
        lattice,
        bins,
        schedule(lattice, len(channels)),
        compactness=compactness,
        threads=threads,
        weights=weights,
        masked=inside is not None,
    )
    return owners(lattice, lattice.grids[-1], labels) + 1
