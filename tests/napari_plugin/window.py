"""A script: a real napari window with the plugin's panel, clicked like a user does. Its argument is an empty folder.

It runs in a process of its own, since a window needs a display and Qt ends with its process. It ends with 0 if all is
well, and leaves screenshots in the folder.
"""

import faulthandler
import sys
import threading
from pathlib import Path

import dask
import dask.array as da
import napari
import numpy as np
import zarr
from qtpy.QtCore import QThreadPool
from qtpy.QtTest import QTest

import dseeds
from dseeds.napari_plugin.panel.layers import ANSWER, LABELS, PREVIEW, PROBABILITY, SUGGESTION
from dseeds.napari_plugin.panel.widgets import CANCEL
from tests.napari_plugin.gui import LIMIT, annotate, press, wait, wait_for_preview, wait_for_window, wait_for_work

STEP = 8


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
        # The window goes on meanwhile; whether a preview begins is left to chance, and changes nothing.
        QTest.qWait(30)
    wait_for_preview(viewer, panel)
    window = tuple(map(float, panel.window_box.value.split(":")))
    expected = dseeds.supervoxels(image, step=STEP, compactness=2.0, window=window)
    shown = viewer.layers[PREVIEW]
    place = tuple(slice(round(lo), round(lo) + n) for lo, n in zip(shown.translate, shown.data.shape, strict=True))
    assert np.array_equal(shown.data, expected[place]), (place, panel.status_label.value)
    assert "as the result will be" in panel.status_label.value
    return expected


class Slow:
    """An image that lies far away: it answers a thread only when it is released."""

    shape, dtype, ndim, size = (64, 64, 64), np.dtype(np.uint8), 3, 64**3

    def __init__(self):
        self.released, self.asked = threading.Event(), threading.Event()

    def __getitem__(self, index):
        values = np.arange(64**3, dtype=np.uint8).reshape(self.shape)[index]
        # In its own thread the window reads what it shows; for a preview it would never ask.
        if threading.current_thread() is not threading.main_thread():
            self.asked.set()
            assert self.released.wait(LIMIT)
        return values


def check_slow(viewer, panel):
    """While the window of a slow image is chosen, others are previewed; what comes late changes nothing."""
    slow, ball, text = Slow(), viewer.layers["ball"], panel.window_box.value
    with dask.config.set(scheduler="synchronous"):
        viewer.add_image(da.from_array(slow, chunks=-1, name=False), name="slow", contrast_limits=(0, 255))
        wait(slow.asked.is_set)
        assert "Reading the intensities of slow" in panel.status_label.value
        shown = viewer.layers[PREVIEW].data
        viewer.layers.selection.active = ball
        panel.compactness_box.value = 1.5
        wait(lambda: viewer.layers[PREVIEW].data is not shown and not panel.preview.is_running)
        shown = viewer.layers[PREVIEW].data
        assert panel.windows.pending
        slow.released.set()
        wait_for_preview(viewer, panel)
        assert viewer.layers[PREVIEW].data is shown
        assert panel.window_box.value == text
    viewer.layers.remove("slow")
    viewer.layers.selection.active = ball
    panel.compactness_box.value = 2.0
    wait_for_preview(viewer, panel)


def check_cancel(viewer, panel, folder):
    press(panel.cut_button)
    assert panel.status_label.value == "Choose a folder for the supervoxels."
    panel.folder_box.value = folder
    press(panel.cut_button)
    press(panel.cut_button)
    assert not panel.cut_button.enabled
    wait_for_work(panel)
    assert "Cancelled." in panel.status_label.value, panel.status_label.value
    assert panel.session is None
    assert not list(folder.iterdir())


def check_cut(viewer, panel, folder, expected):
    panel.folder_box.value = folder
    press(panel.cut_button)
    assert panel.cut_button.text == CANCEL
    wait_for_work(panel)
    assert panel.session is not None, panel.status_label.value
    written = zarr.open_array(folder / "supervoxels.zarr" / "0", mode="r")[:]
    assert np.array_equal(written, expected)


def check_classes(viewer, panel, expected):
    """Clicks and strokes give classes, which are propagated, corrected and undone."""
    plane = round(float(viewer.dims.point[0]))
    annotate(viewer, panel, (plane, 48, 44), (plane, 48, 52))
    inside = set(expected[plane, 48, 44:53].tolist())
    given = dict(panel.session.state.classes)
    assert set(given.values()) == {1}, panel.status_label.value
    assert {expected[plane, 48, 44], expected[plane, 48, 52]} <= set(given) <= inside
    centre = np.array(viewer.scene.camera.center)
    panel.class_box.value = 2
    annotate(viewer, panel, (plane, 8, 8))
    assert panel.session.state.classes == given | {int(expected[plane, 8, 8]): 2}
    assert np.array_equal(viewer.scene.camera.center, centre), "a stroke must not move the view"
    press(panel.propagate_button)
    wait_for_work(panel)
    classes = np.asarray(viewer.layers[ANSWER].data)
    assert classes[plane, 48, 48] == 1
    assert classes[plane, 90, 90] == 2
    probability = np.asarray(viewer.layers[PROBABILITY].data)
    assert probability[plane, 48, 48] < 0.5 < probability[plane, 8, 8]
    check_undo(viewer, panel, plane)


def check_undo(viewer, panel, plane):
    before = panel.session.state
    annotate(viewer, panel, (plane, 90, 90))
    assert panel.session.state.classes != before.classes
    press(panel.undo_button)
    assert panel.session.state is before
    press(panel.redo_button)
    assert panel.session.state.classes != before.classes
    press(panel.undo_button)


def check_saved(viewer, panel, folder):
    press(panel.save_button)
    wait_for_work(panel)
    classes = np.asarray(viewer.layers[ANSWER].data)
    assert np.array_equal(zarr.open_array(folder / "classes.zarr" / "0", mode="r")[:], classes), (
        panel.status_label.value
    )
    given = panel.session.state.classes
    press(panel.open_button)
    wait_for_work(panel)
    assert panel.session.state.classes == given


def check_suggestion(viewer, panel, expected):
    suggested = panel.session.state.answer.suggest(2).tolist()
    for label in suggested:
        press(panel.suggest_button)
        wait_for_work(panel)
        shown = viewer.layers[LABELS]
        place = (viewer.dims.point[0], *viewer.scene.camera.center[1:])
        voxel = tuple(round(float(index)) for index in shown.world_to_data(place))
        assert expected[voxel] == label, panel.status_label.value
        assert np.array_equal(np.asarray(viewer.layers[SUGGESTION].data), expected == label)


def write_channels(folder):
    """Write an OME-Zarr image of two channels, and return them."""
    channels = np.random.default_rng(2).integers(0, 200, (2, 24, 48, 48), np.uint16)
    channels[:, :, 20:] += 100
    group = zarr.create_group(folder / "channels.zarr")
    group.create_array("0", data=channels, chunks=(1, 8, 16, 16))
    transform = {"type": "scale", "scale": [1.0, 2.0, 1.0, 1.0]}, {"type": "translation", "translation": [0, 5, 6, 7.0]}
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space"} for axis in "zyx")]
    datasets = [{"path": "0", "coordinateTransformations": list(transform)}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "two", "axes": axes, "datasets": datasets}]}
    return channels


def check_channels(viewer, panel, folder):
    """Several layers are cut together, within a mask, in place, and lie where the image lies."""
    channels = write_channels(folder)
    viewer.layers.clear()
    panel.preview_box.value, panel.window_box.value, panel.compactness_box.value = False, "", 0.0
    viewer.open(folder / "channels.zarr", plugin="napari-ome-zarr")
    images = list(viewer.layers)
    # Turned in its plane, as no metadata of OME-Zarr 0.5 can say.
    turned = np.eye(4)
    turned[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    for image in images:
        image.affine = turned @ image.affine.affine_matrix
    mask = np.zeros(channels.shape[1:], np.uint8)
    mask[:, 4:, 3:40] = 7
    place = {"scale": images[0].scale, "affine": images[0].affine.affine_matrix}
    viewer.add_labels(mask, name="mask", **place)
    viewer.add_labels(mask[:-1], name="smaller", **place)
    viewer.add_labels(mask, name="elsewhere")
    viewer.layers.selection = set(images)
    panel.preview_box.value = True
    for name, message in (("smaller", "choose layers of one shape"), ("elsewhere", "does not lie where")):
        panel.mask_box.value = viewer.layers[name]
        wait(lambda message=message: message in panel.status_label.value)
    panel.mask_box.value = viewer.layers["mask"]
    wait_for_preview(viewer, panel)
    assert set(viewer.layers.selection) == set(images)
    options = {"step": STEP, "window": panel.window_box.value, "channel_axis": 0, "mask": mask, "spacing": (2, 1, 1)}
    assert options["window"].count(";") == 1
    expected = dseeds.supervoxels(channels, **options)
    shown = viewer.layers[PREVIEW]
    assert_preview(shown, images[0], expected)
    results = folder / "channels"
    results.mkdir()
    panel.folder_box.value = results
    press(panel.cut_button)
    wait_for_work(panel)
    written = zarr.open_group(results / "supervoxels.zarr", mode="r")
    assert np.array_equal(written["0"][:], expected), panel.status_label.value
    assert str(folder / "channels.zarr") in str(written.attrs.asdict())
    labels = viewer.layers[LABELS]
    corner = np.array([23, 47, 47])
    for voxel in (corner * 0, corner):
        assert np.allclose(labels.data_to_world(voxel), images[0].data_to_world(voxel))


def assert_preview(shown, image, expected):
    """Assert that a preview is a part of the expected labels, and lies where the image has it."""
    place = image.world_to_data(shown.data_to_world((0, 0, 0)))
    box = tuple(slice(round(lo), round(lo) + n) for lo, n in zip(place, shown.data.shape, strict=True))
    assert np.array_equal(shown.data, expected[box]), place


def check_boundaries(viewer, panel, folder):
    """Supervoxels end where another layer is high."""
    values = np.random.default_rng(3).integers(0, 200, (2, 24, 48, 48), np.uint8)
    viewer.layers.clear()
    image, edges = (viewer.add_image(part, name=name) for part, name in zip(values, ("image", "edges"), strict=True))
    viewer.layers.selection.active = image
    panel.preview_box.value = True
    panel.boundaries_box.value = edges
    wait_for_preview(viewer, panel)
    window = panel.window_box.value
    expected = dseeds.supervoxels(values[0], step=STEP, window=window, boundaries=values[1])
    assert not np.array_equal(expected, dseeds.supervoxels(values[0], step=STEP, window=window))
    assert_preview(viewer.layers[PREVIEW], image, expected)
    panel.compactness_box.value = 1.0
    wait(lambda: "leave out compactness" in panel.status_label.value)
    panel.boundaries_box.value, panel.compactness_box.value = None, 0.0


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
    panel.preview_box.value, panel.window_box.value = False, ""
    layer = viewer.add_image(arrays, name="large", multiscale=True, contrast_limits=(0, 200))
    viewer.scene.camera.center = (0, 512, 512)
    viewer.scene.camera.zoom = 4
    # A layer knows what is in view when napari has drawn it.
    wait(lambda: layer.data_level == 0 and layer.corner_pixels[0, 1] > 256)
    panel.preview_box.value = True
    wait_for_preview(viewer, panel)
    shown = viewer.layers[PREVIEW]
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
    # On one core it would be one thread, and a slow image would keep all others waiting.
    QThreadPool.globalInstance().setMaxThreadCount(4)
    viewer = napari.Viewer(show=True)
    window = viewer.window
    window.resize(1200, 800)
    _, panel = window.add_plugin_dock_widget("dseeds", "Supervoxels")
    image, array = make_image(folder)
    viewer.add_image(array, name="ball")
    wait_for_window(window)
    results = folder / "results"
    results.mkdir()
    expected = check_preview(viewer, panel, image)
    viewer.screenshot(folder / "preview.png", canvas_only=False, flash=False)
    check_slow(viewer, panel)
    cancelled = folder / "cancelled"
    cancelled.mkdir()
    check_cancel(viewer, panel, cancelled)
    check_cut(viewer, panel, results, expected)
    check_classes(viewer, panel, expected)
    viewer.screenshot(folder / "classes.png", canvas_only=False, flash=False)
    check_suggestion(viewer, panel, expected)
    viewer.screenshot(folder / "suggestion.png", canvas_only=False, flash=False)
    check_saved(viewer, panel, results)
    check_channels(viewer, panel, folder)
    viewer.screenshot(folder / "channels.png", canvas_only=False, flash=False)
    check_boundaries(viewer, panel, folder)
    check_large(viewer, panel)
    viewer.screenshot(folder / "large.png", canvas_only=False, flash=False)
    viewer.close()


if __name__ == "__main__":
    # What hangs outside of a wait shows where.
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
    main(Path(sys.argv[1]))
