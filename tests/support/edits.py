"""Random edits of labels, and what has to hold after each, by SciPy alone."""

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra


def connected_labels(classes):
    """Number the connected regions of each class of an array but 0, in a shuffled order."""
    labels, count = np.zeros(classes.shape, np.uint32), 0
    for value in np.unique(classes[classes > 0]):
        regions, more = ndimage.label(classes == value)
        labels[regions > 0] = regions[regions > 0] + count
        count += more
    order = np.random.default_rng(0).permutation(count) + 1
    return np.append(0, order).astype(np.uint32)[labels]


def neighbours(labels):
    """Return the pairs of labels that share a face."""
    pairs = set()
    for axis in range(3):
        one, other = (np.moveaxis(labels, axis, 0)[side] for side in (np.s_[:-1], np.s_[1:]))
        touching = (one != other) & (one > 0) & (other > 0)
        pairs |= {tuple(sorted(pair)) for pair in zip(one[touching].tolist(), other[touching].tolist(), strict=True)}
    return sorted(pairs)


def nearest_seeds(inside, seeds):
    """Return the part of each voxel inside: that of the nearest seed by face steps, of several the first, from 1."""
    distances = []
    for points in seeds:
        reached = np.zeros(inside.shape, bool)
        reached[tuple(np.transpose(points))] = True
        distance, steps = np.where(reached, 0, np.inf), 0
        while True:
            wider = ndimage.binary_dilation(reached) & inside
            steps += 1
            if (wider == reached).all():
                break
            distance[wider & ~reached] = steps
            reached = wider
        distances.append(distance)
    return np.where(inside, np.argmin(distances, axis=0) + 1, 0)


def cheapest_seeds(inside, seeds, bins):
    """Return the part of each voxel inside as `nearest_seeds`, where a step costs 1 and what its ends differ by."""
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(np.count_nonzero(inside))
    ends, costs = [], []
    for axis in range(3):
        sides = [[np.moveaxis(array, axis, 0)[side] for array in (number, bins)] for side in (np.s_[:-1], np.s_[1:])]
        (one, one_bins), (other, other_bins) = sides
        joined = (one >= 0) & (other >= 0)
        ends.append(np.stack([one[joined], other[joined]]))
        costs.append(1 + np.abs(one_bins[joined].astype(int) - other_bins[joined]))
    count = np.count_nonzero(inside)
    graph = coo_array((np.concatenate(costs), np.concatenate(ends, axis=1)), shape=(count, count)).tocsr()
    distances = [dijkstra(graph, directed=False, indices=number[tuple(point)]) for [point] in seeds]
    parts = np.zeros(inside.shape, int)
    parts[inside] = np.argmin(distances, axis=0) + 1
    return parts


@st.composite
def edit_steps(draw, count):
    """Draw numbers from which `act` chooses edits."""
    return draw(st.lists(st.tuples(st.sampled_from("msmsu"), st.integers(0, 10**6)), min_size=1, max_size=count))


def act(edits, labels, step):
    """Carry out a random edit of what labels there are; return its record, or None if there is nothing to edit."""
    kind, number = step
    if kind == "u":
        return edits.undo() if edits.log and any(one.kind != "undo" for one in open_edits(edits.log)) else None
    if kind == "m":
        pairs = neighbours(labels)
        return edits.merge(pairs[number % len(pairs)]) if pairs else None
    large = np.flatnonzero(np.bincount(labels.ravel())[1:] > 1) + 1
    if not large.size:
        return None
    label = int(large[number % len(large)])
    places = np.argwhere(labels == label)
    count = min(len(places), 2 + number % 2)
    chosen = np.random.default_rng(number).choice(len(places), count, replace=False)
    return edits.split(label, seeds=[tuple(point) for point in places[chosen].tolist()])


def open_edits(log):
    """Return the edits that can be undone."""
    undone = {one.undoes for one in log}
    return [one for one in log if one.undoes is None and one.number not in undone]


def check_edit(before, after, record, used):
    """Check what an edit did: no other voxel, no other label, connected regions, labels that were never used."""
    changed = before != after
    assert record.voxels == np.count_nonzero(changed)
    assert set(np.unique(before[changed]).tolist()) <= set(record.before)
    assert set(np.unique(after[changed]).tolist()) <= set(record.after)
    assert changed[record.box.slices].sum() == changed.sum()
    ids, kept = set(np.unique(after).tolist()), set(np.unique(before).tolist())
    assert ids == (kept - set(record.before)) | set(record.after)
    for label in record.after:
        assert ndimage.label(after == label)[1] == 1
    if record.kind == "split":
        assert set(record.after[1:]).isdisjoint(used)


def assert_same_tables(one, other):
    """Check that features are equal in every bit."""
    for a, b in zip((one.table, one.edges), (other.table, other.edges), strict=True):
        assert a.column_names == b.column_names
        for name in a.column_names:
            left, right = (table[name].combine_chunks() for table in (a, b))
            if pa.types.is_fixed_size_list(left.type):
                left, right = left.flatten(), right.flatten()
            one_side, other_side = (array.to_numpy(zero_copy_only=False) for array in (left, right))
            assert one_side.tobytes() == other_side.tobytes(), name
