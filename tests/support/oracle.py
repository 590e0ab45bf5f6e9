"""A slow supervoxel algorithm in plain Python, written from the rules alone, as a reference for the fast one.

It shares no code with the package: neither the geometry nor the tables nor the loops. It visits every unit in every
sweep, one after the other, without any memory of earlier visits. All numbers are Python's own, which do not overflow,
except in the one place where the rules demand float32.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from itertools import pairwise, product
from math import prod

import numpy as np
from hypothesis import strategies as st

BLOCK_ROUNDS = 9  # of one sweep, over all levels
BLOCK_GAINS = (50 * 32768 // 1000, 25 * 32768 // 1000)  # of a neighbour: at the first level, and after it
VOXEL_SWEEPS = 3
LAMBDAS = (60, 20, 10, 20)  # per cent, one for each voxel round
MOST_RATIO = 8 * 4096  # of a block to the rest of its supervoxel

OFFSETS = [o for o in product((-1, 0, 1), repeat=3) if 1 <= np.count_nonzero(o) <= 2]
FACES = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
FACE_NUMBERS = [OFFSETS.index(face) for face in FACES]


# Geometry.


def cells_along(n, s):
    """Return the cell of each voxel of an axis; a remainder under half a step belongs to the cell before it."""
    s = min(s, n)
    count = (2 * n + s) // (2 * s)
    return [min(i // s, count - 1) for i in range(n)]


def levels(shape, step):
    """Return for each level, from the coarsest blocks to the voxels, and axis each unit's (first voxel, end, cell)."""
    step = [min(s, n) for s, n in zip(step, shape, strict=True)]
    grids, parts = [], [1, 1, 1]
    while any(s // (2 * p) >= 2 for s, p in zip(step, parts, strict=True)):
        parts = [2 * p if s // (2 * p) >= 2 else p for s, p in zip(step, parts, strict=True)]
        grids.append([units_along(n, s, p, voxels=False) for n, s, p in zip(shape, step, parts, strict=True)])
    return [*grids, [units_along(n, s, 0, voxels=True) for n, s in zip(shape, step, strict=True)]]


def units_along(n, s, p, voxels):
    cells = cells_along(n, s)
    if voxels:
        return [(i, i + 1, cells[i]) for i in range(n)]
    units = []
    for cell in range(cells[-1] + 1):
        begin, length = cells.index(cell), cells.count(cell)
        edges = [begin + j * length // p for j in range(p + 1)]
        units += [(a, b, cell) for a, b in pairwise(edges)]
    return units


# Tables.


def half_up(value):
    return int((value + Decimal("0.5")).to_integral_value(rounding="ROUND_FLOOR"))


@cache
def gaussian(sigma, radius, total):
    """Return integer weights for d = -radius .. radius as a dictionary; the centre takes the rounding error."""
    with localcontext(prec=40):
        raw = {d: (-Decimal(d * d) / (2 * sigma * sigma)).exp() for d in range(-radius, radius + 1)}
        weights = {d: half_up(v / sum(raw.values()) * total) for d, v in raw.items()}
    weights[0] += total - sum(weights.values())
    return weights


@cache
def log_entry(i):
    with localcontext(prec=40):
        return half_up((1 + Decimal(i) / 2048).ln() * 2**20)


LN2 = log_entry(2048)


@cache
def log(n):
    """Return ln(n) in units of 2^-20."""
    e = n.bit_length() - 1
    mantissa = n << (40 - e) if e <= 40 else n >> (e - 40)
    f = mantissa - 2**40
    i = f >> 29
    rest = f - (i << 29)
    return e * LN2 + log_entry(i) + (((log_entry(i + 1) - log_entry(i)) * rest) >> 29)


def smooth(histogram, weights):
    n = len(histogram)
    return [
        sum(w * histogram[q + d] for d, w in weights.items() if 0 <= q + d < n and histogram[q + d]) for q in range(n)
    ]


def voxel_scores(histogram, lambda_per_cent):
    """Return the score of each bin in a supervoxel, from its 64 counts, in units of lambda / 16."""
    total = sum(histogram)
    mean = 256 * sum(q * count for q, count in enumerate(histogram)) // total
    by_size = log(2 * total + 1) - LN2 + (log(total) >> 2)
    scores = []
    for q, s in enumerate(smooth(histogram, gaussian(4, 16, 65536))):
        u = log(s + 512) - 16 * LN2 - by_size - ((5 * (256 * q - mean) ** 2) >> 8)
        scores.append(min(max(-12000, (u * 1600 // lambda_per_cent + 2**19) >> 20), 12000))
    return scores


# Bins.


def to_bins(image, window, parts=64):
    bins = np.zeros(image.shape, int)
    if image.dtype.kind in "iu" and 2**53 < max(-window[0], window[1]) < 2**65:
        # Integers that floats do not hold.
        lo, hi = map(Fraction, window)
        for index in np.ndindex(image.shape):
            place = float(int(image[index]) - lo) / float(hi - lo) * parts if lo < hi else 0
            bins[index] = min(parts - 1, max(0, int(place)))
        return bins
    lo, hi = map(float, window)
    for index in np.ndindex(image.shape):
        x = float(image[index])
        if x >= hi:
            bins[index] = parts - 1
        elif x > lo:
            unit = 1 if math.isfinite(hi - lo) else 0.5
            bins[index] = min(parts - 1, int((unit * x - unit * lo) / (unit * hi - unit * lo) * parts))
    return bins


# Moves.


@cache
def is_simple(same):
    """Return whether a unit may leave, given 18 booleans: which of its neighbours carry its label."""
    todo = {offset for offset, s in zip(OFFSETS, same, strict=True) if s}
    faces = {face for face in FACES if face in todo}
    if not faces:
        return False
    stack = [min(faces)]
    todo.discard(stack[0])
    while stack:
        here = stack.pop()
        faces.discard(here)
        for step in FACES:
            there = tuple(a + b for a, b in zip(here, step, strict=True))
            if there in todo:
                todo.discard(there)
                stack.append(there)
    return not faces


class Level:
    """The units of a level and their labels: padded by one on each side, flat, -1 where nothing is.

    `inside` is the mask, (z, y, x), or None. A unit without a voxel in it does not exist.
    """

    def __init__(self, axes, cells, inside=None):
        self.axes, self.cells, self.inside = axes, cells, inside
        self.shape = [len(axis) for axis in axes]
        self.strides = [(self.shape[1] + 2) * (self.shape[2] + 2), self.shape[2] + 2, 1]
        self.sizes = {unit: self.count(unit) for unit in product(*map(range, self.shape))}
        self.units = [unit for unit, size in self.sizes.items() if size > 0]
        self.labels = [-1] * prod(n + 2 for n in self.shape)
        self.around = [sum(o * stride for o, stride in zip(offset, self.strides, strict=True)) for offset in OFFSETS]
        self.at = {unit: self.flat(unit) for unit in self.units}
        self.open = set(self.units)
        # Per axis where each cell begins and ends.
        self.extents = [
            [(min(a for a, _, c in axis if c == n), max(b for _, b, c in axis if c == n)) for n in range(count)]
            for axis, count in zip(axes, cells, strict=True)
        ]
        self.home = {unit: tuple(axis[i][2] for axis, i in zip(axes, unit, strict=True)) for unit in self.units}

    def flat(self, unit):
        return sum((i + 1) * stride for i, stride in zip(unit, self.strides, strict=True))

    def voxels(self, unit):
        return tuple(slice(*axis[i][:2]) for axis, i in zip(self.axes, unit, strict=True))

    def count(self, unit):
        if self.inside is None:
            return prod(part.stop - part.start for part in self.voxels(unit))
        return int(self.inside[self.voxels(unit)].sum())

    def number(self, cell):
        return (cell[0] * self.cells[1] + cell[1]) * self.cells[2] + cell[2]

    def seed(self):
        for unit in self.units:
            self.labels[self.at[unit]] = self.number(self.home[unit])

    def inherit(self, coarser):
        """Take the label of the coarser unit in which a unit's first voxel lies."""
        parents = [
            [next(k for k, (a, b, _) in enumerate(coarse) if a <= begin < b) for begin, _, _ in fine]
            for fine, coarse in zip(self.axes, coarser.axes, strict=True)
        ]
        for unit in self.units:
            parent = tuple(p[i] for p, i in zip(parents, unit, strict=True))
            self.labels[self.at[unit]] = coarser.labels[coarser.at[parent]]

    def distance_costs(self, unit, label, step, price):
        """Return the cost of the distance from a cell's centre: along each axis `price(twice the distance, step)`."""
        owner = np.unravel_index(label, self.cells)
        along = zip(self.axes, self.extents, unit, owner, step, strict=True)
        return sum(price(abs(axis[i][0] + axis[i][1] - sum(extents[c])), s) for axis, extents, i, c, s in along)

    def in_reach(self, unit, label):
        owner = np.unravel_index(label, self.cells)
        return all(abs(a - b) <= 1 for a, b in zip(owner, self.home[unit], strict=True))

    def sweep(self, score_of, shuffle, only_open=False):
        """Visit all units, in four colours; `score_of(unit)` returns a function of a label and the 18 labels around.

        With `only_open`, only those near which something has moved since they were last visited.
        """
        for colour in range(4):
            a, b = colour & 1, colour >> 1
            units = [(z, y, x) for z, y, x in self.units if (x + y) & 1 == a and (y + z) & 1 == b]
            if shuffle is not None:
                shuffle(units)
            for unit in units:
                if only_open and unit not in self.open:
                    continue
                self.open.discard(unit)
                if self.visit(unit, score_of) and only_open:
                    self.open |= {unit, *(tuple(np.add(unit, offset)) for offset in OFFSETS)}

    def visit(self, unit, score_of):
        at = self.at[unit]
        own = self.labels[at]
        around = [self.labels[at + o] for o in self.around]
        candidates = []
        for face in FACE_NUMBERS:
            label = around[face]
            if label not in (-1, own) and self.in_reach(unit, label):
                candidates.append(label)
        if not candidates or not is_simple(tuple(label == own for label in around)):
            return False
        score = score_of(unit)
        best, best_score = own, score(own, around)
        for label in candidates:
            this = score(label, around)
            if this > best_score:
                best, best_score = label, this
        self.labels[at] = best
        return best != own


def voxel_round(level, channels, weights, lambda_per_cent, step, compactness, shuffle):
    tables = []
    for bins in channels:
        counts = {}
        for unit in level.units:
            histogram = counts.setdefault(level.labels[level.at[unit]], [0] * 64)
            histogram[bins[unit]] += 1
        tables.append({label: voxel_scores(histogram, lambda_per_cent) for label, histogram in counts.items()})
    fixed = round(compactness * 2**20)

    def price(twice, s):
        return min(2500, fixed * 1600 * twice**2 // (4 * s**2 * lambda_per_cent * 2**20))

    def score_of(unit):
        def score(label, around):
            far = level.distance_costs(unit, label, step, price) if compactness else 0
            fits = zip(weights, tables, channels, strict=True)
            likeness = sum(weight * table[label][bins[unit]] for weight, table, bins in fits)
            return likeness + sum(weights) * (16 * around.count(label) - far)

        return score

    for _ in range(VOXEL_SWEEPS):
        level.sweep(score_of, shuffle)


def block_histograms(level, bins):
    histograms = {}
    for unit in level.units:
        part = level.voxels(unit)
        values = bins[part] if level.inside is None else bins[part][level.inside[part]]
        histograms[unit] = np.bincount(values.ravel() >> 1, minlength=32).tolist()
    return histograms


class Channel:
    """The intersections of blocks' histograms with those of the present supervoxels."""

    def __init__(self, level, histograms, start):
        self.start, self.sizes, self.histograms = start, level.sizes, histograms
        self.counts = {}
        for unit in level.units:
            before = self.counts.get(start[unit], [0] * 32)
            self.counts[start[unit]] = [a + b for a, b in zip(before, histograms[unit], strict=True)]
        self.size = {label: sum(histogram) for label, histogram in self.counts.items()}
        self.share = {label: self.shares(histogram) for label, histogram in self.counts.items()}
        self.mine_of, self.common = cache(self.mine_of), cache(self.common)

    def shares(self, histogram):
        return [128 * s // sum(histogram) for s in smooth(histogram, gaussian(1, 3, 256))]

    def mine_of(self, unit):
        scale = np.float32(128.0) / np.float32(self.sizes[unit])
        return [int(np.float32(s) * scale) for s in smooth(self.histograms[unit], gaussian(1, 3, 256))]

    def rest_of(self, unit):
        t, label = self.sizes[unit], self.start[unit]
        ratio = min(MOST_RATIO, (t << 12) // max(1, self.size[label] - t))
        return [s + (((s - m) * ratio) >> 12) for s, m in zip(self.share[label], self.mine_of(unit), strict=True)]

    def common(self, unit, label):
        shares = self.rest_of(unit) if label == self.start[unit] else self.share[label]
        return sum(map(min, shares, self.mine_of(unit)))


def block_round(level, channels, step, shuffle, gain=BLOCK_GAINS[0], compactness=0, weights=(1,)):
    start = {unit: level.labels[level.at[unit]] for unit in level.units}
    channels = [Channel(level, histograms, start) for histograms in channels]
    handicap = {label: (log(t) - log(prod(step))) * 4096 // (10 * 2**17) for label, t in channels[0].size.items()}

    fixed = round(compactness * 2**20)

    def price(twice, s):
        return min(2**20, fixed * 32768 * twice**2 // (4 * s**2 * 10 * 2**20))

    def score_of(unit):
        def score(label, around):
            far = level.distance_costs(unit, label, step, price) if compactness else 0
            likeness = sum(w * channel.common(unit, label) for w, channel in zip(weights, channels, strict=True))
            return likeness + sum(weights) * (around.count(label) * gain - handicap[label] - far)

        return score

    level.sweep(score_of, shuffle, only_open=True)


def oracle_supervoxels(image, step, window, shuffle=None, compactness=0):
    """Return the labels 1..N of a volume (z, y, x), for a step per axis and an intensity window.

    `shuffle`, if given, reorders the list of a colour's units in place; that must not make a difference.
    """
    if window[0] >= window[1]:
        axes = levels(image.shape, step)[-1]
        voxels = Level(axes, [axis[-1][2] + 1 for axis in axes])
        voxels.seed()
        return _unpadded(voxels) + 1
    return oracle_labels([to_bins(image, window)], step, shuffle=shuffle, compactness=compactness)


def oracle_labels(channels, step, weights=(1,), inside=None, shuffle=None, compactness=0):
    """Return the labels 1..N of volumes of bins (z, y, x), one for each channel, and 0 outside the mask `inside`."""
    shape = channels[0].shape
    step = [min(s, n) for s, n in zip(step, shape, strict=True)]
    all_axes = levels(shape, step)
    cells = [axis[-1][2] + 1 for axis in all_axes[-1]]
    level = None
    for number, axes in enumerate(all_axes):
        coarser, level = level, Level(axes, cells, inside)
        if coarser is None:
            level.seed()
        else:
            level.inherit(coarser)
        if number < len(all_axes) - 1:
            histograms = [block_histograms(level, bins) for bins in channels]
            for turn in range(max(BLOCK_ROUNDS, len(all_axes) - 1)):
                # Rounds are dealt to the levels in turn.
                if turn % (len(all_axes) - 1) == number:
                    block_round(level, histograms, step, shuffle, BLOCK_GAINS[number > 0], compactness, weights)
        else:
            for lambda_per_cent in LAMBDAS:
                voxel_round(level, channels, weights, lambda_per_cent, step, compactness, shuffle)
    return _unpadded(level) + 1


def _unpadded(level):
    return np.reshape(level.labels, [n + 2 for n in level.shape])[1:-1, 1:-1, 1:-1]


# Volumes to test with.


@st.composite
def shapes(draw, longest=20, voxels=3000):
    """Draw shapes from a single voxel to a cube or a rod; rows of more than 64 and more than 128 units are special."""
    z = draw(st.integers(1, longest))
    y = draw(st.integers(1, longest))
    room = max(1, voxels // (z * y))
    x = draw(st.one_of(st.integers(1, min(longest, room)), st.integers(1, min(170, room))))
    return tuple(draw(st.permutations((z, y, x))))


# Cubes and bricks, some longer than the volume.
steps = st.one_of(
    st.integers(2, 9).map(lambda s: (s, s, s)),
    st.tuples(*[st.integers(2, 9)] * 3),
    st.tuples(*[st.integers(2, 30)] * 3),
)


@st.composite
def images(draw, shape):
    """Draw noise, smooth blobs, two values, a few grey levels, tissue with noise or heavy tails, all as float64."""
    kind = draw(st.sampled_from(["noise", "blobs", "two values", "grey levels", "tissue", "tails"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.normal(size=shape)
    if kind in ("noise", "tails"):
        return noise if kind == "noise" else np.exp(3 * noise)
    if kind == "grey levels":
        return rng.integers(0, draw(st.integers(2, 6)), shape).astype(float)
    z, y, x = np.indices(shape)
    waves = sum(
        np.sin(a * z + b * y + c * x + phase)
        for a, b, c, phase in zip(*rng.uniform(0, 0.9, (3, 5)), rng.uniform(0, 6, 5), strict=True)
    )
    if kind == "blobs":
        return waves
    return (waves > 0).astype(float) + (0 if kind == "two values" else 0.1 * noise)


@st.composite
def cases(draw, longest=20, voxels=3000):
    """Draw an image, a step, and an intensity window that contains all of it or clips some."""
    shape = draw(shapes(longest, voxels))
    image = draw(images(shape))
    lo, hi = float(image.min()), float(image.max())
    if lo == hi:
        return image, draw(steps), (lo, lo + 1)
    a, b = draw(st.sampled_from([(0, 1), (0.02, 0.9), (0.3, 0.6), (-1, 3)]))
    return image, draw(steps), (lo + a * (hi - lo), lo + b * (hi - lo))


@st.composite
def masks(draw, shape):
    """Draw single voxels, few or many, slabs and bars with gaps, boxes and their complements, everything or nothing."""
    kind = draw(st.sampled_from(["voxels", "voxels", "slabs", "box", "all", "none"]))
    if kind == "voxels":
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        return rng.random(shape) < draw(st.sampled_from([0.02, 0.3, 0.5, 0.8, 0.98]))
    if kind == "slabs":
        period = draw(st.integers(2, 9))
        gap = draw(st.integers(1, period - 1))
        axes = draw(st.sets(st.integers(0, 2), min_size=1, max_size=2))
        return np.all([np.indices(shape)[axis] % period >= gap for axis in axes], axis=0)
    inside = np.full(shape, kind == "all")
    if kind == "box":
        ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
        inside[tuple(slice(*part) for part in ends)] = True
        return inside ^ draw(st.booleans())
    return inside


@st.composite
def volumes(draw, longest=20, voxels=3000):
    """Draw the bins of some channels, (c, z, y, x), a step, the channels' weights, and a mask or None."""
    shape = draw(shapes(longest, voxels))
    count = draw(st.integers(1, 3))
    channels = []
    for image in (draw(images(shape)) for _ in range(count)):
        width = max(float(np.ptp(image)), 1e-6)
        channels.append(np.minimum(63, (image - image.min()) / width * 64).astype(np.uint8))
    weights = draw(st.tuples(*[st.sampled_from([1, 1, 2, 3, 50, 20000])] * count))
    return np.array(channels), draw(steps), weights, draw(st.none() | masks(shape))
