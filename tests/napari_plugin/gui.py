"""What the scripts that open a real window have in common: waiting, pressing buttons and drawing strokes."""

import time

from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from dseeds.napari_plugin.panel.layers import PREVIEW


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


def wait_for_preview(viewer, panel):
    """Wait until the preview of what is in view is shown, and nothing else is to come."""
    wait(lambda: PREVIEW in viewer.layers and panel.preview.is_settled)


def wait_for_work(panel):
    wait(lambda: not panel.work.is_busy)
