"""The engine: out-of-core runs of the segmentation, on Dask or as arrays of batch jobs.

`validation` turns the user's options into a `run`, whose folder `run_directory` keeps; `run_state` has its progress.
`driver` takes it through its `phases` on Dask with `dask_runner`, `batch` without a scheduler. A task of a phase is a
function in `tasks` or `label_tasks`; it gets a `job`, exchanges data through `scratch` and marks itself as done in the
`journal`. `label_tables` turns the tasks' counts and graphs into tables of labels, `repair` handles failures,
`source_import` and `publishing` are the ends of a run, `report` sums it up. `planning` predicts it with `io_model`,
`memory_model` and `calibration`.
"""
