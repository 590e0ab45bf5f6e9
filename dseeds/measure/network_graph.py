"""What graph networks need beside features: classes to learn, a split of the nodes, and edges to the nearest ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from dseeds.core.checks import is_whole_number
from dseeds.core.optional import import_optional
from dseeds.measure.identity import TableOrigin, check_same_labels
from dseeds.measure.lookup import open_values

PARTS = ("train", "val", "test")
UNKNOWN_CLASS = -1
# Columns of edges that are computed from the centroids: the distance, and the way from source to target (x, y, z).
DISTANCE, OFFSET = "distance", "offset"


def read_targets(
    table: Any, column: str | None, labels: NDArray[np.int64], origin: TableOrigin | None
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Return what is known of each of the labels (n,): int64, -1 where unknown, or float32 and NaN.

    See `AdjacencyGraph.to_torch_geometric` for the table.

    >>> read_targets({2: 7, 3: 0}, None, np.array([1, 2, 3]), None)
    array([-1,  7,  0])
    """
    is_of_votes = column is None and (
        isinstance(table, str | os.PathLike) or isinstance(getattr(table, "table", None), pa.Table)
    )
    values = _look_up(table, "majority" if is_of_votes else column, labels, origin)
    if is_of_votes:
        # Without votes, the majority is the class that was ignored.
        values[~(_look_up(table, "num_annotated", labels, origin) > 0)] = np.nan
    known = values[~np.isnan(values)]
    if (known != np.floor(known)).any():
        return values.astype(np.float32)
    if known.size and (known.min() < 0 or known.max() >= 2**53):
        raise ValueError(f"classes must be whole numbers from 0 to 2^53, got {known.min():g} to {known.max():g}.")
    return np.where(np.isnan(values), UNKNOWN_CLASS, np.nan_to_num(values)).astype(np.int64)


def _look_up(
    table: Any, column: str | None, labels: NDArray[np.int64], origin: TableOrigin | None
) -> NDArray[np.float64]:
    """Return the values of labels, float64 (n,), NaN where there is none."""
    opened = open_values(table, column)
    check_same_labels(opened.origin, origin)
    keys, numbers = opened.select(labels)
    is_used = np.isin(keys, labels)
    if not is_used.all():
        stranger = keys[~is_used][0]
        raise ValueError(f"label {stranger} has a class, but is not in the graph: are both of the same labels?")
    values = np.full(len(labels), np.nan)
    values[np.searchsorted(labels, keys)] = numbers
    return values


def split_nodes(
    split: Sequence[float] | Mapping[str, ArrayLike],
    seed: int,
    labels: NDArray[np.int64],
    targets: NDArray[Any] | None,
) -> dict[str, NDArray[np.bool_]]:
    """Return the masks ``train_mask``, ``val_mask`` and ``test_mask``, bool (n,); see `to_torch_geometric`.

    >>> masks = split_nodes((0.5, 0.25, 0.25), 0, np.arange(1, 10), np.array([0, 0, 0, 0, 1, 1, 1, 1, -1]))
    >>> {name: int(mask.sum()) for name, mask in masks.items()}
    {'train_mask': 4, 'val_mask': 2, 'test_mask': 2}
    """
    if isinstance(split, Mapping):
        return _given_masks(split, labels)
    shares = _check_shares(split)
    known = np.ones(len(labels), bool)
    groups = np.zeros(len(labels), np.int64)
    if targets is not None:
        known = targets != UNKNOWN_CLASS if targets.dtype.kind == "i" else ~np.isnan(targets)
        # Each class is split by itself, so that rare ones are in all parts.
        groups = targets if targets.dtype.kind == "i" else groups
    part = np.full(len(labels), -1)
    random = np.random.default_rng(seed)
    for group in np.unique(groups[known]):
        members = random.permutation(np.flatnonzero(known & (groups == group)))
        ends = np.rint(np.cumsum(shares) * len(members)).astype(int)
        for number, begin, end in zip(range(3), [0, *ends], ends, strict=False):
            part[members[begin:end]] = number
    return {f"{name}_mask": part == number for number, name in enumerate(PARTS)}


def _given_masks(split: Mapping[str, ArrayLike], labels: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    given = {name: np.unique(np.asarray(split[name], np.int64)) for name in split}
    unknown = [name for name in given if name not in PARTS]
    if unknown:
        raise ValueError(f"split has the part {unknown[0]!r}: its parts are {', '.join(PARTS)}.")
    named = np.concatenate([np.zeros(0, np.int64), *given.values()])
    missing = named[~np.isin(named, labels)]
    if len(missing):
        raise ValueError(f"split names label {missing[0]}, which is not in the graph.")
    common = np.flatnonzero(np.bincount(np.searchsorted(labels, named)) > 1)
    if len(common):
        raise ValueError(f"split has label {labels[common[0]]} in two parts: each label belongs to one at most.")
    return {f"{name}_mask": np.isin(labels, given.get(name, ())) for name in PARTS}


def _check_shares(split: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(map(float, split))
    if len(shares) != 3 or not all(isfinite(share) and share >= 0 for share in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"split must be three shares of at least 0, together at most 1, got {split!r}.")
    return shares


def nearest_edges(places: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the pairs of nodes (2, m), in both directions, sorted, each once, of which one is among the k nearest.

    `places` (n, 3) are in mm; a node is not its own neighbour.

    >>> nearest_edges(np.array([[0.0, 0, 0], [0, 0, 1], [0, 0, 3]]), 1)
    array([[0, 1, 1, 2],
           [1, 0, 2, 1]])
    """
    if isinstance(k, bool) or not is_whole_number(k) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}.")
    spatial, count = import_optional("scipy.spatial", "A graph of nearest neighbours", "scipy"), len(places)
    most = min(k, count - 1)
    if most < 1:
        return np.zeros((2, 0), np.int64)
    _, found = spatial.cKDTree(places).query(places, most + 1)
    # Where centroids coincide, a node need not be the first of its own neighbours, or among them.
    others = found != np.arange(count)[:, None]
    others[others.all(axis=1), -1] = False
    ends = np.stack([np.repeat(np.arange(count), most), found[others]])
    edges: NDArray[np.int64] = np.unique(np.concatenate([ends, ends[::-1]], axis=1), axis=1)
    return edges


def edge_geometry(name: str, index: NDArray[np.int64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a column that is computed from the centroids in mm, for edges (2, m) from source to target."""
    offsets = places[index[1]] - places[index[0]]
    lengths: NDArray[np.float64] = np.linalg.norm(offsets, axis=1)[:, None]
    return offsets if name == OFFSET else lengths


def spread_contacts(
    values: NDArray[Any], pairs: NDArray[np.int64], index: NDArray[np.int64], count: int
) -> NDArray[Any]:
    """Return a column of contacts, of sorted pairs (m, 2) of `count` nodes, for edges (2, e); 0 where none touch."""
    keys = pairs[:, 0] * count + pairs[:, 1]
    wanted = index.min(axis=0) * count + index.max(axis=0)
    rows = np.searchsorted(keys, wanted)
    touching = np.append(keys, -1)[rows] == wanted
    spread = np.zeros((len(wanted), 1), values.dtype)
    spread[touching, 0] = values[rows[touching]]
    return spread
