"""Tables of supervoxels as AnnData matrices, with the keys by which scanpy, squidpy and SpatialData find their way."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.core.optional import import_optional
from dseeds.measure.columns import CENTROID_WORLD
from dseeds.measure.identity import TableOrigin, note_of

if TYPE_CHECKING:
    import anndata

# Columns, without the number at their end, that say which supervoxel it is, where it is or of which class.
OF_ROWS = ("label", "num_pixels", "centroid", "bbox", "centroid_world", "bbox_world", "border", "majority")
# The entry of `uns` that tells which labels a matrix is of.
NOTE = "dseeds"
PURPOSE, EXTRA = "An AnnData matrix", "dseeds[anndata]"


@dataclass(frozen=True, eq=False)
class AnnotatedMatrix:
    """A matrix with a row for each supervoxel, the names of its columns, and further matrices with the same rows."""

    values: NDArray[Any]
    names: Sequence[str]
    layers: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    lists: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table) -> AnnotatedMatrix:
        """Return the numbers of a table, float64 (n, columns), and its lists of numbers apart."""
        lists = [name for name in table.column_names if pa.types.is_fixed_size_list(table.schema.field(name).type)]
        names = [name for name in table.column_names if name not in lists and not _is_of_rows(name)]
        values = np.empty((len(table), len(names)))
        for column, name in enumerate(names):
            values[:, column] = table[name].to_numpy()
        return cls(values, names, lists={name: read_lists(table, name) for name in lists})

    def to_anndata(
        self, table: pa.Table, region: str, edges: pa.Table | None = None, origin: TableOrigin | None = None
    ) -> anndata.AnnData:
        """Return the matrix as AnnData, with other columns of its table, and a graph; see `SupervoxelTables`."""
        module = import_optional("anndata", PURPOSE, EXTRA)
        pandas = import_optional("pandas", PURPOSE, EXTRA)
        labels = table["label"].to_numpy()
        obs: dict[str, Any] = {name: table[name].to_numpy() for name in filter(_is_of_rows, table.column_names)}
        obs["region"], obs["instance_id"] = pandas.Categorical([region] * len(labels)), labels
        spatial = {}
        if set(CENTROID_WORLD) <= set(table.column_names):
            spatial["spatial"] = np.column_stack([table[name].to_numpy() for name in CENTROID_WORLD])
        uns: dict[str, Any] = {
            "spatialdata_attrs": {"region": region, "region_key": "region", "instance_key": "instance_id"}
        }
        if origin is not None:
            # As text, since not every version writes lists and None.
            uns[NOTE] = json.dumps(note_of(origin))
        graphs = {} if edges is None else _graph_matrices(labels, edges, spatial["spatial"])
        if graphs:
            keys = {"connectivities_key": "spatial_connectivities", "distances_key": "spatial_distances"}
            uns["spatial_neighbors"] = {**keys, "params": {"coord_type": "generic"}}
        result: anndata.AnnData = module.AnnData(
            X=self.values,
            obs=pandas.DataFrame(obs, index=list(map(str, labels.tolist()))),
            var=pandas.DataFrame(index=list(self.names)),
            layers=dict(self.layers),
            obsm={**self.lists, **spatial},
            obsp=graphs,
            uns=uns,
        )
        return result


def is_anndata(value: Any) -> bool:
    """Return whether a value is an AnnData matrix, without importing its package.

    >>> is_anndata([1, 2])
    False
    """
    return "anndata" in sys.modules and isinstance(value, sys.modules["anndata"].AnnData)


def anndata_origin(matrix: anndata.AnnData) -> TableOrigin | None:
    """Return the labels that an AnnData matrix of this program is of, also when it was written and read since."""
    with suppress(ValueError, TypeError):
        return TableOrigin.of_file(json.loads(matrix.uns.get(NOTE, "{}")), "the AnnData matrix")
    return None


def read_lists(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a column with lists of a fixed size as a matrix, a row for each list."""
    values: NDArray[Any] = table[name].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return values


def _is_of_rows(name: str) -> bool:
    return name.partition("-")[0] in OF_ROWS


def _graph_matrices(labels: NDArray[np.int64], edges: pa.Table, places: NDArray[np.float64]) -> dict[str, Any]:
    """Return symmetric sparse matrices of a graph: ones, distances of centroids in mm, and areas of contact in mm^2."""
    sparse = import_optional("scipy.sparse", PURPOSE, EXTRA)
    one, other = (np.searchsorted(labels, edges[name].to_numpy()) for name in ("source", "target"))
    ends = np.concatenate([one, other]), np.concatenate([other, one])

    def to_matrix(weights: NDArray[np.float64]) -> Any:
        return sparse.csr_matrix((np.tile(weights, 2), ends), shape=(len(labels),) * 2)

    return {
        "spatial_connectivities": to_matrix(np.ones(len(edges))),
        "spatial_distances": to_matrix(np.linalg.norm(places[one] - places[other], axis=1)),
        "contact_area": to_matrix(edges["area"].to_numpy()),
    }
