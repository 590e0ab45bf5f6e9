"""What the scripts that open a real window have in common: waiting, pressing buttons and drawing strokes."""

import time

from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from dseeds.napari_plugin.panel.layers import PREVIEW

# Seconds after which nothing will happen any more, on the busiest machine.
LIMIT = 600


def wait(condition):
    limit = time.monotonic() + LIMIT
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
    QTest.mousePress(native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, points[0])
    for point in points[1:]:
        # VisPy drops a move that comes less than 10 ms after another one.
        QTest.qWait(30)
        QTest.mouseMove(native, point)
    QTest.mouseRelease(native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, points[-1])


def annotate(viewer, panel, *voxels):
    """Draw a stroke that gives or takes classes, and wait for these."""
    before = panel.session.state
    stroke(viewer, *voxels)
    wait(lambda: panel.session.state is not before)


def wait_for_window(window):
    """Wait until a window is drawn on the display."""
    assert QTest.qWaitForWindowExposed(window._qt_window, 1000 * LIMIT), "no window was shown"


def wait_for_preview(viewer, panel):
    """Wait until the preview of what is in view is shown, and nothing else is to come."""
    wait(lambda: PREVIEW in viewer.layers and panel.preview.is_settled)


def wait_for_work(panel):
    wait(lambda: not panel.work.is_busy)
