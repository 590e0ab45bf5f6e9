"""The formats: each module reads, and some also write, volumes of one format.

`file_source` and `file_writer` hold what several formats share, `itk` what SimpleITK's do, and `zarr_node` what a Zarr
array and an OME-Zarr image do. `dseeds.io.source` explains how to add a format.
"""
