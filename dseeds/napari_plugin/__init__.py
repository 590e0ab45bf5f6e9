"""The plugin for napari: cut what is in view, annotate supervoxels, propagate classes, save.

- `layer_choice`: the layers to cut, their volumes, and where these lie; knows no napari.
- `stored_volumes`: the Zarr that a layer shows, which is cut in place; knows no napari.
- `visible`: the part of a volume that is in view, and its preview; knows no napari.
- `annotation`: the annotated supervoxels of a volume, with undo, propagation and files; knows no napari.
- `cut_progress`: the progress of a cut, which the window reads and may cancel; knows no napari.
- `panel`: the window's panel, which `napari.yaml` declares; its `layers` and `background` alone import napari.
"""
