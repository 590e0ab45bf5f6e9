"""The Numba loops. Nothing here knows of Dask, Zarr or the volume's size.

- `layout`: how a window of units lies in memory, and who is whose neighbour there.
- `labels`: labels of one byte, and what they mean.
- `lanes`: vectors of bytes, for what is done to many units at once.
- `connectivity`: which units may leave their supervoxel without cutting it.
- `blocks`, `voxels`: the sweeps and the statistics of the two kinds of units.
- `agglomeration`: supervoxels that touch are merged by their histograms.
- `pyramid`: blocks of voxels become single voxels.

All scores are integers, so that a tie is a tie on every machine; see `dseeds.seeds.scores`.
"""
