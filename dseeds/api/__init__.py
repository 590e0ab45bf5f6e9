"""The public functions that join several layers.

- `supervoxels`: arrays; `lazy` those of Dask, `labelled` those of xarray, `options` what they have in common.
- `segment`: volumes of any size, out of core, with an HTML report.
"""
