"""Pictures of planes of supervoxels: contours over the image, and mean intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont, PngImagePlugin

from dseeds.core.geometry import AXES, Triple
from dseeds.storage.owned_file import MARK
from dseeds.viz.sections import Orientation, PlaneReader, Section, View, read_sections

Colours = NDArray[np.uint8]

# Pixels between panels, of a title, and of its font.
GAP, HEAD, TEXT = 12, 22, 14
AMBER, GRAY = (255, 178, 26), (128, 128, 128)
# The opacity of the image under a contour.
UNDER = 0.2
# Below the first mean side of a supervoxel, in pixels, a detail is shown, in which the side reaches the second.
CROWDED, CLEAR = 6.0, 12.0
# The default window, in percentiles of what is shown.
SHOWN_PERCENTILES = (0.5, 99.5)
# Rotating by the golden ratio keeps the hues of consecutive labels apart.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Subject:
    """Supervoxels to draw, and their image if there is one. The planes intersect in the voxel `at`."""

    labels: PlaneReader
    image: PlaneReader | None
    at: Triple
    orientation: Orientation

    def read(self, view: View) -> tuple[Section, Section, Section]:
        """Read the planes of a view."""
        return read_sections(self.labels, self.image, view, self.orientation)


@dataclass(frozen=True)
class Sheet:
    """Rows of panels, each with a title, which may be empty."""

    rows: tuple[tuple[tuple[str, Picture.Image], ...], ...]

    def picture(self) -> Picture.Image:
        """Return one picture of all panels under their titles."""
        widths = [max(panel.width for _, panel in column) for column in zip(*self.rows, strict=True)]
        heights = [max(panel.height for _, panel in row) for row in self.rows]
        size = (sum(widths) + GAP * (len(widths) - 1), sum(heights) + HEAD * len(heights) + GAP * (len(heights) - 1))
        picture = Picture.new("RGBA", size, (0, 0, 0, 0))
        top = 0
        for row, height in zip(self.rows, heights, strict=True):
            left = 0
            for (title, panel), width in zip(row, widths, strict=True):
                _write(picture, (left, top + 2), title, "la", GRAY)
                picture.paste(panel, (left, top + HEAD))
                left += width + GAP
            top += HEAD + height + GAP
        return picture


def draw(subject: Subject, whole: View, window: tuple[float, float] | None) -> Sheet:
    """Draw a volume, and a detail of it if its supervoxels are too small for contours.

    `window` gives the intensities drawn as black and as white; None: percentiles of what is shown.
    """
    overview = subject.read(whole)
    titles = [f"{section.name}, {AXES[section.axis]} = {subject.at[section.axis]}" for section in overview]
    if subject.image is None:
        return Sheet((_row(titles, [_panel(section, _hues(section.labels)) for section in overview]),))
    view, detail = whole, overview
    while _mean_side(detail) < (CROWDED if view is whole else CLEAR):
        # Voxels of several pixels do not become clearer.
        if view.pixel * 4 <= min(view.spacing):
            break
        view = view.closer(subject.at)
        detail = subject.read(view)
    low, high = window or _percentiles(overview)
    above = [_panel(section, _grays(section.image, low, high), contours=True) for section in detail]
    below = [_panel(section, _grays(_means(section), low, high)) for section in overview]
    if view is not whole:
        titles = [f"{title}, {round(whole.pixel / view.pixel)} x closer" for title in titles]
        for panel, section in zip(below, overview, strict=True):
            _frame(panel, section, subject.orientation, whole, view)
    return Sheet((_row(titles, above), _row(["mean intensity", "", ""], below)))


def encode_png(picture: Picture.Image) -> bytes:
    """Return a picture as a PNG file that carries the mark of this program."""
    notes, file = PngImagePlugin.PngInfo(), BytesIO()
    notes.add_text("Software", MARK)
    picture.save(file, "PNG", pnginfo=notes)
    return file.getvalue()


def _row(titles: Sequence[str], panels: Sequence[Picture.Image]) -> tuple[tuple[str, Picture.Image], ...]:
    return tuple(zip(titles, panels, strict=True))


def _mean_side(sections: Sequence[Section]) -> float:
    """Return the mean side of a supervoxel in pixels."""
    planes = [section.to_pixels(section.labels) for section in sections]
    pixels = sum(np.count_nonzero(labels) for labels in planes)
    supervoxels = sum(np.count_nonzero(np.unique(labels)) for labels in planes)
    return float(np.sqrt(pixels / supervoxels)) if supervoxels else np.inf


def _panel(section: Section, colours: Colours, *, contours: bool = False) -> Picture.Image:
    """Draw a plane, given the RGBA colour of each of its voxels."""
    pixels = section.to_pixels(colours).copy()
    if contours:
        edges = find_contours(section.to_pixels(section.labels))
        pixels[edges, :3] = UNDER * pixels[edges, :3] + (1 - UNDER) * np.array(AMBER)
        pixels[edges, 3] = 255
    panel = Picture.fromarray(pixels)
    places = ((3, pixels.shape[0] / 2), "lm"), ((pixels.shape[1] / 2, 3), "ma")
    for (place, anchor), letter in zip(places, section.letters, strict=False):
        _write(panel, place, letter, anchor, AMBER, edge=2)
    return panel


def find_contours(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels (rows, columns) whose right or lower neighbour has another label.

    >>> find_contours(np.array([[1, 1, 2], [1, 1, 2]])).astype(int).tolist()
    [[0, 1, 0], [0, 1, 0]]
    """
    edges = np.zeros(labels.shape, np.bool_)
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edges


def _means(section: Section) -> NDArray[np.float64]:
    """Return, for each voxel, the mean intensity of its supervoxel in the plane; NaN outside the mask."""
    assert section.image is not None
    labels, indices = np.unique(section.labels, return_inverse=True)
    means = np.bincount(indices.ravel(), section.image.ravel()) / np.bincount(indices.ravel())
    means[labels == 0] = np.nan
    return np.asarray(means[indices.reshape(section.labels.shape)])


def _grays(values: NDArray[np.float64] | None, low: float, high: float) -> Colours:
    """Return intensities as gray values; NaN is transparent."""
    assert values is not None
    with np.errstate(invalid="ignore"):
        shades = 255 * np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
    grays = np.round(np.nan_to_num(shades)).astype(np.uint8)
    opacity = np.where(np.isnan(values), 0, 255).astype(np.uint8)
    return np.stack([grays, grays, grays, opacity], axis=-1)


def _hues(labels: NDArray[np.int64]) -> Colours:
    """Return a colour for each label; 0 is transparent."""
    hues = 6 * ((labels * GOLDEN) % 1.0)[..., None]
    ramps = np.clip(np.abs((hues + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    colours = np.round(255 * (0.25 + 0.65 * ramps)).astype(np.uint8)
    opacity = np.where(labels == 0, 0, 255).astype(np.uint8)
    return np.concatenate([colours, opacity[..., None]], axis=-1)


def _percentiles(sections: Sequence[Section]) -> tuple[float, float]:
    """Return the percentiles of the finite intensities inside the mask."""
    values = np.concatenate([section.image[section.labels > 0] for section in sections if section.image is not None])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, SHOWN_PERCENTILES)
    return float(low), float(high)


def _frame(panel: Picture.Image, section: Section, orientation: Orientation, whole: View, view: View) -> None:
    """Draw the outline of a closer view."""
    sides = []
    for axis in (section.down, section.right):
        count = whole.pixels(axis)
        scale = count / (whole.hi[axis] - whole.lo[axis])
        start, stop = view.lo[axis] * scale, view.hi[axis] * scale
        sides.append((count - stop, count - start) if orientation.flips[axis] else (start, stop))
    (top, bottom), (left, right) = sides
    ImageDraw.Draw(panel).rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=(*AMBER, 255))


def _write(
    picture: Picture.Image, place: tuple[float, float], text: str, anchor: str, colour: tuple[int, ...], edge: int = 0
) -> None:
    font = ImageFont.load_default(TEXT)
    ImageDraw.Draw(picture).text(
        place, text, (*colour, 255), font, anchor, stroke_width=edge, stroke_fill=(0, 0, 0, 255)
    )
