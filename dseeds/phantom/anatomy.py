"""What the body of a phantom looks like: tissues, organs, vessels, texture and noise, at any point.

Every voxel is a pure function of its global index and of the body, which is laid out once from the parameters. The
arithmetic is integers, and + - * / and sqrt on doubles, which IEEE 754 fixes to the last bit: every machine makes the
same numbers. Nothing here knows of Zarr or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import jit

Point = tuple[float, float, float]
Octaves = tuple[tuple[float, float], tuple[float, float]]
Organ = tuple[str, Point, Point, int, int]
Array = NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])

# Organs and vessels are looked up once for a tile of so many voxels along each axis.
TILE_EXTENT = 16

# What every body has, in the order of the labels: name, intensity (0 to 4095), amplitude of the texture.
TISSUES = (
    ("air", 60, 0),
    ("skin", 1240, 15),
    ("fat", 800, 25),
    ("muscle", 1130, 40),
    ("cavity", 870, 35),
    ("bone", 2500, 110),
    ("marrow", 1650, 160),
    ("disc", 1300, 20),
    ("cord", 1060, 10),
    ("vessel", 1950, 25),
)
AIR, SKIN, FAT, MUSCLE, CAVITY, BONE, MARROW, DISC, CORD, VESSEL = range(len(TISSUES))

# The first organs: name, centre and radii (z, y, x; the box is -1 to 1, feet at z = 1, back at y = 1),
# intensity, amplitude of the texture. Where two overlap, the later one wins.
ORGANS: tuple[Organ, ...] = (
    ("right lung", (-0.42, 0.00, -0.42), (0.44, 0.46, 0.29), 330, 60),
    ("left lung", (-0.42, 0.02, 0.43), (0.42, 0.44, 0.27), 330, 60),
    ("liver", (0.12, -0.08, -0.36), (0.27, 0.40, 0.33), 1380, 35),
    ("heart", (-0.26, -0.18, 0.10), (0.22, 0.22, 0.24), 1560, 30),
    ("stomach", (0.08, -0.22, 0.34), (0.19, 0.17, 0.22), 1020, 20),
    ("spleen", (0.10, 0.20, 0.56), (0.19, 0.17, 0.09), 1470, 25),
    ("right kidney", (0.38, 0.27, -0.34), (0.19, 0.11, 0.11), 1700, 60),
    ("left kidney", (0.33, 0.27, 0.34), (0.19, 0.11, 0.11), 1700, 60),
    ("pancreas", (0.22, 0.02, 0.10), (0.07, 0.07, 0.25), 1250, 50),
    ("bladder", (0.74, -0.12, 0.00), (0.13, 0.17, 0.21), 1000, 5),
)

# Random values on a lattice, smoothly interpolated, make textures and let surfaces wobble. They repeat after
# so many cells (a power of two).
NOISE_PERIOD = 32
# Two octaves each: amplitude, cells per half-width of the body. The wobble's amplitude is in half-widths, the
# texture's is a part of the tissue's.
WOBBLE: Octaves = ((0.035, 2.3), (0.012, 6.7))
TEXTURE: Octaves = ((0.6, 9.0), (0.4, 22.0))
# An outline beyond which no wobble of these amplitudes finds the skin.
SURELY_AIR = 1.45


class Body(NamedTuple):
    """What the kernel reads. Lengths are in half-widths of the body, the same along every axis.

    Organs and pieces of vessels are rows that begin with the centre and the radius of a ball around them.
    """

    level: NDArray[np.float64]  # per label: intensity
    grain: NDArray[np.float64]  # per label: amplitude of the texture
    noise: float
    key: np.uint64  # of the noise
    extent: Point  # half the box
    organs: NDArray[np.float64]  # (organs, 14): ball, matrix to the unit ball, label
    tubes: NDArray[np.float64]  # (pieces, 8): ball, from the middle to the end, radius
    lattice: NDArray[np.float32]  # (4, LATTICE, LATTICE, LATTICE): wobble along z, y, x; texture


def build_body(shape: Triple, spacing: Point, *, noise: float, organs: int, seed: int) -> tuple[Body, list[str]]:
    """Lay out the body that fills a box; with it come the names of the labels.

    The seed picks the body; `shape` and `spacing` only say how its parts share the box.
    """
    lengths = [n * s for n, s in zip(shape, spacing, strict=True)]
    # The middle length is a measure that neither a thin slab nor a long column throws off.
    z, y, x = (length / sorted(lengths)[1] for length in lengths)
    # Python promises the same random() for a seed in every version, NumPy does not.
    random = Random(seed).random
    key = np.uint64(int(random() * 2**53))
    lattice = np.array([2 * random() - 1 for _ in range(4 * NOISE_PERIOD**3)], np.float32)
    chosen = list(ORGANS[:organs])
    while len(chosen) < organs:
        chosen.append(_small_organ(chosen, organs - len(ORGANS), random))
    kinds = [*TISSUES, *((name, level, grain) for name, _, _, level, grain in chosen)]
    rows = [
        [*_ellipsoid(organ, 0.15 if organ in ORGANS else 1.0, (z, y, x), random), len(TISSUES) + k]
        for k, organ in enumerate(chosen)
    ]
    tubes = [_tube(start, end, radius, (z, y, x)) for start, end, radius in _vessels(chosen, random)]
    body = Body(
        level=np.array([level for _, level, _ in kinds], float),
        grain=np.array([grain for _, _, grain in kinds], float),
        noise=noise,
        key=key,
        extent=(z, y, x),
        organs=np.array(rows, float).reshape(-1, 14),
        tubes=np.array(tubes, float),
        lattice=lattice.reshape(4, NOISE_PERIOD, NOISE_PERIOD, NOISE_PERIOD),
    )
    return body, [name for name, _, _ in kinds]


def _small_organ(others: list[Organ], count: int, random: Callable[[], float]) -> Organ:
    """Draw one of `count` organs without a name: in the abdomen, at the roomiest of some random places."""
    shrink = min(1.0, math.sqrt(20 / count))
    z, y, x = (shrink * (0.07 + 0.11 * random()) for _ in range(3))
    balls = np.array([(*centre, max(radii)) for _, centre, radii, _, _ in others]).T

    def room(place: Point) -> float:
        dz, dy, dx = balls[0] - place[0], balls[1] - place[1], balls[2] - place[2]
        touch = balls[3] + max(z, y, x)
        return float(np.min((dz * dz + dy * dy + dx * dx) / (touch * touch)))

    places = [(0.05 + 0.75 * random(), 0.65 * random() - 0.45, 1.1 * random() - 0.55) for _ in range(40)]
    level, grain = 1000 + 70 * int(10 * random()), 20 + int(30 * random())
    return f"organ {len(others) + 1}", max(places, key=room), (z, y, x), level, grain


def _ellipsoid(organ: Organ, tilt: float, extent: Point, random: Callable[[], float]) -> list[float]:
    """Shift and turn an organ at random; return its ball and its matrix as in `Body`."""
    _, centre, radii, _, _ = organ
    middle = [(c + 0.03 * (random() - 0.5)) * e for c, e in zip(centre, extent, strict=True)]
    # A rotation from a quaternion needs no sine.
    a, b, c = (tilt * (2 * random() - 1) for _ in range(3))
    n = 1 + a * a + b * b + c * c
    turn = (
        (1 + a * a - b * b - c * c, 2 * (a * b - c), 2 * (a * c + b)),
        (2 * (a * b + c), 1 - a * a + b * b - c * c, 2 * (b * c - a)),
        (2 * (a * c - b), 2 * (b * c + a), 1 - a * a - b * b + c * c),
    )
    return [*middle, max(radii), *(v / (n * r) for row, r in zip(turn, radii, strict=True) for v in row)]


def _vessels(organs: list[Organ], random: Callable[[], float]) -> Iterator[tuple[Point, Point, float]]:
    """Yield pieces (start, end, radius) of two trunks along the spine, and of a tree in each large organ."""
    yield from _curve((-0.30, 0.10, 0.02), (0.95, 0.22, 0.07), 0.042, 0.030, random)
    yield from _curve((-0.35, 0.02, -0.12), (0.95, 0.20, -0.10), 0.042, 0.030, random)
    for _, centre, radii, _, _ in organs[: len(ORGANS)]:
        root = (max(centre[0], -0.30), 0.17, 0.04)
        yield from _curve(root, centre, 0.020, 0.016, random)
        for _ in range(int(24 * max(radii))):
            z, y, x = (c + r * (1.7 * random() - 0.85) for c, r in zip(centre, radii, strict=True))
            yield from _curve(centre, (z, y, x), 0.014, 0.005, random)


def _curve(
    start: Point, end: Point, wide: float, narrow: float, random: Callable[[], float]
) -> Iterator[tuple[Point, Point, float]]:
    """Cut a tapering curve with a random bend (a quadratic Bezier) into straight pieces."""
    pieces = 8
    bend = [(a + b) / 2 + 0.2 * (random() - 0.5) for a, b in zip(start, end, strict=True)]
    last = start
    for k in range(1, pieces + 1):
        t = k / pieces
        u = 1 - t
        here = (u * u * a + 2 * t * u * m + t * t * b for a, m, b in zip(start, bend, end, strict=True))
        z, y, x = here
        yield last, (z, y, x), wide + (narrow - wide) * t
        last = z, y, x


def _tube(start: Point, end: Point, radius: float, extent: Point) -> list[float]:
    """Return a piece of a vessel as a row of `Body`."""
    middle = [(b + a) / 2 * e for a, b, e in zip(start, end, extent, strict=True)]
    z, y, x = ((b - a) / 2 * e for a, b, e in zip(start, end, extent, strict=True))
    return [*middle, math.sqrt(z * z + y * y + x * x) + radius, z, y, x, radius]


# The kernel


def _inline(function: F) -> F:
    # A call for every voxel counts references to its arrays: that takes half the time.
    return cast(F, njit(nogil=True, inline="always")(function))


@jit
def _bell(key: np.uint64, counter: np.uint64) -> float:
    """Return noise with a standard deviation of 1: four uniform numbers from one hash, added up."""
    bits = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    low = np.uint64(0xFFFF)
    total = (bits >> np.uint64(48)) + ((bits >> np.uint64(32)) & low)
    total += ((bits >> np.uint64(16)) & low) + (bits & low)
    return (np.int64(total) - 131070) / 37837.0


@jit
def _smooth(lattice: NDArray[np.float32], n: int, z: float, y: float, x: float) -> float:
    """Interpolate the values on a lattice at a point, with a continuous slope."""
    fz, fy, fx = math.floor(z), math.floor(y), math.floor(x)
    z, y, x = z - fz, y - fy, x - fx
    z, y, x = z * z * (3 - 2 * z), y * y * (3 - 2 * y), x * x * (3 - 2 * x)
    last = NOISE_PERIOD - 1
    z0, y0, x0 = int(fz) & last, int(fy) & last, int(fx) & last
    z1, y1, x1 = (z0 + 1) & last, (y0 + 1) & last, (x0 + 1) & last
    a = lattice[n, z0, y0, x0] * (1 - x) + lattice[n, z0, y0, x1] * x
    b = lattice[n, z0, y1, x0] * (1 - x) + lattice[n, z0, y1, x1] * x
    c = lattice[n, z1, y0, x0] * (1 - x) + lattice[n, z1, y0, x1] * x
    d = lattice[n, z1, y1, x0] * (1 - x) + lattice[n, z1, y1, x1] * x
    return float((a * (1 - y) + b * y) * (1 - z) + (c * (1 - y) + d * y) * z)


@_inline
def _octaves(lattice: NDArray[np.float32], n: int, octaves: Octaves, z: float, y: float, x: float) -> float:
    (a, f), (b, g) = octaves
    return a * _smooth(lattice, n, f * z, f * y, f * x) + b * _smooth(lattice, n, g * z, g * y, g * x)


@jit
def _square(value: float, middle: float, width: float) -> float:
    return ((value - middle) / width) * ((value - middle) / width)


@jit
def _outline(z: float, y: float, x: float) -> float:
    """Return a measure that is 1 on the skin and 0 in the middle of the body."""
    far = _square(z, 0, 0.97)
    return far * far + _square(y, 0, 0.76) + _square(x, 0, 0.94)


@jit
def _skeleton(z: float, y: float, x: float) -> int:
    """Return the tissue of the spine and the hips at a point, AIR beside them; x is 0 or more."""
    if abs(z) > 0.93 or y < -0.1 or x > 0.75:
        return AIR
    # From 0 in the middle of a vertebra to 1 between two.
    phase = abs(2 * (7 * z - math.floor(7 * z)) - 1)
    core = _square(x, 0, 0.135) + _square(y, 0.38, 0.115)
    if core < 0.88 + 0.12 * phase:
        if phase > 0.84:
            return DISC
        return MARROW if core < 0.68 and phase < 0.76 else BONE
    if _square(x, 0, 0.045) + _square(y, 0.535, 0.045) < 1:
        return CORD
    arch = _square(x, 0, 0.075) + _square(y, 0.535, 0.075)
    spine = _square(x, 0, 0.03) + _square(y, 0.62, 0.07)
    arm = _square(x, 0.12, 0.11) + _square(y, 0.52, 0.03)
    if phase < 0.7 and min(arch, spine, arm) < 1:
        return BONE
    # A hip is a slanted plate.
    slant = x - 0.44 + 0.55 * (z - 0.66) + 0.35 * (y - 0.24)
    plate = _square(slant, 0, 0.055) + _square(z, 0.66, 0.23) + _square(y, 0.24, 0.27)
    if plate < 1:
        return BONE if plate > 0.6 else MARROW
    return AIR


@jit
def _tissue(z: float, y: float, x: float) -> int:
    """Return the tissue at a point of the body, before organs and vessels; x is 0 or more."""
    outline = _outline(z, y, x)
    if outline >= 1:
        return AIR
    depth = 1 - math.sqrt(outline)
    if depth < 0.022:
        return SKIN
    bone = _skeleton(z, y, x)
    if bone != AIR:
        return bone
    # Fat is thicker on the belly and the back.
    depth -= 0.075 + 0.07 * y * y
    if depth < 0:
        return FAT
    if depth < 0.10:
        step = 8 * z + 3 * y
        rib = _square(depth, 0.05, 0.026) + _square(step - math.floor(step), 0.5, 0.24) < 1
        breast = y < 0 and x < 0.09 and abs(depth - 0.05) < 0.026
        return BONE if (rib and x > 0.1 and -0.85 < z < 0.1) or (breast and -0.8 < z < -0.05) else MUSCLE
    back = _square(x, 0.22, 0.19) + _square(y, 0.52, 0.13)
    return MUSCLE if back < 1 or y > 0.45 else CAVITY


@jit
def _in_ellipsoid(rows: NDArray[np.float64], k: int, z: float, y: float, x: float) -> bool:
    z, y, x = z - rows[k, 0], y - rows[k, 1], x - rows[k, 2]
    a = rows[k, 4] * z + rows[k, 5] * y + rows[k, 6] * x
    b = rows[k, 7] * z + rows[k, 8] * y + rows[k, 9] * x
    c = rows[k, 10] * z + rows[k, 11] * y + rows[k, 12] * x
    return bool(a * a + b * b + c * c < 1)


@jit
def _in_tube(rows: NDArray[np.float64], k: int, z: float, y: float, x: float) -> bool:
    z, y, x = z - rows[k, 0], y - rows[k, 1], x - rows[k, 2]
    a, b, c = rows[k, 4], rows[k, 5], rows[k, 6]
    t = min(max((z * a + y * b + x * c) / (a * a + b * b + c * c), -1.0), 1.0)
    z, y, x = z - t * a, y - t * b, x - t * c
    return bool(z * z + y * y + x * x < rows[k, 7] * rows[k, 7])


@_inline
def _label(
    extent: Point,
    organs: NDArray[np.float64],
    tubes: NDArray[np.float64],
    lattice: NDArray[np.float32],
    z: float,
    y: float,
    x: float,
) -> int:
    """Return the label at a point."""
    ez, ey, ex = extent
    if _outline(z / ez, y / ey, x / ex) > SURELY_AIR:
        return AIR
    # Surfaces wobble because space does; across a thin slab, no more than it has room for.
    dz = min(1.0, ez) * _octaves(lattice, 0, WOBBLE, z, y, x)
    dy = min(1.0, ey) * _octaves(lattice, 1, WOBBLE, z, y, x)
    dx = min(1.0, ex) * _octaves(lattice, 2, WOBBLE, z, y, x)
    z, y, x = z + dz, y + dy, x + dx
    tissue = _tissue(z / ez, y / ey, abs(x / ex))
    if tissue != CAVITY:
        return tissue
    for k in range(len(tubes)):
        if _in_tube(tubes, k, z, y, x):
            return VESSEL
    for k in range(len(organs) - 1, -1, -1):
        if _in_ellipsoid(organs, k, z, y, x):
            return int(organs[k, 13])
    return CAVITY


@jit
def _fill_tile(image: Array, truth: Array, corner: Triple, shape: Triple, body: Body) -> None:
    """Compute the voxels of a tile, where `body` is what can be there."""
    level, grain, noise, key, extent, organs, tubes, lattice = body
    # z
    for k in range(image.shape[0]):
        gz = corner[0] + k
        z = (2 * gz + 1 - shape[0]) / shape[0] * extent[0]
        # y
        for j in range(image.shape[1]):
            gy = corner[1] + j
            y = (2 * gy + 1 - shape[1]) / shape[1] * extent[1]
            # x
            for i in range(image.shape[2]):
                gx = corner[2] + i
                x = (2 * gx + 1 - shape[2]) / shape[2] * extent[2]
                label = _label(extent, organs, tubes, lattice, z, y, x)
                value = level[label] + noise * _bell(key, np.uint64((gz * shape[1] + gy) * shape[2] + gx))
                if label != AIR:
                    value += grain[label] * _octaves(lattice, 3, TEXTURE, z, y, x)
                image[k, j, i] = np.uint16(min(max(value, 0.0), 4095.0) + 0.5)
                truth[k, j, i] = label


@jit
def _near(rows: NDArray[np.float64], z: float, y: float, x: float, reach: float) -> Array:
    """Return the rows whose ball comes within `reach` of a point."""
    dz, dy, dx, far = rows[:, 0] - z, rows[:, 1] - y, rows[:, 2] - x, rows[:, 3] + reach
    return rows[dz * dz + dy * dy + dx * dx <= far * far]


@jit
def render_body(image: Array, truth: Array, origin: Triple, shape: Triple, body: Body) -> None:
    """Compute the box of the volume that begins at `origin`, tile by tile."""
    level, grain, noise, key, extent, organs, tubes, lattice = body
    # Half-widths of the body per voxel.
    hz, hy, hx = 2 * extent[0] / shape[0], 2 * extent[1] / shape[1], 2 * extent[2] / shape[2]
    # Half a tile's diagonal, and more than the wobble can add: 1.8 > sqrt(3).
    reach = 0.5 * TILE_EXTENT * math.sqrt(hz * hz + hy * hy + hx * hx) + 1.8 * (WOBBLE[0][0] + WOBBLE[1][0])
    # z
    for k in range(0, image.shape[0], TILE_EXTENT):
        z = (origin[0] + k + TILE_EXTENT / 2) * hz - extent[0]
        # y
        for j in range(0, image.shape[1], TILE_EXTENT):
            y = (origin[1] + j + TILE_EXTENT / 2) * hy - extent[1]
            # x
            for i in range(0, image.shape[2], TILE_EXTENT):
                x = (origin[2] + i + TILE_EXTENT / 2) * hx - extent[2]
                near, close = _near(organs, z, y, x, reach), _near(tubes, z, y, x, reach)
                tile = slice(k, k + TILE_EXTENT), slice(j, j + TILE_EXTENT), slice(i, i + TILE_EXTENT)
                corner = (origin[0] + k, origin[1] + j, origin[2] + i)
                there = Body(level, grain, noise, key, extent, near, close, lattice)
                _fill_tile(image[tile], truth[tile], corner, shape, there)
