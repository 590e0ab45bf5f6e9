"""Storage: where data lie, and how they are written without loss.

Everything is addressed by a `location.Location`: a local folder or a prefix in a bucket (`object_store`). On top of it,
`zarr_arrays` and `slabs` hold arrays, `label_group` and `parquet_dataset` the outputs, `table_file` and `owned_file`
single files, `label_records` intermediate rows. `ownership` decides whether an output may be replaced, and `lease` lets
one process at a time work on a run.
"""
