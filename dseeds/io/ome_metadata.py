"""The metadata of OME-Zarr, as OME-NGFF defines it: versions 0.1 to 0.5 are read, 0.5 is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dseeds.core.geometry import AXES
from dseeds.io.source import Spacing, convert_to_mm, shorten, summarise_error

# Units of length in a millimetre: their names in OME-NGFF, and short forms that other software writes.
PER_MM = {
    **dict.fromkeys(("picometer", "pm"), 1e9),
    "angstrom": 1e7,
    **dict.fromkeys(("nanometer", "nm"), 1e6),
    **dict.fromkeys(("micrometer", "micron", "um", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m"), 1e3),
    **dict.fromkeys(("millimeter", "mm"), 1.0),
    **dict.fromkeys(("centimeter", "cm"), 1e-1),
    "decimeter": 1e-2,
    **dict.fromkeys(("meter", "m"), 1e-3),
    "inch": 1 / 25.4,
}
MILLIMETRES = ("millimeter", "millimeter", "millimeter")
# The axes of an array that are z, y and x; an image of one slice lacks one of them.
SpaceAxes = tuple[int | None, int | None, int | None]
Units = tuple[str | None, str | None, str | None]
_OTHER_AXES = {"t": "time", "c": "channel"}
_TRANSFORMATIONS = "coordinateTransformations"


@dataclass(frozen=True)
class Frame:
    """The size of a voxel along z, y, x, and the position of the first one's centre, in a space that has these axes."""

    spacing: Spacing = (1.0, 1.0, 1.0)
    translation: Spacing = (0.0, 0.0, 0.0)
    # Of both, by their names in OME-NGFF; None if unknown.
    units: Units = (None, None, None)

    @property
    def spacing_in_mm(self) -> Spacing | None:
        """Size of a voxel in millimetres; None unless all units are lengths."""
        return convert_to_mm(self.spacing, [PER_MM.get(unit or "") for unit in self.units])


@dataclass(frozen=True)
class Multiscale:
    """The metadata of the image whose group is at the path or URL `where`; the full resolution comes first."""

    where: str
    # "0.5", or "0.4" for that version and those before it.
    version: str
    axes: tuple[str, ...]
    space: SpaceAxes
    paths: tuple[str, ...]
    # None if they are missing or make no sense.
    frames: tuple[Frame | None, ...]
    labels: bool


def read_multiscale(attributes: Mapping[str, Any], where: str) -> Multiscale:
    """Read the attributes of a group; raise a ValueError if it is no image, or its metadata are damaged.

    >>> scale = {"type": "scale", "scale": [0.5, 0.5, 2.0]}
    >>> axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "xyz"]
    >>> datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    >>> image = read_multiscale({"multiscales": [{"axes": axes, "datasets": datasets}]}, "a.zarr")
    >>> image.space, image.frames[0].spacing
    ((2, 1, 0), (2.0, 0.5, 0.5))
    """
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, Mapping) or "multiscales" not in ome:
        raise ValueError(
            f"{where} is a Zarr group without an OME-Zarr image (no 'multiscales' in its attributes): "
            f"pass an array inside it, as {where}/NAME"
        )
    try:
        image = ome["multiscales"][0]
        datasets = image["datasets"]
        paths = tuple(str(dataset["path"]) for dataset in datasets)
        if not paths:
            raise ValueError("'datasets' is empty")
        # Version 0.3 lists names only; before that there were always five axes.
        axes = [{"name": axis} if isinstance(axis, str) else axis for axis in image.get("axes", "tczyx")]
        names = tuple(str(axis["name"]).lower() for axis in axes)
        space = _find_space(names, [axis.get("type") for axis in axes], where)
        return Multiscale(
            where=where,
            version="0.5" if "ome" in attributes else "0.4",
            axes=names,
            space=space,
            paths=paths,
            # The transformations of a level come before those of the whole image.
            frames=tuple(
                _compose_frame(axes, space, (*dataset.get(_TRANSFORMATIONS, ()), *image.get(_TRANSFORMATIONS, ())))
                for dataset in datasets
            ),
            labels="image-label" in ome,
        )
    except _NoVolume:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has OME metadata that cannot be read ({summarise_error(error)}): "
            f"correct 'multiscales' in its attributes, or pass an array inside it"
        ) from error


class _NoVolume(ValueError):
    """The axes of an image are not those of a volume."""


def _find_space(names: Sequence[str], kinds: Sequence[str | None], where: str) -> SpaceAxes:
    """Find z, y and x by their names in any order, or else take the axes of space in their order."""
    space = [n for n, kind in enumerate(kinds) if kind == "space"]
    # Some programs leave the types out, or give time the same one.
    if len(space) not in (2, 3):
        space = [n for n, axis in enumerate(names) if axis in AXES]
    if len(set(names)) < len(names) or len(space) not in (2, 3):
        raise _NoVolume(
            f"{where} has the axes {shorten(', '.join(names))}: supervoxels need z, y and x, or two of them, once"
        )
    if all(names[n] in AXES for n in space):
        z, y, x = (next((n for n in space if names[n] == axis), None) for axis in AXES)
        return z, y, x
    return (space[0], space[1], space[2]) if len(space) == 3 else (None, space[0], space[1])


def _compose_frame(
    axes: Sequence[Mapping[str, Any]], space: SpaceAxes, transformations: Sequence[Mapping[str, Any]]
) -> Frame | None:
    """Apply transformations one after the other."""
    present = [n for n in space if n is not None]
    sizes, origin, scaled = [1.0] * len(present), [0.0] * len(present), False
    for step in transformations:
        if step["type"] == "scale":
            factors = [float(step["scale"][n]) for n in present]
            sizes = [size * f for size, f in zip(sizes, factors, strict=True)]
            origin = [position * f for position, f in zip(origin, factors, strict=True)]
            scaled = True
        elif step["type"] == "translation":
            origin = [position + float(step["translation"][n]) for position, n in zip(origin, present, strict=True)]
    if not scaled or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    if not all(map(math.isfinite, origin)):
        origin = [0.0] * len(present)
    units = [unit if isinstance(unit := axes[n].get("unit"), str) else None for n in present]
    # A single slice is taken to be as thick as its pixels are wide.
    thin = (min(sizes), 0.0, units[0])
    along = dict(zip(present, zip(sizes, origin, units, strict=True), strict=True))
    spacing, translation, named = zip(*(thin if n is None else along[n] for n in space), strict=True)
    return Frame(spacing, translation, named)


@dataclass(frozen=True)
class Resolution:
    """A level of a multiscale image, measured in voxels of its full resolution along z, y, x.

    `scale` is the size of a voxel, `offset` the distance of the first one's centre from that of the full resolution.
    """

    scale: Spacing = (1.0, 1.0, 1.0)
    offset: Spacing = (0.0, 0.0, 0.0)


def ome_image_attributes(
    *,
    spacing: Spacing | None,
    name: str,
    translation: Spacing | None = None,
    units: Units = MILLIMETRES,
    levels: Sequence[Resolution] = (),
    axes: str = "zyx",
    labels: bool = False,
    image: str | None = None,
) -> dict[str, Any]:
    """Return the attribute ``ome`` of a Zarr v3 group: an image (OME-NGFF 0.5) of the arrays ``0``, ``1`` and so on.

    Spacing, translation and units are those of a `Frame`; without a spacing, the scale is 1 without a unit, and the
    translation is in voxels. The levels are the coarser ones, the axes t, c, z, y and x in this order, of which the
    first two may be missing. Labels name the path of the image that they belong to, relative to their group.

    >>> coarser = Resolution((1.0, 2.0, 2.0), (0.0, 0.5, 0.5))
    >>> ome = ome_image_attributes(spacing=(2.0, 0.5, 0.5), name="ct.nii.gz", levels=[coarser])
    >>> full, half = ome["multiscales"][0]["datasets"]
    >>> full["coordinateTransformations"]
    [{'type': 'scale', 'scale': [2.0, 0.5, 0.5]}]
    >>> half["coordinateTransformations"]
    [{'type': 'scale', 'scale': [2.0, 1.0, 1.0]}, {'type': 'translation', 'translation': [0.0, 0.25, 0.25]}]
    """
    full = Frame(spacing or (1.0, 1.0, 1.0), translation or (0.0, 0.0, 0.0))
    multiscale = {
        "name": name,
        "axes": _describe_axes(axes, (None, None, None) if spacing is None else units),
        "datasets": [
            {"path": str(path), _TRANSFORMATIONS: _describe_level(full, level, len(axes) - 3)}
            for path, level in enumerate((Resolution(), *levels))
        ],
    }
    attributes: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if labels:
        # Without "colors": an empty list is not allowed, and viewers have colours of their own for labels.
        attributes["image-label"] = {"version": "0.5", **({} if image is None else {"source": {"image": image}})}
    return attributes


def _describe_axes(axes: str, units: Units) -> list[dict[str, str]]:
    by_axis = dict(zip(AXES, units, strict=True))
    return [
        {
            "name": axis,
            "type": _OTHER_AXES.get(axis, "space"),
            **({"unit": unit} if (unit := by_axis.get(axis)) else {}),
        }
        for axis in axes
    ]


def _describe_level(full: Frame, level: Resolution, other_axes: int) -> list[dict[str, Any]]:
    """Return the transformations of a level; those of the axes before z, y and x change nothing."""
    scale = [float(s * k) for s, k in zip(full.spacing, level.scale, strict=True)]
    origin = [float(b + s * o) for b, s, o in zip(full.translation, full.spacing, level.offset, strict=True)]
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * other_axes + scale}]
    if any(origin):
        steps.append({"type": "translation", "translation": [0.0] * other_axes + origin})
    return steps


def ome_label_attributes(*, spacing: Spacing | None, source: str, **more: Any) -> dict[str, Any]:
    """Describe the supervoxels of an image as an OME-Zarr label image; see `ome_image_attributes`."""
    return ome_image_attributes(spacing=spacing, name=f"supervoxels of {source}", labels=True, **more)
