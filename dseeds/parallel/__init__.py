"""Parallel execution on Dask clusters and threads, and the display of progress.

`cluster` connects to clusters and starts local ones, `executor` calls a function for many arguments on a cluster or on
threads, `terminal_progress` and `notebook_progress` show how far the work is.
"""
