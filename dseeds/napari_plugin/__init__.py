"""The plugin for napari: cut what is in view, annotate supervoxels, propagate classes, save.

- `visible`: the part of a volume that is in view, and its preview; knows no napari.
- `annotation`: the annotated supervoxels of a volume, with undo, propagation and files; knows no napari.
- `panel`: the window's panel, which `napari.yaml` declares.
"""
