"""Planes of supervoxels as pictures: contours over the image, means as shades, and how panels are set out."""

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
from dseeds.viz.sections import Orientation, Section, View, Volume, sections

Shades = NDArray[np.uint8]

GAP, HEAD, TEXT = 12, 22, 14
AMBER, GRAY = (255, 178, 26), (128, 128, 128)
# What contours leave of the image under them.
UNDER = 0.2
# Supervoxels with a smaller side, in pixels, are looked at in detail, until theirs is as long as the second number.
CROWDED, CLEAR = 6.0, 12.0
# Of what is shown, where nobody says what is black and white.
PERCENTILES = (0.5, 99.5)
# Turning by the golden section keeps the hues of labels that follow each other apart.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Subject:
    """What is drawn.

    Attributes
    ----------
    labels, image : Volume
        The supervoxels, and their image if there is one.
    at : tuple of int
        The voxel that the planes go through.
    orientation : Orientation
        How they are turned.
    """

    labels: Volume
    image: Volume | None
    at: Triple
    orientation: Orientation

    def seen(self, view: View) -> tuple[Section, Section, Section]:
        """Read the planes of a view."""
        return sections(self.labels, self.image, view, self.orientation)


@dataclass(frozen=True)
class Sheet:
    """Panels in rows, each with a title, which may be empty."""

    rows: tuple[tuple[tuple[str, Picture.Image], ...], ...]

    def picture(self) -> Picture.Image:
        """Set the panels out, each under its title."""
        widths = [max(panel.width for _, panel in column) for column in zip(*self.rows, strict=True)]
        heights = [max(panel.height for _, panel in row) for row in self.rows]
        size = (sum(widths) + GAP * (len(widths) - 1), sum(heights) + HEAD * len(heights) + GAP * (len(heights) - 1))
        sheet = Picture.new("RGBA", size, (0, 0, 0, 0))
        top = 0
        for row, height in zip(self.rows, heights, strict=True):
            left = 0
            for (title, panel), width in zip(row, widths, strict=True):
                _write(sheet, (left, top + 2), title, "la", GRAY)
                sheet.paste(panel, (left, top + HEAD))
                left += width + GAP
            top += HEAD + height + GAP
        return sheet


def draw(subject: Subject, whole: View, limits: tuple[float, float] | None) -> Sheet:
    """Draw all of a volume and, where its supervoxels are too small for contours, these in detail.

    Parameters
    ----------
    subject : Subject
        What is drawn.
    whole : View
        All of it.
    limits : tuple of float or None
        Intensities that are black and white; None for percentiles.
    """
    overview = subject.seen(whole)
    titles = [f"{section.name}, {AXES[section.axis]} = {subject.at[section.axis]}" for section in overview]
    if subject.image is None:
        return Sheet((_row(titles, [_panel(section, _colours(section.labels)) for section in overview]),))
    view, closer = whole, overview
    while _side(closer) < (CROWDED if view is whole else CLEAR):
        # Large voxels do not become clearer.
        if view.pixel * 4 <= min(view.spacing):
            break
        view = view.closer(subject.at)
        closer = subject.seen(view)
    low, high = limits or _percentiles(overview)
    above = [_panel(section, _shades(section.image, low, high), contours=True) for section in closer]
    below = [_panel(section, _shades(_means(section), low, high)) for section in overview]
    if view is not whole:
        titles = [f"{title}, {round(whole.pixel / view.pixel)} x closer" for title in titles]
        for panel, section in zip(below, overview, strict=True):
            _frame(panel, section, subject.orientation, whole, view)
    return Sheet((_row(titles, above), _row(["mean intensity", "", ""], below)))


def png(picture: Picture.Image) -> bytes:
    """Give a picture as the content of a PNG file, which says who made it."""
    notes, file = PngImagePlugin.PngInfo(), BytesIO()
    notes.add_text("Software", MARK)
    picture.save(file, "PNG", pnginfo=notes)
    return file.getvalue()


def _row(titles: Sequence[str], panels: Sequence[Picture.Image]) -> tuple[tuple[str, Picture.Image], ...]:
    return tuple(zip(titles, panels, strict=True))


def _side(planes: Sequence[Section]) -> float:
    """Give how many pixels long the side of a supervoxel is."""
    shown = [section.shown(section.labels) for section in planes]
    inside = sum(np.count_nonzero(labels) for labels in shown)
    count = sum(np.count_nonzero(np.unique(labels)) for labels in shown)
    return float(np.sqrt(inside / count)) if count else np.inf


def _panel(section: Section, colours: Shades, *, contours: bool = False) -> Picture.Image:
    """Draw a plane from the colour, with what is opaque, of each of its voxels."""
    pixels = section.shown(colours).copy()
    if contours:
        edges = contours_of(section.shown(section.labels))
        pixels[edges, :3] = UNDER * pixels[edges, :3] + (1 - UNDER) * np.array(AMBER)
        pixels[edges, 3] = 255
    panel = Picture.fromarray(pixels)
    for place, letter in zip(((3, pixels.shape[0] / 2), (pixels.shape[1] / 2, 3)), section.towards, strict=False):
        _write(panel, place, letter, "lm" if place[0] == 3 else "ma", AMBER, edge=2)
    return panel


def contours_of(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Find where labels end: the pixels to the left of, or above, one of another label.

    Parameters
    ----------
    labels : ndarray of int, (rows, columns)

    Returns
    -------
    ndarray of bool, (rows, columns)

    Examples
    --------
    >>> contours_of(np.array([[1, 1, 2], [1, 1, 2]])).astype(int).tolist()
    [[0, 1, 0], [0, 1, 0]]
    """
    found = np.zeros(labels.shape, np.bool_)
    found[:-1] |= labels[:-1] != labels[1:]
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return found


def _means(section: Section) -> NDArray[np.float64]:
    """Give each voxel the mean intensity of its supervoxel's voxels in the plane; NaN where it is masked out."""
    assert section.image is not None
    ids, places = np.unique(section.labels, return_inverse=True)
    sums = np.bincount(places.ravel(), section.image.ravel())
    means = sums / np.bincount(places.ravel())
    means[ids == 0] = np.nan
    return np.asarray(means[places.reshape(section.labels.shape)])


def _shades(values: NDArray[np.float64] | None, low: float, high: float) -> Shades:
    """Show intensities as shades; transparent where they are no numbers."""
    assert values is not None
    with np.errstate(invalid="ignore"):
        gray = 255 * np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
    shades = np.round(np.nan_to_num(gray)).astype(np.uint8)
    opaque = np.where(np.isnan(values), 0, 255).astype(np.uint8)
    return np.stack([shades, shades, shades, opaque], axis=-1)


def _colours(labels: NDArray[np.int64]) -> Shades:
    """Give each label a colour of its own hue, and 0 none."""
    hues = 6 * ((labels * GOLDEN) % 1.0)[..., None]
    ramps = np.clip(np.abs((hues + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    colours = np.round(255 * (0.25 + 0.65 * ramps)).astype(np.uint8)
    opaque = np.where(labels == 0, 0, 255).astype(np.uint8)
    return np.concatenate([colours, opaque[..., None]], axis=-1)


def _percentiles(planes: Sequence[Section]) -> tuple[float, float]:
    """Find a window for what is shown."""
    values = np.concatenate([section.image[section.labels > 0] for section in planes if section.image is not None])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def _frame(panel: Picture.Image, section: Section, orientation: Orientation, whole: View, view: View) -> None:
    """Draw where a detail lies."""
    ends = []
    for axis in (section.down, section.right):
        count = whole.pixels(axis)
        scale = count / (whole.hi[axis] - whole.lo[axis])
        begin, end = view.lo[axis] * scale, view.hi[axis] * scale
        ends.append((count - end, count - begin) if orientation.flips[axis] else (begin, end))
    (top, bottom), (left, right) = ends
    ImageDraw.Draw(panel).rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=(*AMBER, 255))


def _write(
    sheet: Picture.Image, place: tuple[float, float], text: str, anchor: str, colour: tuple[int, ...], edge: int = 0
) -> None:
    font = ImageFont.load_default(TEXT)
    draw = ImageDraw.Draw(sheet)
    draw.text(place, text, (*colour, 255), font, anchor, stroke_width=edge, stroke_fill=(0, 0, 0, 255))
