"""A slow flood of a boundary map in plain Python, written from the rules alone, as a reference for the fast one."""

from itertools import product

from tests.support.oracle import FACES, cells_along

LEVELS, SWEEPS_PER_LEVEL, SWEEPS_OF_A_ROUND = 12, 6, 13
CELL, BIN, FACE, LEVEL = 1 << 24, 1 << 19, 1 << 22, 3 << 21


class Flood:
    """Bins (c, z, y, x) of an image's channels, of which 64 is masked out, and of a map of its own as one more."""

    def __init__(self, bins, step, weights, kind):
        self.bins, self.weights, self.kind = bins.astype(int), weights, kind
        self.shape = bins.shape[1:]
        self.step = [min(s, n) for s, n in zip(step, self.shape, strict=True)]
        self.axes = [cells_along(n, s) for n, s in zip(self.shape, step, strict=True)]
        self.voxels = [v for v in product(*map(range, self.shape)) if self.bins[(0, *v)] != 64]
        self.units = [CELL // s**2 for s in self.step]

    def home(self, voxel):
        return tuple(axis[i] for axis, i in zip(self.axes, voxel, strict=True))

    def level(self, voxel, box):
        weights, total = self.weights, sum(self.weights)
        if self.kind == "map":
            return int(self.bins[(-1, *voxel)]) * 12 // 64
        if self.kind == "gradient":
            return min(11, max(self.slope(voxel, axis, box) for axis in range(3)) * 12 // (32 * total))
        mean = sum(w * int(self.bins[(c, *voxel)]) for c, w in enumerate(weights)) // total
        return (63 - mean if self.kind == "dark" else mean) * 12 // 64

    def slope(self, voxel, axis, box):
        """Return the weighted difference across a voxel along an axis, within a box of (begin, end) per axis."""
        before, after = list(voxel), list(voxel)
        before[axis] = max(box[axis][0], voxel[axis] - 1)
        after[axis] = min(box[axis][1] - 1, voxel[axis] + 1)
        slope = 0
        for c, w in enumerate(self.weights):
            one, other = int(self.bins[(c, *before)]), int(self.bins[(c, *after)])
            slope += 0 if 64 in (one, other) else w * abs(one - other)
        return slope

    def cost(self, voxel, centre):
        return sum(u * (a - b) ** 2 for u, a, b in zip(self.units, voxel, centre, strict=True))

    def seed(self, cell):
        """Return a cell's seed and the mean bins around it; None for a cell that is masked out."""
        box = [(axis.index(c), axis.index(c) + axis.count(c)) for axis, c in zip(self.axes, cell, strict=True)]
        centre = [(a + b) // 2 for a, b in box]
        own = [v for v in product(*(range(a, b) for a, b in box)) if self.bins[(0, *v)] != 64]
        near = [
            v for v in own if all(abs(i - c) <= 3 * (b - a) // 8 for i, c, (a, b) in zip(v, centre, box, strict=True))
        ]
        if not own:
            return None
        seed = min(near or own, key=lambda v: (self.level(v, box), self.cost(v, centre), v))
        beside = [v for v in own if all(abs(i - j) <= 1 for i, j in zip(v, seed, strict=True))]
        means = [sum(int(self.bins[(c, *v)]) for v in beside) // len(beside) for c in range(len(self.weights))]
        return seed, means

    def run(self):
        """Return the owner of every voxel that is not masked out, as a cell (z, y, x)."""
        everything = [(0, n) for n in self.shape]
        levels = {voxel: self.level(voxel, everything) for voxel in self.voxels}
        seeds = {cell: self.seed(cell) for cell in product(*(range(axis[-1] + 1) for axis in self.axes))}
        owners = {seed[0]: cell for cell, seed in seeds.items() if seed is not None}
        crossing = sum(max(map(axis.count, axis)) - 1 for axis in self.axes)
        count = -(-(SWEEPS_PER_LEVEL * (LEVELS - 1) + crossing) // SWEEPS_OF_A_ROUND) * SWEEPS_OF_A_ROUND
        for sweep in range(1, count + 1):
            taken = {}
            for voxel in self.voxels:
                if voxel in owners or levels[voxel] * SWEEPS_PER_LEVEL >= sweep:
                    continue
                faces = [tuple(a + b for a, b in zip(voxel, face, strict=True)) for face in FACES]
                home, around = self.home(voxel), {}
                for face in faces:
                    cell = owners.get(face)
                    if cell and all(abs(a - b) <= 1 for a, b in zip(cell, home, strict=True)):
                        # A seed counts as the lowest level.
                        level = 0 if face == seeds[cell][0] else levels[face]
                        around.setdefault(cell, []).append(level)
                if around:
                    keys = {
                        cell: self.key(voxel, *seeds[cell]) - FACE * len(lows) + LEVEL * min(lows)
                        for cell, lows in around.items()
                    }
                    taken[voxel] = min(around, key=lambda cell, keys=keys: (keys[cell], cell))
            owners.update(taken)
        return {voxel: owners.get(voxel, self.home(voxel)) for voxel in self.voxels}

    def key(self, voxel, seed, means):
        difference = sum(
            w * abs(int(self.bins[(c, *voxel)]) - mean)
            for c, (w, mean) in enumerate(zip(self.weights, means, strict=True))
        )
        return self.cost(voxel, seed) + BIN * difference // sum(self.weights)
