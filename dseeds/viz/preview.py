"""`preview`: a picture of supervoxels, from whichever level of their pyramid is as fine as its pixels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as Picture

from dseeds.core.geometry import Triple, check_spacing, triple
from dseeds.io import Image, Source, ZarrSource, open_image
from dseeds.io.formats.ome_zarr import reopen_zarr
from dseeds.io.labels import check_same_shape, label_attributes, label_parameters, open_labels
from dseeds.seeds.intensity_windows import read_windows
from dseeds.viz.drawing import Sheet, Subject, draw
from dseeds.viz.sections import Orientation, View, Volume, middle

SIZE, SMALLEST, LARGEST = 480, 32, 4096


def preview(
    labels: Any,
    image: Any = None,
    *,
    at: Sequence[int] | None = None,
    size: int = SIZE,
    window: Any = None,
    channel: int = 0,
    volume: int | None = None,
    channel_axis: int | str | None = None,
    spacing: Sequence[float] | None = None,
) -> Picture.Image:
    """Draw supervoxels in three planes: above as contours over the image, below painted with their mean intensity.

    Of a pyramid the level is read whose voxels are about as large as the pixels, and of that three planes: this takes
    seconds whatever the size of the volume. Where there is no such level, every so many voxels of the finest are taken.
    Where supervoxels are too small for contours, the upper row shows a detail, which is framed in the lower one.

    Parameters
    ----------
    labels : array_like or source
        The supervoxels, axes (z, y, x); 0 is masked out and left transparent. What `evaluate` takes.
    image : array_like or source, optional
        The intensities on the same grid, as for `segment`. Default: the source that the labels say they were made from.
        Where that cannot be opened, there is a warning, and the labels are painted with colours of no meaning.
    at : sequence of int, optional
        The voxel (z, y, x) that the planes go through. Default: the middle.
    size : int, default 480
        Pixels of the longest side of the volume.
    window : str or pair of float, optional
        Intensities that are black and white, see `supervoxels`. Default: those that the labels say they were made with;
        of an image that is given, the percentiles 0.5 and 99.5 of what is shown.
    channel : int, default 0
        Which channel of the image is shown.
    volume, channel_axis
        As for `segment`, for an image that is given.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x). Default: what labels or image say. Pixels are square.

    Returns
    -------
    PIL.Image.Image
        RGBA; notebooks show it as it is. Where the affine of labels or image is known, planes are turned as
        radiologists look at them: the head up, and the patient's right and front to the left. A mean is that of a
        supervoxel's voxels in the plane, as far as they are read.

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
    given = image is not None
    found = open_supervoxels(np.asarray(labels) if isinstance(labels, list) else labels)
    opened = open_image(image, volume=volume, channel_axis=channel_axis) if given else _source_of(found)
    limits = read_windows(window, 1)[0] if window is not None else None if given else noted_window(found, channel)
    return sheet_of(found, opened, at=at, size=size, limits=limits, channel=channel, spacing=spacing).picture()


def sheet_of(
    labels: Source,
    image: Image | None,
    *,
    at: Sequence[int] | None = None,
    size: int = SIZE,
    limits: tuple[float, float] | None = None,
    channel: int = 0,
    spacing: Sequence[float] | None = None,
) -> Sheet:
    """Draw supervoxels whose image is open; see `preview`."""
    check_same_shape(labels=labels, **({} if image is None else {"image": image}))
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size must be {SMALLEST} to {LARGEST} pixels, not {size}.")
    where = _inside(at, labels.shape)
    lengths = spacing or labels.spacing or (image.spacing if image is not None else None)
    affine = labels.affine if labels.affine is not None or image is None else image.affine
    shown = None if image is None else Volume(*_channel(image, channel, where))
    subject = Subject(Volume(labels, where), shown, where, Orientation.of(affine))
    return draw(subject, View.whole(labels.shape, check_spacing(lengths or (1.0, 1.0, 1.0)), size), limits)


def open_supervoxels(labels: Any) -> Source:
    """Open labels that are to be shown; `ValueError` also where they say that they are an image."""
    found = open_labels(labels)
    if isinstance(found, ZarrSource) and found.multiscale is not None and not found.labelled:
        raise ValueError(f"{found.name} is an image: name its labels, such as {found.name}/labels/supervoxels.")
    return found


def _source_of(labels: Source) -> Image | None:
    """Open the image that labels say they were made from; warn where it cannot be."""
    try:
        return noted_image(labels)
    except ValueError as error:
        if labels.kind != "array":
            advice = "labels are shown in colours of no meaning, so name their image"
            warnings.warn(f"{error}: {advice}.", stacklevel=3)
    return None


def noted_image(labels: Source) -> Image:
    """Open the image that labels were made from, as they noted it.

    Raises
    ------
    ValueError
        If they noted none, or it cannot be opened, is of another shape by now, or was in memory.
    """
    known = label_attributes(labels)
    if "source" not in known:
        raise ValueError(f"{labels.name} does not say which image it was made from")
    try:
        identities = known["source"].get("channels", [known["source"]])
        image = Image(tuple(source for identity in identities for source in _noted_part(identity)))
        check_same_shape(labels=labels, image=image)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        why = str(error).rstrip(".")
        raise ValueError(f"the image that {labels.name} was made from cannot be opened ({why})") from error
    return image


def _noted_part(identity: Mapping[str, Any]) -> tuple[Source, ...]:
    if not isinstance(identity.get("path"), str):
        raise ValueError("it was in memory")
    path = identity["path"]
    if "index" not in identity:
        return open_image(path, volume=identity.get("volume")).parts
    index = identity["index"]
    channels = index.index("channels") if "channels" in index else None
    if identity["kind"] != "zarr":
        if identity.get("dataset"):
            path = f"{path}:{identity['dataset']}"
        # All but one of several volumes are numbered 0.
        volume = max((one for one in index if isinstance(one, int)), default=None)
        return open_image(path, volume=volume, channel_axis=channels).parts
    taken = tuple(one if isinstance(one, int) else slice(None) for one in index)
    return (reopen_zarr(path, taken, channels),)


def noted_window(labels: Source, channel: int) -> tuple[float, float] | None:
    """Give the intensity window that labels were made with, as far as they say."""
    try:
        low, high = label_parameters(labels)["windows"][channel]
        return float(low), float(high)
    except (LookupError, TypeError, ValueError):
        return None


def _channel(image: Image, channel: int, at: Triple) -> tuple[Source, Triple, int]:
    each = [(part, number) for part in image.parts for number in range(part.channels or 1)]
    if not 0 <= channel < len(each):
        raise ValueError(f"channel must be 0 to {len(each) - 1}, for the image has {len(each)}, not {channel}.")
    part, number = each[channel]
    return part, at, number


def _inside(at: Sequence[int] | None, shape: Triple) -> Triple:
    """Check the voxel that planes go through."""
    if at is None:
        return middle(shape)
    if len(at) != 3 or not all(0 <= i < n for i, n in zip(at, shape, strict=True)):
        raise ValueError(f"at must be a voxel (z, y, x) of a volume of shape {shape}, not {tuple(at)}.")
    return triple(at)
