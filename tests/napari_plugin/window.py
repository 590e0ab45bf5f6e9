"""A script: a real napari window with the plugin's panel, clicked like a user does. Its argument is an empty folder.

It runs in a process of its own, since a window needs a display and Qt ends with its process. It ends with 0 if all is
well, and leaves screenshots in the folder.
"""

import sys
import time
from pathlib import Path

import dask.array as da
import napari
import numpy as np
import zarr
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

import dseeds
from dseeds.napari_plugin import panel as panel_module

STEP = 8


def wait(condition, seconds=180):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "nothing happened for too long"
        QTest.qWait(20)


def press(button):
    assert button.enabled, button.text
    QTest.mouseClick(button.native, Qt.MouseButton.LeftButton)


def canvas_point(viewer, voxel):
    """Return where a voxel (z, y, x) of the plane in view is on the canvas."""
    canvas = viewer.window._qt_viewer.canvas
    view = canvas.view
    y, x = (voxel[1], voxel[2])
    place = view.scene.transform.map((x, y, 0, 1))
    return QPoint(round(place[0] / place[3]), round(place[1] / place[3]))


def stroke(viewer, *voxels):
    """Press, drag and release the left button over voxels."""
    native = viewer.window._qt_viewer.canvas.native
    points = [canvas_point(viewer, voxel) for voxel in voxels]
    QTest.mouseMove(native, points[0])
    QTest.qWait(30)
    QTest.mousePress(native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, points[0])
    for point in points[1:]:
        QTest.mouseMove(native, point)
        QTest.qWait(30)
    QTest.mouseRelease(native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, points[-1])
    QTest.qWait(30)


def make_image(folder):
    """Write a volume with a bright ball and return it, as the lazy array that napari would show."""
    image = np.random.default_rng(0).normal(100, 10, (40, 96, 96)).astype(np.float32)
    z, y, x = np.ogrid[:40, :96, :96]
    image[(z - 20) ** 2 + (y - 48) ** 2 + (x - 48) ** 2 < 15**2] += 100
    array = zarr.create_array(folder / "image.zarr", data=image, chunks=(8, 32, 32))
    return image, array


def check_preview(viewer, panel, image):
    """Small volumes are previewed exactly; what changes meanwhile is shown in the end."""
    panel.step_box.value = STEP
    panel.preview_box.native.click()
    for compactness in (0.5, 1.0, 2.0):
        panel.compactness_box.value = compactness
        QTest.qWait(30)
    wait(lambda: panel_module.PREVIEW in viewer.layers and not panel._is_previewing and not panel._timer.isActive())
    window = tuple(map(float, panel.window_box.value.split(":")))
    expected = dseeds.supervoxels(image, step=STEP, compactness=2.0, window=window)
    shown = viewer.layers[panel_module.PREVIEW]
    place = tuple(slice(round(lo), round(lo) + n) for lo, n in zip(shown.translate, shown.data.shape, strict=True))
    assert np.array_equal(shown.data, expected[place]), (place, panel.status_label.value)
    assert "as the result will be" in panel.status_label.value
    return expected


def check_cut(viewer, panel, folder, expected):
    press(panel.cut_button)
    assert panel.status_label.value == "Choose a folder for the supervoxels."
    panel.folder_box.value = folder
    press(panel.cut_button)
    assert not panel.cut_button.enabled
    wait(lambda: not panel._is_busy)
    assert panel.session is not None, panel.status_label.value
    written = zarr.open_array(folder / "supervoxels.zarr" / "0", mode="r")[:]
    assert np.array_equal(written, expected)


def check_classes(viewer, panel, expected):
    """Clicks and strokes give classes, which are propagated, corrected and undone."""
    plane = round(float(viewer.dims.point[0]))
    stroke(viewer, (plane, 48, 44), (plane, 48, 52))
    inside = set(expected[plane, 48, 44:53].tolist())
    given = dict(panel.session.state.classes)
    assert set(given.values()) == {1}, panel.status_label.value
    assert {expected[plane, 48, 44], expected[plane, 48, 52]} <= set(given) <= inside
    centre = np.array(viewer.scene.camera.center)
    panel.class_box.value = 2
    stroke(viewer, (plane, 8, 8))
    assert panel.session.state.classes == given | {int(expected[plane, 8, 8]): 2}
    assert np.array_equal(viewer.scene.camera.center, centre), "a stroke must not move the view"
    press(panel.propagate_button)
    wait(lambda: not panel._is_busy)
    classes = np.asarray(viewer.layers[panel_module.ANSWER].data)
    assert classes[plane, 48, 48] == 1
    assert classes[plane, 90, 90] == 2
    probability = np.asarray(viewer.layers[panel_module.PROBABILITY].data)
    assert probability[plane, 48, 48] < 0.5 < probability[plane, 8, 8]
    check_undo(viewer, panel, plane)


def check_undo(viewer, panel, plane):
    before = panel.session.state
    stroke(viewer, (plane, 90, 90))
    assert panel.session.state.classes != before.classes
    press(panel.undo_button)
    assert panel.session.state is before
    press(panel.redo_button)
    assert panel.session.state.classes != before.classes
    press(panel.undo_button)


def check_saved(viewer, panel, folder):
    press(panel.save_button)
    wait(lambda: not panel._is_busy)
    classes = np.asarray(viewer.layers[panel_module.ANSWER].data)
    assert np.array_equal(zarr.open_array(folder / "classes.zarr" / "0", mode="r")[:], classes), (
        panel.status_label.value
    )
    given = panel.session.state.classes
    press(panel.open_button)
    wait(lambda: not panel._is_busy)
    assert panel.session.state.classes == given


class Recorder:
    """A level of an image that lies elsewhere: it remembers how many voxels are read."""

    def __init__(self, array):
        self.array, self.voxels = array, 0
        self.shape, self.dtype, self.ndim, self.size = array.shape, array.dtype, array.ndim, array.size

    def __getitem__(self, index):
        part = self.array[index]
        self.voxels += part.size
        return part


def check_large(viewer, panel):
    """Of a large image, only what is in view is read, and cut with a margin."""
    plane = np.random.default_rng(1).integers(0, 200, (1024, 1024), np.uint8)
    whole = np.broadcast_to(plane, (128, 1024, 1024))
    levels = [Recorder(whole[:: 2**k, :: 2**k, :: 2**k]) for k in range(4)]
    # Napari cuts a level to the view before it takes a plane of it, which lazy arrays make one read.
    arrays = [da.from_array(level, chunks=(16, 128, 128), name=False) for level in levels]
    viewer.layers.clear()
    viewer.add_image(arrays, name="large", multiscale=True, contrast_limits=(0, 200))
    viewer.scene.camera.center = (0, 512, 512)
    viewer.scene.camera.zoom = 4
    panel.window_box.value = ""
    panel.preview_box.value = True
    wait(lambda: panel_module.PREVIEW in viewer.layers and not panel._is_previewing and not panel._timer.isActive())
    shown = viewer.layers[panel_module.PREVIEW]
    assert "nearly as the result will be" in panel.status_label.value
    assert shown.data.shape[1] < 512
    lo, hi = shown.translate, shown.translate + shown.data.shape
    assert (lo[1:] <= 512).all()
    assert (hi[1:] > 512).all()
    assert levels[0].voxels < whole.size / 4, levels[0].voxels
    # Another plane, another preview.
    viewer.dims.set_point(0, 100)
    wait(lambda: shown.translate[0] <= 100 < shown.translate[0] + shown.data.shape[0])


def main(folder):
    viewer = napari.Viewer(show=True)
    window = viewer.window
    window.resize(1200, 800)
    _, panel = window.add_plugin_dock_widget("dseeds", "Supervoxels")
    image, array = make_image(folder)
    viewer.add_image(array, name="ball")
    wait(window._qt_window.isVisible)
    QTest.qWait(200)
    results = folder / "results"
    results.mkdir()
    expected = check_preview(viewer, panel, image)
    viewer.screenshot(folder / "preview.png", canvas_only=False, flash=False)
    check_cut(viewer, panel, results, expected)
    check_classes(viewer, panel, expected)
    viewer.screenshot(folder / "classes.png", canvas_only=False, flash=False)
    check_saved(viewer, panel, results)
    check_large(viewer, panel)
    viewer.screenshot(folder / "large.png", canvas_only=False, flash=False)
    viewer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
