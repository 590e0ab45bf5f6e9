"""The body of a phantom: tissues, organs, vessels, texture and noise as functions of position.

Every voxel is a pure function of its global index and of the body, which is built once from the parameters. The
arithmetic uses integers, and + - * / and sqrt on doubles, which IEEE 754 defines to the last bit, so that every machine
computes the same voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import inlined_jit, jit

Point = tuple[float, float, float]
Octaves = tuple[tuple[float, float], tuple[float, float]]
Organ = tuple[str, Point, Point, int, int]
Array = NDArray[Any]

# Voxels along each axis of a tile, for which nearby organs and vessels are selected once.
TILE_EXTENT = 16

# The tissues of every body, in the order of the labels: name, intensity (0 to 4095), amplitude of the texture.
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

# The named organs: name, centre and radii (z, y, x; the volume spans -1 to 1, feet at z = 1, back at y = 1), intensity,
# amplitude of the texture. Later organs cover earlier ones.
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

# Value noise, random values on a lattice that are interpolated smoothly, makes textures and displaces surfaces. It
# repeats after this many cells (a power of two).
NOISE_PERIOD = 32
# Two octaves each: amplitude, cells per half-width of the body. The amplitude of the displacement is in half-widths,
# that of the texture is relative to the tissue's.
DISPLACEMENT: Octaves = ((0.035, 2.3), (0.012, 6.7))
TEXTURE: Octaves = ((0.6, 9.0), (0.4, 22.0))
# The body distance beyond which no displacement reaches the skin.
OUTER_DISTANCE = 1.45


class Body(NamedTuple):
    """The data that kernels read. Lengths are in half-widths of the body, the same along every axis.

    Organs and pieces of vessels are rows that begin with the centre and the radius of their bounding sphere.
    """

    intensity: NDArray[np.float64]  # per label
    texture: NDArray[np.float64]  # per label: amplitude of the texture
    noise: float
    key: np.uint64  # of the noise
    extent: Point  # half the volume
    organs: NDArray[np.float64]  # (organs, 14): sphere, matrix to the unit sphere, label
    vessels: NDArray[np.float64]  # (pieces, 8): sphere, from the middle to the end, radius
    lattice: NDArray[np.float32]  # (4, NOISE_PERIOD, NOISE_PERIOD, NOISE_PERIOD): displacement along z, y, x; texture


def build_body(shape: Triple, spacing: Point, *, noise: float, organs: int, seed: int) -> tuple[Body, list[str]]:
    """Return the body that fills a volume, and the names of its labels.

    The seed determines the body; `shape` and `spacing` only determine its proportions.
    """
    lengths = [n * s for n, s in zip(shape, spacing, strict=True)]
    # The median length is robust to thin slabs and long columns.
    z, y, x = (length / sorted(lengths)[1] for length in lengths)
    # Python guarantees the same random() for a seed in every version, NumPy does not.
    random = Random(seed).random
    key = np.uint64(int(random() * 2**53))
    lattice = np.array([2 * random() - 1 for _ in range(4 * NOISE_PERIOD**3)], np.float32)
    chosen = list(ORGANS[:organs])
    while len(chosen) < organs:
        chosen.append(_draw_small_organ(chosen, organs - len(ORGANS), random))
    labels = [*TISSUES, *((name, intensity, texture) for name, _, _, intensity, texture in chosen)]
    rows = [
        [*_ellipsoid_row(organ, 0.15 if organ in ORGANS else 1.0, (z, y, x), random), len(TISSUES) + k]
        for k, organ in enumerate(chosen)
    ]
    vessels = [_vessel_row(start, end, radius, (z, y, x)) for start, end, radius in _vessel_pieces(chosen, random)]
    body = Body(
        intensity=np.array([intensity for _, intensity, _ in labels], float),
        texture=np.array([texture for _, _, texture in labels], float),
        noise=noise,
        key=key,
        extent=(z, y, x),
        organs=np.array(rows, float).reshape(-1, 14),
        vessels=np.array(vessels, float),
        lattice=lattice.reshape(4, NOISE_PERIOD, NOISE_PERIOD, NOISE_PERIOD),
    )
    return body, [name for name, _, _ in labels]


def _draw_small_organ(others: list[Organ], count: int, random: Callable[[], float]) -> Organ:
    """Draw one of `count` unnamed organs: in the abdomen, at the least crowded of some random positions."""
    shrink = min(1.0, math.sqrt(20 / count))
    z, y, x = (shrink * (0.07 + 0.11 * random()) for _ in range(3))
    spheres = np.array([(*centre, max(radii)) for _, centre, radii, _, _ in others]).T

    def clearance(position: Point) -> float:
        dz, dy, dx = spheres[0] - position[0], spheres[1] - position[1], spheres[2] - position[2]
        touch = spheres[3] + max(z, y, x)
        return float(np.min((dz * dz + dy * dy + dx * dx) / (touch * touch)))

    positions = [(0.05 + 0.75 * random(), 0.65 * random() - 0.45, 1.1 * random() - 0.55) for _ in range(40)]
    intensity, texture = 1000 + 70 * int(10 * random()), 20 + int(30 * random())
    return f"organ {len(others) + 1}", max(positions, key=clearance), (z, y, x), intensity, texture


def _ellipsoid_row(organ: Organ, tilt: float, extent: Point, random: Callable[[], float]) -> list[float]:
    """Shift and rotate an organ at random, and return its sphere and its matrix as in `Body`."""
    _, centre, radii, _, _ = organ
    middle = [(c + 0.03 * (random() - 0.5)) * e for c, e in zip(centre, extent, strict=True)]
    # A quaternion gives the rotation without sines.
    a, b, c = (tilt * (2 * random() - 1) for _ in range(3))
    n = 1 + a * a + b * b + c * c
    rotation = (
        (1 + a * a - b * b - c * c, 2 * (a * b - c), 2 * (a * c + b)),
        (2 * (a * b + c), 1 - a * a + b * b - c * c, 2 * (b * c - a)),
        (2 * (a * c - b), 2 * (b * c + a), 1 - a * a - b * b + c * c),
    )
    return [*middle, max(radii), *(v / (n * r) for row, r in zip(rotation, radii, strict=True) for v in row)]


def _vessel_pieces(organs: list[Organ], random: Callable[[], float]) -> Iterator[tuple[Point, Point, float]]:
    """Yield the pieces (start, end, radius) of two trunks along the spine, and of a tree in each named organ."""
    yield from _curve_pieces((-0.30, 0.10, 0.02), (0.95, 0.22, 0.07), 0.042, 0.030, random)
    yield from _curve_pieces((-0.35, 0.02, -0.12), (0.95, 0.20, -0.10), 0.042, 0.030, random)
    for _, centre, radii, _, _ in organs[: len(ORGANS)]:
        root = (max(centre[0], -0.30), 0.17, 0.04)
        yield from _curve_pieces(root, centre, 0.020, 0.016, random)
        for _ in range(int(24 * max(radii))):
            z, y, x = (c + r * (1.7 * random() - 0.85) for c, r in zip(centre, radii, strict=True))
            yield from _curve_pieces(centre, (z, y, x), 0.014, 0.005, random)


def _curve_pieces(
    start: Point, end: Point, wide: float, narrow: float, random: Callable[[], float]
) -> Iterator[tuple[Point, Point, float]]:
    """Yield the straight pieces of a tapering quadratic Bézier curve with a random bend."""
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


def _vessel_row(start: Point, end: Point, radius: float, extent: Point) -> list[float]:
    """Return a piece of a vessel as a row of `Body.vessels`."""
    middle = [(b + a) / 2 * e for a, b, e in zip(start, end, extent, strict=True)]
    z, y, x = ((b - a) / 2 * e for a, b, e in zip(start, end, extent, strict=True))
    return [*middle, math.sqrt(z * z + y * y + x * x) + radius, z, y, x, radius]


# The kernels


@jit
def _gaussian_noise(key: np.uint64, counter: np.uint64) -> float:
    """Return almost Gaussian noise with a standard deviation of 1: the sum of four uniform numbers from one hash."""
    bits = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    low = np.uint64(0xFFFF)
    total = (bits >> np.uint64(48)) + ((bits >> np.uint64(32)) & low)
    total += ((bits >> np.uint64(16)) & low) + (bits & low)
    return (np.int64(total) - 131070) / 37837.0


@jit
def _value_noise(lattice: NDArray[np.float32], n: int, z: float, y: float, x: float) -> float:
    """Interpolate the values on a lattice at a point, with a continuous derivative."""
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


@inlined_jit
def _fractal_noise(lattice: NDArray[np.float32], n: int, octaves: Octaves, z: float, y: float, x: float) -> float:
    (a, f), (b, g) = octaves
    return a * _value_noise(lattice, n, f * z, f * y, f * x) + b * _value_noise(lattice, n, g * z, g * y, g * x)


@jit
def _squared_ratio(value: float, middle: float, width: float) -> float:
    return ((value - middle) / width) * ((value - middle) / width)


@jit
def _body_distance(z: float, y: float, x: float) -> float:
    """Return a measure of distance that is 0 in the middle of the body and 1 on the skin."""
    axial = _squared_ratio(z, 0, 0.97)
    return axial * axial + _squared_ratio(y, 0, 0.76) + _squared_ratio(x, 0, 0.94)


@jit
def _skeleton_tissue(z: float, y: float, x: float) -> int:
    """Return the tissue of the spine and the hips at a point with x >= 0, or AIR beside them."""
    if abs(z) > 0.93 or y < -0.1 or x > 0.75:
        return AIR
    # 0 in the middle of a vertebra, 1 between two.
    phase = abs(2 * (7 * z - math.floor(7 * z)) - 1)
    core = _squared_ratio(x, 0, 0.135) + _squared_ratio(y, 0.38, 0.115)
    if core < 0.88 + 0.12 * phase:
        if phase > 0.84:
            return DISC
        return MARROW if core < 0.68 and phase < 0.76 else BONE
    if _squared_ratio(x, 0, 0.045) + _squared_ratio(y, 0.535, 0.045) < 1:
        return CORD
    arch = _squared_ratio(x, 0, 0.075) + _squared_ratio(y, 0.535, 0.075)
    spine = _squared_ratio(x, 0, 0.03) + _squared_ratio(y, 0.62, 0.07)
    arm = _squared_ratio(x, 0.12, 0.11) + _squared_ratio(y, 0.52, 0.03)
    if phase < 0.7 and min(arch, spine, arm) < 1:
        return BONE
    # A hip is a slanted plate.
    slant = x - 0.44 + 0.55 * (z - 0.66) + 0.35 * (y - 0.24)
    plate = _squared_ratio(slant, 0, 0.055) + _squared_ratio(z, 0.66, 0.23) + _squared_ratio(y, 0.24, 0.27)
    if plate < 1:
        return BONE if plate > 0.6 else MARROW
    return AIR


@jit
def _tissue_at(z: float, y: float, x: float) -> int:
    """Return the tissue at a point with x >= 0, without organs and vessels."""
    distance = _body_distance(z, y, x)
    if distance >= 1:
        return AIR
    depth = 1 - math.sqrt(distance)
    if depth < 0.022:
        return SKIN
    bone = _skeleton_tissue(z, y, x)
    if bone != AIR:
        return bone
    # Fat is thicker on the belly and the back.
    depth -= 0.075 + 0.07 * y * y
    if depth < 0:
        return FAT
    if depth < 0.10:
        step = 8 * z + 3 * y
        rib = _squared_ratio(depth, 0.05, 0.026) + _squared_ratio(step - math.floor(step), 0.5, 0.24) < 1
        breast = y < 0 and x < 0.09 and abs(depth - 0.05) < 0.026
        return BONE if (rib and x > 0.1 and -0.85 < z < 0.1) or (breast and -0.8 < z < -0.05) else MUSCLE
    back = _squared_ratio(x, 0.22, 0.19) + _squared_ratio(y, 0.52, 0.13)
    return MUSCLE if back < 1 or y > 0.45 else CAVITY


@jit
def _is_in_organ(rows: NDArray[np.float64], k: int, z: float, y: float, x: float) -> bool:
    z, y, x = z - rows[k, 0], y - rows[k, 1], x - rows[k, 2]
    a = rows[k, 4] * z + rows[k, 5] * y + rows[k, 6] * x
    b = rows[k, 7] * z + rows[k, 8] * y + rows[k, 9] * x
    c = rows[k, 10] * z + rows[k, 11] * y + rows[k, 12] * x
    return bool(a * a + b * b + c * c < 1)


@jit
def _is_in_vessel(rows: NDArray[np.float64], k: int, z: float, y: float, x: float) -> bool:
    z, y, x = z - rows[k, 0], y - rows[k, 1], x - rows[k, 2]
    a, b, c = rows[k, 4], rows[k, 5], rows[k, 6]
    t = min(max((z * a + y * b + x * c) / (a * a + b * b + c * c), -1.0), 1.0)
    z, y, x = z - t * a, y - t * b, x - t * c
    return bool(z * z + y * y + x * x < rows[k, 7] * rows[k, 7])


@inlined_jit
def _label_at(
    extent: Point,
    organs: NDArray[np.float64],
    vessels: NDArray[np.float64],
    lattice: NDArray[np.float32],
    z: float,
    y: float,
    x: float,
) -> int:
    ez, ey, ex = extent
    if _body_distance(z / ez, y / ey, x / ex) > OUTER_DISTANCE:
        return AIR
    # Displacing the point displaces all surfaces, in a thin slab by less.
    dz = min(1.0, ez) * _fractal_noise(lattice, 0, DISPLACEMENT, z, y, x)
    dy = min(1.0, ey) * _fractal_noise(lattice, 1, DISPLACEMENT, z, y, x)
    dx = min(1.0, ex) * _fractal_noise(lattice, 2, DISPLACEMENT, z, y, x)
    z, y, x = z + dz, y + dy, x + dx
    tissue = _tissue_at(z / ez, y / ey, abs(x / ex))
    if tissue != CAVITY:
        return tissue
    for k in range(len(vessels)):
        if _is_in_vessel(vessels, k, z, y, x):
            return VESSEL
    for k in range(len(organs) - 1, -1, -1):
        if _is_in_organ(organs, k, z, y, x):
            return int(organs[k, 13])
    return CAVITY


@jit
def _render_tile(image: Array, truth: Array, corner: Triple, shape: Triple, body: Body) -> None:
    """Compute the voxels of a tile; `body` contains the organs and vessels that may intersect it."""
    intensity, texture, noise, key, extent, organs, vessels, lattice = body
    for k in range(image.shape[0]):
        gz = corner[0] + k
        z = (2 * gz + 1 - shape[0]) / shape[0] * extent[0]
        for j in range(image.shape[1]):
            gy = corner[1] + j
            y = (2 * gy + 1 - shape[1]) / shape[1] * extent[1]
            for i in range(image.shape[2]):
                gx = corner[2] + i
                x = (2 * gx + 1 - shape[2]) / shape[2] * extent[2]
                label = _label_at(extent, organs, vessels, lattice, z, y, x)
                value = intensity[label] + noise * _gaussian_noise(key, np.uint64((gz * shape[1] + gy) * shape[2] + gx))
                if label != AIR:
                    value += texture[label] * _fractal_noise(lattice, 3, TEXTURE, z, y, x)
                image[k, j, i] = np.uint16(min(max(value, 0.0), 4095.0) + 0.5)
                truth[k, j, i] = label


@jit
def _select_near(rows: NDArray[np.float64], z: float, y: float, x: float, reach: float) -> Array:
    """Return the rows whose sphere comes within `reach` of a point."""
    dz, dy, dx, limit = rows[:, 0] - z, rows[:, 1] - y, rows[:, 2] - x, rows[:, 3] + reach
    return rows[dz * dz + dy * dy + dx * dx <= limit * limit]


@jit
def render_body(image: Array, truth: Array, origin: Triple, shape: Triple, body: Body) -> None:
    """Compute the box of the volume that begins at `origin`, tile by tile, into `image` and `truth`."""
    intensity, texture, noise, key, extent, organs, vessels, lattice = body
    # Half-widths of the body per voxel.
    hz, hy, hx = 2 * extent[0] / shape[0], 2 * extent[1] / shape[1], 2 * extent[2] / shape[2]
    # Half the diagonal of a tile, plus more than the largest displacement: 1.8 > sqrt(3).
    reach = 0.5 * TILE_EXTENT * math.sqrt(hz * hz + hy * hy + hx * hx) + 1.8 * (DISPLACEMENT[0][0] + DISPLACEMENT[1][0])
    for k in range(0, image.shape[0], TILE_EXTENT):
        z = (origin[0] + k + TILE_EXTENT / 2) * hz - extent[0]
        for j in range(0, image.shape[1], TILE_EXTENT):
            y = (origin[1] + j + TILE_EXTENT / 2) * hy - extent[1]
            for i in range(0, image.shape[2], TILE_EXTENT):
                x = (origin[2] + i + TILE_EXTENT / 2) * hx - extent[2]
                near_organs, near_vessels = _select_near(organs, z, y, x, reach), _select_near(vessels, z, y, x, reach)
                tile = slice(k, k + TILE_EXTENT), slice(j, j + TILE_EXTENT), slice(i, i + TILE_EXTENT)
                corner = (origin[0] + k, origin[1] + j, origin[2] + i)
                nearby = Body(intensity, texture, noise, key, extent, near_organs, near_vessels, lattice)
                _render_tile(image[tile], truth[tile], corner, shape, nearby)
