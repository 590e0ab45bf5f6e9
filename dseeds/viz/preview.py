"""`preview`: a picture of supervoxels, read from the resolution level that matches its pixels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as Picture

from dseeds.core.geometry import Triple, check_spacing, triple
from dseeds.io import Image, Source, ZarrSource, open_image
from dseeds.io.alignment import TurnedSource
from dseeds.io.formats.ome_zarr import reopen_zarr
from dseeds.io.labels import align_image, label_attributes, label_parameters, open_labels
from dseeds.seeds.intensity_windows import read_windows
from dseeds.viz.drawing import Sheet, Subject, draw
from dseeds.viz.sections import Orientation, PlaneReader, View, middle_voxel

DEFAULT_PIXELS, LEAST_PIXELS, MOST_PIXELS = 480, 32, 4096


def preview(
    labels: Any,
    image: Any = None,
    *,
    at: Sequence[int] | None = None,
    size: int = DEFAULT_PIXELS,
    window: Any = None,
    channel: int = 0,
    volume: int | None = None,
    channel_axis: int | str | None = None,
    spacing: Sequence[float] | None = None,
) -> Picture.Image:
    """Draw supervoxels in three planes: above as contours over the image, below painted with their mean intensities.

    Three planes are read from the resolution level whose voxels are about as large as the pixels, so this takes seconds
    for a volume of any size. Without such a level, the finest one is subsampled. If supervoxels are too small for
    contours, the upper row shows a detail, which is framed in the lower row.

    Parameters
    ----------
    labels : array_like or source
        The supervoxels, axes (z, y, x) or a plane, as for `evaluate`; 0 is outside the mask and left transparent.
    image : array_like or source, optional
        The intensities on the same grid, as for `segment`. Default: the source recorded in the labels. If it cannot be
        opened, there is a warning, and the labels are painted in arbitrary colours.
    at : sequence of int, optional
        The voxel (z, y, x) where the planes intersect. Default: the middle.
    size : int, default 480
        Pixels along the longest side of the volume.
    window : str or pair of float, optional
        Intensities that are black and white, see `supervoxels`. Default: the window recorded in the labels; if an image
        is passed, the percentiles 0.5 and 99.5 of what is shown.
    channel : int, default 0
        The channel of the image to show.
    volume, channel_axis
        As for `segment`, if an image is passed.
    spacing : sequence of float, optional
        Voxel size along (z, y, x). Default: that of labels or image. Pixels are square.

    Returns
    -------
    PIL.Image.Image
        RGBA; notebooks show it as it is. If the affine of labels or image is known, planes are turned as radiologists
        view them: the head up, the patient's right and front to the left. A mean is that of the supervoxel's voxels
        that are read in the plane.

    Raises
    ------
    FileNotFoundError
        If labels or image do not exist.
    ValueError
        If they are no volumes of one shape, or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels = 1 + np.arange(4 * 8 * 8).reshape(4, 8, 8) // 32
    >>> picture = dseeds.preview(labels, labels * 10.0, size=64)
    >>> picture.mode, picture.width
    ('RGBA', 216)
    """
    source = open_supervoxels(np.asarray(labels) if isinstance(labels, list) else labels)
    limits = None if window is None else read_windows(window, 1)[0]
    if image is not None:
        opened: Image | None = open_image(image, volume=volume, channel_axis=channel_axis, planes=True)
    else:
        opened = _try_recorded_image(source)
        limits = recorded_window(source, channel) if window is None else limits
    return draw_sheet(source, opened, at=at, size=size, window=limits, channel=channel, spacing=spacing).picture()


def draw_sheet(
    labels: Source,
    image: Image | None,
    *,
    at: Sequence[int] | None = None,
    size: int = DEFAULT_PIXELS,
    window: tuple[float, float] | None = None,
    channel: int = 0,
    spacing: Sequence[float] | None = None,
) -> Sheet:
    """Draw supervoxels and their image, both open already; see `preview`."""
    image = None if image is None else align_image(image, labels)
    if not LEAST_PIXELS <= size <= MOST_PIXELS:
        raise ValueError(f"size must be {LEAST_PIXELS} to {MOST_PIXELS} pixels, not {size}.")
    voxel = _check_voxel(at, labels.shape)
    voxel_size = spacing or labels.spacing or (image.spacing if image is not None else None)
    affine = labels.affine if labels.affine is not None or image is None else image.affine
    intensities = None if image is None else _channel_reader(image, channel, voxel)
    subject = Subject(PlaneReader(labels, voxel), intensities, voxel, Orientation.of(affine))
    return draw(subject, View.whole(labels.shape, check_spacing(voxel_size or (1.0, 1.0, 1.0)), size), window)


def open_supervoxels(labels: Any) -> Source:
    """Open labels to show; raise ValueError also for an OME-Zarr image that is not declared as labels."""
    source = open_labels(labels)
    if isinstance(source, ZarrSource) and source.multiscale is not None and not source.labelled:
        raise ValueError(f"{source.name} is an image: name its labels, such as {source.name}/labels/supervoxels.")
    return source


def _try_recorded_image(labels: Source) -> Image | None:
    try:
        return open_recorded_image(labels)
    except ValueError as error:
        if labels.kind != "array":
            warnings.warn(f"{error}: labels are shown in arbitrary colours; name their image.", stacklevel=3)
    return None


def open_recorded_image(labels: Source) -> Image:
    """Open the image that labels record as their source.

    A ValueError is raised if they record none, or it was in memory, cannot be opened or has another shape now.
    """
    attributes = label_attributes(labels)
    if "source" not in attributes:
        raise ValueError(f"{labels.name} does not say which image it was made from")
    try:
        identities = attributes["source"].get("channels", [attributes["source"]])
        image = Image(tuple(source for identity in identities for source in _reopen_turned(identity)))
        return align_image(image, labels)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"the image that {labels.name} was made from cannot be opened ({reason})") from error


def _reopen_turned(identity: Mapping[str, Any]) -> tuple[Source, ...]:
    """Open the source with a recorded identity, and turn it as it was turned."""
    turned = identity.get("turned")
    sources = _reopen(identity)
    return sources if turned is None else tuple(TurnedSource(s, tuple(turned[0]), tuple(turned[1])) for s in sources)


def _reopen(identity: Mapping[str, Any]) -> tuple[Source, ...]:
    """Open the source with a recorded identity, see `Source.identity`."""
    path = identity.get("path")
    if not isinstance(path, str):
        raise ValueError("it was in memory")
    if "index" not in identity:
        return open_image(path, volume=identity.get("volume")).parts
    index = identity["index"]
    if identity["kind"] == "zarr":
        return (reopen_zarr(path, index),)
    channel_axis = index.index("channels") if "channels" in index else None
    if identity.get("dataset"):
        path = f"{path}:{identity['dataset']}"
    # All volume axes but one have the index 0.
    volume = max((item for item in index if isinstance(item, int)), default=None)
    return open_image(path, volume=volume, channel_axis=channel_axis).parts


def recorded_window(labels: Source, channel: int) -> tuple[float, float] | None:
    """Return the intensity window recorded in labels, or None."""
    try:
        low, high = label_parameters(labels)["windows"][channel]
        return float(low), float(high)
    except (LookupError, TypeError, ValueError):
        return None


def _channel_reader(image: Image, channel: int, at: Triple) -> PlaneReader:
    channels = [(source, number) for source in image.parts for number in range(source.channels or 1)]
    if not 0 <= channel < len(channels):
        raise ValueError(f"channel must be 0 to {len(channels) - 1} for an image of {len(channels)}, not {channel}.")
    source, number = channels[channel]
    return PlaneReader(source, at, number)


def _check_voxel(at: Sequence[int] | None, shape: Triple) -> Triple:
    if at is None:
        return middle_voxel(shape)
    if len(at) != 3 or not all(0 <= i < n for i, n in zip(at, shape, strict=True)):
        raise ValueError(f"at must be a voxel (z, y, x) of a volume of shape {shape}, not {tuple(at)}.")
    return triple(at)
