"""`min_size`, against joins one by one in plain Python, for any cut of the volume."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dseeds.core.geometry import Box, Lattice, Regions
from dseeds.seeds.contact_graph import FIELDS, build_contact_graph, combine_graphs
from dseeds.seeds.min_size import join_small_supervoxels

quick = settings(max_examples=80)


def volume(seed, shape, channels, few):
    """Return connected supervoxels with ids 1..n, single voxels and holes, and bins, few of which make ties."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 4, [-(-n // 2) for n in shape]), np.ones((2, 2, 2), int))
    rough = np.where(rng.random(shape) < 0.15, rng.integers(0, 4, shape), coarse[tuple(map(slice, shape))])
    labels = np.zeros(shape, np.uint32)
    for value in range(1, 4):
        parts, _ = ndimage.label(rough == value)
        labels = np.where(parts, parts + labels.max(), labels).astype(np.uint32)
    ids = rng.permutation(int(labels.max())) + 1
    labels = np.where(labels, np.append(0, ids)[labels], 0).astype(np.uint32)
    return labels, rng.integers(0, 2 if few else 64, (channels, *shape)).astype(np.uint8), len(ids)


def touching(labels, own):
    """Count the faces of a supervoxel by the supervoxel on the other side."""
    faces = Counter()
    for axis in range(3):
        for a, b in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
            here, there = (np.moveaxis(labels, axis, 0)[part] for part in (a, b))
            faces.update(there[(here == own) & (there != own) & (there != 0)].tolist())
    return faces


def means(labels, bins, own):
    return [(int(channel[labels == own].sum()) << 16) // int((labels == own).sum()) for channel in bins]


def slowly(labels, bins, min_size, weights):
    """Return the labels by the rule, with the whole volume examined anew for every step."""
    labels = labels.astype(int)
    stuck = set()
    while True:
        sizes = Counter(labels[labels > 0].tolist())
        due = sorted((size, own) for own, size in sizes.items() if size < min_size and own not in stuck)
        if not due:
            return labels
        own = due[0][1]
        ranks = []
        for other, contact in touching(labels, own).items():
            pairs = zip(weights, means(labels, bins, own), means(labels, bins, other), strict=True)
            ranks.append((sum(w * abs(a - b) for w, a, b in pairs), -contact, other))
        if ranks:
            labels[labels == own] = min(ranks)[2]
        else:
            stuck.add(own)


@st.composite
def cases(draw):
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    channels = draw(st.integers(1, 3))
    labels, bins, count = volume(draw(st.integers(0, 9999)), shape, channels, draw(st.booleans()))
    weights = tuple(draw(st.integers(1, 5)) for _ in range(channels))
    return labels, bins, count, weights, draw(st.sampled_from([1, 2, 3, 5, 9, 20, 400]))


@quick
@given(cases(), st.tuples(*[st.integers(1, 3)] * 3))
def test_joins_are_those_one_by_one(case, cut):
    labels, bins, count, weights, min_size = case
    lattice = Lattice(labels.shape, (2, 2, 2))
    regions = Regions(lattice, cut)
    pieces = []
    for number in range(len(regions)):
        box = lattice.grids[-1].units_of(regions.box(number))
        around = box.grow(1, within=labels.shape)
        window, core = labels[around.slices], box.relative_to(around.lo)
        pieces.append(build_contact_graph(window, core, bins[(slice(None), *box.slices)]))

    joined = join_small_supervoxels(count, lambda: iter(pieces), min_size, weights)
    joined = pickle.loads(pickle.dumps(joined))

    expected = slowly(labels, bins, min_size, weights)
    kept = np.unique(expected[expected > 0])
    numbers = np.zeros(count + 1, np.uint32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    final = joined.relabel(labels)
    assert joined.count == len(kept)
    assert final.dtype == labels.dtype
    np.testing.assert_array_equal(final, numbers[expected])

    whole = build_contact_graph(final, Box((0, 0, 0), labels.shape), bins)
    for relabelled in (joined.relabel_graph(combine_graphs(pieces)), combine_graphs(map(joined.relabel_graph, pieces))):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(relabelled, name), getattr(whole, name))


@quick
@given(cases())
def test_remaining_supervoxels_are_connected_and_large_enough(case):
    labels, bins, count, weights, min_size = case
    graph = build_contact_graph(labels, Box((0, 0, 0), labels.shape), bins)
    joined = join_small_supervoxels(count, lambda: [graph], min_size, weights)
    final = joined.relabel_graph(graph)
    assert final.ids.tolist() == list(range(1, joined.count + 1))
    alone = set(final.ids.tolist()) - set(final.pairs.reshape(-1).tolist())
    assert all(own in alone for own in final.ids[final.sizes < min_size].tolist())
    labels = joined.relabel(labels)
    assert all(ndimage.label(labels == own)[1] == 1 for own in final.ids)


@pytest.mark.parametrize("seed", range(4))
def test_many_steps(seed):
    """Single voxels grow until they are large enough, so that unions join again."""
    rng = np.random.default_rng(seed)
    labels = (1 + rng.permutation(90)).reshape(1, 9, 10).astype(np.uint32)
    bins = rng.integers(0, 64, (2, *labels.shape)).astype(np.uint8)
    graph = build_contact_graph(labels, Box((0, 0, 0), labels.shape), bins)
    final = join_small_supervoxels(90, lambda: [graph], 20, (2, 1)).relabel(labels)
    expected = slowly(labels, bins, 20, (2, 1))
    np.testing.assert_array_equal(final, np.unique(expected, return_inverse=True)[1].reshape(labels.shape) + 1)


def test_ids_of_any_type_and_order():
    labels = np.array([[[1, 2, 2, 3, 3]]], np.uint64)
    graph = build_contact_graph(labels, Box((0, 0, 0), labels.shape), np.zeros((1, *labels.shape), np.uint8))
    joined = join_small_supervoxels(3, lambda: [graph], 2)
    for dtype in (np.uint8, np.uint32, np.uint64, np.int64):
        ids = np.array([[3, 0, 1], [2, 2, 3]], dtype)
        for view in (ids, ids.T, ids[:, ::-1]):
            assert joined.relabel(view).dtype == dtype
            np.testing.assert_array_equal(joined.relabel(view), np.array([0, 1, 1, 2])[view])
    assert joined.relabel(np.zeros(0, np.uint32)).shape == (0,)


def test_no_supervoxel_at_all():
    labels = np.zeros((2, 2, 2), np.uint32)
    graph = build_contact_graph(labels, Box((0, 0, 0), labels.shape), np.full((2, *labels.shape), 64, np.uint8))
    joined = join_small_supervoxels(0, lambda: [graph], 10, (1, 2))
    assert joined.count == 0
    assert not joined.relabel(labels).any()
