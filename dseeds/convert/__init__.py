"""Conversion of volumes: `import_volume` to OME-Zarr, `export_volume` to other formats, `describe` reads metadata."""
