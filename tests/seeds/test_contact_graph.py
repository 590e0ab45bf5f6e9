"""The region adjacency graph, against counts voxel by voxel, for any cut of the volume."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds.core.geometry import Box, Lattice, Regions
from dseeds.seeds.contact_graph import FIELDS, adjacency_lists, build_contact_graph, combine_graphs

quick = settings(max_examples=60)


def volume(seed, shape, channels, dtype=np.uint32, names=6):
    """Return labels in blobs with holes, some of them large numbers, and bins."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max // 4
    ids = np.concatenate([[0], rng.choice([1, 2, 3, top, top - 1, top - 2, *rng.integers(4, top, names)], names)])
    coarse = rng.integers(0, len(ids), [-(-n // 2) for n in shape])
    labels = np.kron(coarse, np.ones((2, 2, 2), int))[tuple(map(slice, shape))]
    labels = np.where(rng.random(shape) < 0.2, rng.integers(0, len(ids), shape), labels)
    return ids[labels].astype(dtype), rng.integers(0, 64, (channels, *shape)).astype(np.uint8)


def table(labels, bins):
    """Count voxels, sums and faces one at a time."""
    sizes, sums, faces = Counter(), {}, Counter()
    for voxel in np.ndindex(labels.shape):
        own = int(labels[voxel])
        if not own:
            continue
        sizes[own] += 1
        sums[own] = sums.get(own, 0) + bins[(slice(None), *voxel)].astype(int)
        for axis in range(3):
            other = tuple(c + (k == axis) for k, c in enumerate(voxel))
            if other[axis] < labels.shape[axis] and labels[other] not in (0, own):
                faces[tuple(sorted((own, int(labels[other]))))] += 1
    return sizes, sums, faces


def piece(labels, bins, box):
    """Return a region's part of the graph, from a window with a margin of one voxel."""
    around = box.grow(1, within=labels.shape)
    return build_contact_graph(labels[around.slices], box.relative_to(around.lo), bins[(slice(None), *box.slices)])


def same(one, other):
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype == np.int64
        np.testing.assert_array_equal(a, b)


shapes = st.tuples(*[st.integers(1, 8)] * 3)
seeds = st.integers(0, 999)


@quick
@given(shapes, seeds, st.integers(1, 3), st.sampled_from([np.uint32, np.uint64]))
def test_voxels_and_faces_are_counted(shape, seed, channels, dtype):
    labels, bins = volume(seed, shape, channels, dtype)
    sizes, sums, faces = table(labels, bins)
    graph = build_contact_graph(labels, Box((0, 0, 0), shape), bins)
    assert graph.ids.tolist() == sorted(sizes)
    assert graph.sizes.tolist() == [sizes[own] for own in sorted(sizes)]
    assert graph.sums.tolist() == [sums[own].tolist() for own in sorted(sizes)]
    assert graph.sums.shape == (len(sizes), channels)
    assert list(map(tuple, graph.pairs.tolist())) == sorted(faces)
    assert graph.contacts.tolist() == [faces[pair] for pair in sorted(faces)]


@quick
@given(shapes, seeds, st.tuples(*[st.integers(1, 3)] * 3), st.randoms())
def test_any_cut_adds_up_to_the_whole(shape, seed, cut, random):
    labels, bins = volume(seed, shape, 2)
    lattice = Lattice(shape, (2, 2, 2))
    regions = Regions(lattice, cut)
    boxes = [lattice.grids[-1].units_of(regions.box(number)) for number in range(len(regions))]
    pieces = [piece(labels, bins, box) for box in boxes]
    whole = build_contact_graph(labels, Box((0, 0, 0), shape), bins)
    random.shuffle(pieces)
    same(combine_graphs(pieces), whole)
    some = len(pieces) // 2
    same(combine_graphs([combine_graphs(pieces[some:]), *pieces[:some]]), whole)


@quick
@given(shapes, seeds)
def test_bytes_and_back(shape, seed):
    graph = build_contact_graph(*(lambda labels, bins: (labels, Box((0, 0, 0), shape), bins))(*volume(seed, shape, 2)))
    same(type(graph).from_bytes(graph.to_bytes()), graph)


@quick
@given(seeds, st.data())
def test_damage_is_detected(seed, data):
    labels, bins = volume(seed, (4, 4, 4), 1)
    graph = build_contact_graph(labels, Box((0, 0, 0), labels.shape), bins)
    content = bytearray(graph.to_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    cut = bytes(content[:at])
    content[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(content), cut):
        with pytest.raises(ValueError, match="the graph is damaged"):
            type(graph).from_bytes(damaged)


@quick
@given(shapes, seeds)
def test_a_relabelled_graph_is_that_of_relabelled_labels(shape, seed):
    labels, bins = volume(seed, shape, 1)
    everything = Box((0, 0, 0), shape)
    graph = build_contact_graph(labels, everything, bins)
    same(
        graph.relabelled(graph.ids % 3 + 1, graph.pairs % 3 + 1),
        build_contact_graph(np.where(labels, labels % 3 + 1, 0).astype(np.uint32), everything, bins),
    )


@quick
@given(shapes, seeds)
def test_neighbours(shape, seed):
    graph = build_contact_graph(*(lambda labels, bins: (labels, Box((0, 0, 0), shape), bins))(*volume(seed, shape, 1)))
    pairs = np.searchsorted(graph.ids, graph.pairs)
    starts, others, contacts = adjacency_lists(len(graph.ids), pairs, graph.contacts)
    listed = Counter()
    for node in range(len(graph.ids)):
        own = others[starts[node] : starts[node + 1]].tolist()
        assert own == sorted(set(own))
        listed.update({(node, other): int(contacts[starts[node] + k]) for k, other in enumerate(own)})
    expected = Counter()
    for (a, b), count in zip(pairs.tolist(), graph.contacts.tolist(), strict=True):
        expected.update({(a, b): count, (b, a): count})
    assert listed == expected


def test_many_supervoxels():
    """More supervoxels than a new table has slots."""
    labels = np.arange(1, 24 * 25 * 26 + 1, dtype=np.uint32).reshape(24, 25, 26)
    graph = build_contact_graph(labels, Box((0, 0, 0), labels.shape), np.ones((1, *labels.shape), np.uint8))
    assert graph.ids.tolist() == list(range(1, labels.size + 1))
    assert len(graph.pairs) == 3 * labels.size - 24 * 25 - 25 * 26 - 24 * 26
    assert set(graph.contacts.tolist()) == set(graph.sizes.tolist()) == {1}
