"""Coarser levels, against the same hill climbing in plain Python over sets, and on a real volume."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import dseeds
from dseeds.core.geometry import Box, Lattice
from dseeds.seeds.contact_graph import FIELDS, build_contact_graph
from dseeds.seeds.hierarchy import coarser_level
from dseeds.seeds.kernels.hierarchy import CONTACT_WEIGHT, MOST_GROUP_SWEEPS, SIZE_WEIGHT

quick = settings(max_examples=50)


def whole(labels, bins):
    return build_contact_graph(labels, Box((0, 0, 0), labels.shape), bins)


def volume(seed, shape, channels, masked, few):
    """Return connected supervoxels with ids 1..n, bins, and cells near the supervoxels but not always under them."""
    rng = np.random.default_rng(seed)
    lattice = Lattice(shape, (2, 2, 2))
    homes = np.stack(np.meshgrid(*lattice.grids[-1].cells, indexing="ij"), -1)
    owners = np.clip(homes + rng.integers(-1, 2, homes.shape) * (rng.random(shape) < 0.3)[..., None], 0, None)
    owners = np.minimum(owners, np.array(lattice.cells) - 1)
    numbers = np.ravel_multi_index(tuple(np.moveaxis(owners, -1, 0)), lattice.cells)
    numbers[rng.random(shape) < masked] = -1
    labels, cells = np.zeros(shape, np.uint32), []
    for own in range(lattice.size):
        parts, count = ndimage.label(numbers == own)
        labels[parts > 0] = parts[parts > 0] + len(cells)
        cells += [np.unravel_index(own, lattice.cells)] * count
    bins = rng.integers(0, 3 if few else 64, (channels, *shape)).astype(np.uint8)
    return labels, bins, np.array(cells, np.int64).reshape(-1, 3)


@st.composite
def cases(draw):
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    channels = draw(st.integers(1, 3))
    masked = draw(st.sampled_from([0, 0.3, 0.7]))
    weights = tuple(draw(st.integers(1, 5)) for _ in range(channels))
    return *volume(draw(st.integers(0, 9999)), shape, channels, masked, draw(st.booleans())), weights


def pieces(nodes, touching):
    """Return the connected components of a set of nodes, in the order of their first nodes."""
    rest, components = set(nodes), []
    while rest:
        piece, edge = set(), {min(rest)}
        while edge:
            piece |= edge
            edge = {other for node in edge for other in touching[node] if other in rest} - piece
        components.append(piece)
        rest -= piece
    return components


class Slowly:
    """The rule, with sums that are recomputed for every step from sets of supervoxels by group."""

    def __init__(self, graph, cells, weights):
        self.sizes, self.sums, self.weights = graph.sizes.tolist(), graph.sums.tolist(), weights
        self.touching = [{} for _ in cells]
        for (a, b), count in zip((graph.pairs - 1).tolist(), graph.contacts.tolist(), strict=True):
            self.touching[a][b] = self.touching[b][a] = count
        self.groups = {}
        for node, cell in enumerate(cells.tolist()):
            self.groups.setdefault(tuple(c // 2 for c in cell), set()).add(node)
        self.average = max(1, sum(self.sizes) // max(1, len(self.groups)))
        for _ in range(MOST_GROUP_SWEEPS):
            if sum(self.move(node) for node in range(len(cells))) == 0:
                break
        self.repair()

    def size(self, nodes):
        return sum(self.sizes[node] for node in nodes)

    def means(self, nodes, bits):
        sums = [sum(self.sums[node][c] for node in nodes) for c in range(len(self.weights))]
        return [(total << bits) // self.size(nodes) for total in sums]

    def score(self, node, nodes):
        pairs = zip(self.weights, self.means(nodes, 8), self.means([node], 8), strict=True)
        distance = sum(w * (a - b) ** 2 for w, a, b in pairs) // sum(self.weights)
        own, rest = self.sizes[node], self.size(nodes)
        contact = sum(count for other, count in self.touching[node].items() if other in nodes)
        share = CONTACT_WEIGHT * contact // max(1, sum(self.touching[node].values()))
        return share - SIZE_WEIGHT * (rest + own) // self.average - ((distance * ((rest << 16) // (rest + own))) >> 16)

    def move(self, node):
        own = next(cell for cell, nodes in self.groups.items() if node in nodes)
        rest = self.groups[own] - {node}
        if not rest:
            return False
        best, top = own, self.score(node, rest)
        for other in sorted(self.touching[node]):
            cell = next(cell for cell, nodes in self.groups.items() if other in nodes)
            if cell != own and max(abs(a - b) for a, b in zip(cell, own, strict=True)) <= 1:
                score = self.score(node, self.groups[cell])
                if score > top:
                    best, top = cell, score
        if best == own or sum(not piece.isdisjoint(self.touching[node]) for piece in pieces(rest, self.touching)) > 1:
            return False
        self.groups[own] = rest
        self.groups[best] = self.groups[best] | {node}
        return True

    def repair(self):
        """Join all pieces of a group except the largest to others, the smallest first."""
        self.kept, loose = [], []
        for cell, nodes in self.groups.items():
            components = sorted(pieces(nodes, self.touching), key=lambda piece: (-self.size(piece), min(piece)))
            self.kept.append((cell, min(components[0]), components[0]))
            loose += [(cell, min(piece), piece) for piece in components[1:]]
        due = sorted(loose, key=lambda entry: (self.size(entry[2]), entry[1]))
        while due:
            piece = due.pop(0)
            ranks = []
            for other in [*self.kept, *due]:
                contact = sum(self.touching[node].get(there, 0) for node in piece[2] for there in other[2])
                if contact:
                    pairs = zip(self.weights, self.means(piece[2], 16), self.means(other[2], 16), strict=True)
                    ranks.append((sum(w * abs(a - b) for w, a, b in pairs), -contact, other[1], other))
            if ranks:
                min(ranks, key=lambda rank: rank[:3])[3][2].update(piece[2])
                due.sort(key=lambda entry: (self.size(entry[2]), entry[1]))
            else:
                self.kept.append(piece)

    def parents(self):
        final = sorted((cell, min(nodes), nodes) for cell, _, nodes in self.kept)
        parents = [0] * (1 + len(self.sizes))
        for number, (_, _, nodes) in enumerate(final, 1):
            for node in nodes:
                parents[1 + node] = number
        return parents, [list(cell) for cell, _, _ in final]


@quick
@given(cases())
def test_the_climb_is_that_over_sets(case):
    labels, bins, cells, weights = case
    level = coarser_level(whole(labels, bins), cells, weights)
    parents, larger = Slowly(whole(labels, bins), cells, weights).parents()
    assert level.parents.tolist() == parents
    assert level.cells.tolist() == larger


@quick
@given(cases())
def test_levels_are_nested_connected_and_complete(case):
    labels, bins, cells, weights = case
    graph = whole(labels, bins)
    inside = labels > 0
    for _ in range(3):
        level = coarser_level(graph, cells, weights)
        labels = level.parents[labels]
        np.testing.assert_array_equal(labels > 0, inside)
        assert np.unique(labels[inside]).tolist() == list(range(1, len(level.cells) + 1))
        assert all(ndimage.label(labels == own)[1] == 1 for own in range(1, len(level.cells) + 1))
        assert set(map(tuple, level.cells.tolist())) == set(map(tuple, (cells // 2).tolist()))
        again = whole(labels.astype(np.uint32), bins)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(level.graph, name), getattr(again, name))
        numbers = [(*cell, int(np.argmax(level.parents == k))) for k, cell in enumerate(level.cells.tolist(), 1)]
        assert numbers == sorted(numbers)
        graph, cells = level.graph, level.cells


@quick
@given(cases(), st.integers(1, 4))
def test_same_channels_count_as_one(case, times):
    labels, bins, cells, _ = case
    one = coarser_level(whole(labels, bins[:1]), cells, (1,))
    many = coarser_level(whole(labels, np.repeat(bins[:1], times, axis=0)), cells, (3,) * times)
    np.testing.assert_array_equal(one.parents, many.parents)


def test_other_ids_are_refused():
    labels = np.array([[[1, 3]]], np.uint32)
    with pytest.raises(ValueError, match="supervoxels 1 to 2"):
        coarser_level(whole(labels, np.zeros((1, 1, 1, 2), np.uint8)), np.zeros((2, 3), np.int64))


def test_contrast_decides():
    """Cells of four supervoxels along x, and an edge in the image that is off by one."""
    labels = np.repeat(np.arange(1, 9, dtype=np.uint32), 8).reshape(8, 2, 2, 2).transpose(1, 2, 0, 3).reshape(2, 2, 16)
    bins = np.where(labels <= 3, 5, 60).astype(np.uint8)[None]
    cells = np.array(list(itertools.product([0], [0], range(8))))
    assert coarser_level(whole(labels, bins), cells // 2).parents.tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_what_scores_the_same_stays():
    labels = np.array([[[1, 2, 3, 4, 5, 6]]], np.uint32)
    cells = np.array(list(itertools.product([0], [0], [0, 1, 2, 4, 6, 8])))
    level = coarser_level(whole(labels, np.zeros((1, 1, 1, 6), np.uint8)), cells)
    assert level.parents.tolist() == [0, 1, 1, 2, 3, 4, 5]


def test_on_a_real_volume(ct_3mm):
    """Twice the step by the graph is nearly as good as by voxels."""
    image, organs = ct_3mm
    low, high = np.percentile(image, (0.5, 99.5))
    bins = np.clip((image - low) / (high - low) * 64, 0, 63).astype(np.uint8)[None]
    labels = dseeds.supervoxels(image, step=4)
    lattice = Lattice(image.shape, (4, 4, 4))
    cells = np.stack(np.unravel_index(np.arange(lattice.size), lattice.cells), -1)
    level = coarser_level(whole(labels, bins), cells)
    by_graph = dseeds.evaluate(level.parents[labels], organs, image=image)
    by_voxels = dseeds.evaluate(dseeds.supervoxels(image, step=8), organs, image=image)
    assert by_graph["supervoxels"] == by_voxels["supervoxels"]
    assert by_graph["disconnected"] == 0
    assert by_graph["achievable_dice"] > by_voxels["achievable_dice"] - 0.03
    assert by_graph["undersegmentation_error"] < by_voxels["undersegmentation_error"] + 0.02
    assert by_graph["explained_variation"] > by_voxels["explained_variation"] - 0.005
