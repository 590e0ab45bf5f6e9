"""The Numba loops. They know neither Dask nor Zarr nor the size of the volume.

- `layout`: the memory layout of a window of units, and the places of their neighbours.
- `label_codes`: labels of one byte, and the global labels that they stand for.
- `simd`: operations on vectors of bytes, for many units at once.
- `connectivity`: the units that may leave their supervoxel without cutting it.
- `blocks`, `voxels`: the sweeps and the statistics of the two kinds of units.
- `mask_components`: the components of supervoxels under a mask.
- `contacts`: the region adjacency graph.
- `min_size`, `hierarchy`: joins of small supervoxels, and coarser levels.

All scores are integers, so that a tie is a tie on every machine; see `dseeds.seeds.scores`.
"""
