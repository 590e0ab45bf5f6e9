"""The panel in napari's window, `SupervoxelPanel`.

- `layers`: the user's layers, those that are selected to be cut, and those that the panel shows; imports napari.
- `widgets`: the boxes and buttons, their rows, and the line of status.
- `background`: work in threads, one at a time, with progress and cancelling; imports napari.
- `chosen_windows`: the intensity window of each choice of layers, chosen in a thread.
- `live_preview`: the preview, which follows what is in view.
- `annotator`: annotating by click and scribble, propagation, suggestions, undo.
- `supervoxel_panel`: the panel that joins these, and cuts, opens and saves.
"""
