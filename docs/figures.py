"""Draw the pictures of the documentation from a phantom, with the code itself: ``python docs/figures.py``."""

import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

import dseeds
from dseeds.core.geometry import Box, Lattice, Window
from dseeds.phantom import phantom
from dseeds.seeds.binning import quantise_window
from dseeds.seeds.in_memory import run_rounds
from dseeds.seeds.kernels.label_codes import write_global_labels
from dseeds.seeds.kernels.layout import new_window
from dseeds.seeds.order_statistics import find_windows
from dseeds.seeds.schedule import schedule

FOLDER = Path(__file__).with_name("pictures")
SHAPE, STEP, PLANE = (64, 160, 160), 16, 40
AMBER, BLUE, PINK = "#ffb21a", "#00d0ff", "#ff6db0"
# The four colours of units.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


def stages(image: NDArray[np.uint16]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and the labels of some stages: the lattice, and the state after some of the rounds."""
    lattice = Lattice(SHAPE, (STEP, STEP, STEP))
    bins = new_window(SHAPE, 0, channels=1)
    quantise_window((image,), find_windows((image,), (None,)), bins)
    rounds = schedule(lattice)
    levels = [round_.level for round_ in rounds]
    names = {
        levels.count(0): "blocks of 8",
        levels.count(0) + levels.count(1): "blocks of 4",
        levels.index(3): "blocks of 2",
        levels.index(3) + 1: "voxels, first round",
        len(rounds): "voxels, last round",
    }
    yield "the lattice", 1 + np.ravel_multi_index(np.ix_(*lattice.grids[-1].cells), lattice.cells)
    for count, name in names.items():
        codes, grid = run_rounds(lattice, bins, rounds[:count]), lattice.grids[levels[count - 1]]
        units = np.empty(grid.shape, np.uint32)
        write_global_labels(codes, grid.cells, lattice.cells, units)
        for axis, edges in enumerate(grid.edges):
            units = np.repeat(units, np.diff(edges), axis=axis)
        yield name, units


def show(axes: Axes, plane: NDArray[np.uint16], labels: NDArray[Any] | None = None) -> None:
    """Draw a plane, with the borders between labels along the edges of its pixels."""
    axes.imshow(plane, cmap="gray", vmin=0, vmax=2600, interpolation="nearest")
    axes.set_axis_off()
    if labels is None:
        return
    for axis in (0, 1):
        rows, columns = np.nonzero(np.diff(labels.astype(np.int64), axis=axis))
        # Each border is a line as long as a pixel, half a pixel further along the axis.
        ends = np.array([[-0.5, 0.5], [0.5, 0.5]] if axis == 0 else [[0.5, 0.5], [-0.5, 0.5]])
        x = np.stack([columns + ends[0, 0], columns + ends[0, 1], np.full(len(rows), np.nan)], axis=1)
        y = np.stack([rows + ends[1, 0], rows + ends[1, 1], np.full(len(rows), np.nan)], axis=1)
        axes.plot(x.ravel(), y.ravel(), color=AMBER, linewidth=0.7, solid_capstyle="butt")


def draw_stages(image: NDArray[np.uint16]) -> Figure:
    """Draw one plane of the lattice and after some of the rounds."""
    figure, grid = plt.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
    for axes, (name, labels) in zip(grid.flat, stages(image), strict=True):
        show(axes, image[PLANE], labels[PLANE])
        axes.set_title(name, fontsize=10)
    return figure


def draw_compactness(image: NDArray[np.uint16]) -> Figure:
    """Draw one plane with three settings of compactness."""
    figure, grid = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    for axes, compactness in zip(grid, (0, 1, 10), strict=True):
        show(axes, image[PLANE], dseeds.supervoxels(image, step=STEP, compactness=compactness)[PLANE])
        axes.set_title(f"compactness {compactness}", fontsize=10)
    return figure


def draw_seams(image: NDArray[np.uint16]) -> Figure:
    """Draw one plane of four chunks segmented separately, and of the volume segmented as a whole."""
    chunks, half = np.empty(SHAPE, np.uint32), SHAPE[1] // 2
    for number, (y, x) in enumerate(product((0, half), (0, half))):
        part = np.s_[:, y : y + half, x : x + half]
        chunks[part] = dseeds.supervoxels(image[part], step=STEP) + number * 10**6
    figure, grid = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
    for axes, labels, name in zip(
        grid,
        (chunks, dseeds.supervoxels(image, step=STEP)),
        ("each chunk on its own", "as one, however it is cut"),
        strict=True,
    ):
        show(axes, image[PLANE], labels[PLANE])
        axes.set_title(name, fontsize=10)
    for draw in (grid[0].axhline, grid[0].axvline):
        draw(half - 0.5, color=BLUE, linewidth=1.2, linestyle="--")
    return figure


def draw_colours() -> Figure:
    """Draw three planes of units in their four colours, and one unit with its 18 neighbours."""
    figure, grid = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
    middle = (1, 2, 3)
    for z, axes in enumerate(grid):
        for y, x in product(range(6), range(7)):
            axes.add_patch(Rectangle((x, y), 1, 1, color=COLOURS[(x + y) % 2 + 2 * ((y + z) % 2)], linewidth=0))
            distances = sorted(abs(a - b) for a, b in zip((z, y, x), middle, strict=True))
            if distances == [0, 0, 0]:
                axes.text(x + 0.5, y + 0.5, "u", ha="center", va="center", fontsize=14, weight="bold", color="white")
            elif distances[2] == 1 and distances[0] == 0:
                axes.text(x + 0.5, y + 0.5, "•", ha="center", va="center", fontsize=13, color="white")
        axes.set(xlim=(0, 7), ylim=(6, 0), aspect="equal", xticks=[], yticks=[])
        axes.set_title(("the plane before", "the plane of u", "the plane after")[z], fontsize=10)
    return figure


def draw_region(image: NDArray[np.uint16]) -> Figure:
    """Draw a region, its window in a voxel round, and the cells whose statistics it changes."""
    lattice = Lattice(SHAPE, (STEP, STEP, STEP))
    cells, voxels = Box((0, 3, 3), (4, 7, 7)), lattice.grids[-1]
    halo = schedule(lattice)[-1].halo
    core = voxels.units_of(cells)
    boxes = {
        "the region: what the task writes": (core, BLUE, "-"),
        f"its window: a halo of {halo} voxels more": (Window.around(lattice, voxels, cells, halo).box, AMBER, "--"),
        "one cell more: whose statistics it changes": (
            voxels.units_of(cells.grow(1, lattice.cells)),
            PINK,
            ":",
        ),
    }
    figure, axes = plt.subplots(figsize=(5.6, 6.4), layout="constrained")
    show(axes, image[PLANE])
    for line in range(0, SHAPE[1] + 1, STEP):
        axes.axhline(line - 0.5, color="white", linewidth=0.3)
        axes.axvline(line - 0.5, color="white", linewidth=0.3)
    for name, (box, colour, style) in boxes.items():
        (_, y, x), (_, height, width) = box.lo, box.shape
        axes.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5), width, height, fill=False, color=colour, linestyle=style, linewidth=2.5, label=name
            )
        )
    figure.legend(loc="outside lower center", fontsize=10, frameon=False)
    return figure


def save(figure: Figure, name: str) -> None:
    """Save a figure with a palette, which makes the file several times smaller."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)


def main() -> None:
    """Draw and save all pictures."""
    mpl.use("agg")
    FOLDER.mkdir(exist_ok=True)
    image, _ = phantom(SHAPE)
    save(draw_stages(image), "stages.png")
    save(draw_compactness(image), "compactness.png")
    save(draw_seams(image), "seams.png")
    save(draw_colours(), "colours.png")
    save(draw_region(image), "region.png")


if __name__ == "__main__":
    main()
