"""The metadata of OME-Zarr, as OME-NGFF defines it: read in all versions from 0.1 to 0.5, written in 0.5."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dseeds.io.source import Spacing, convert_to_mm, shorten, summarise_error

# How many make a millimetre: units of length in OME-NGFF's names, and short forms met in the wild.
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
_SPACE = ("z", "y", "x")
MILLIMETRES = ("millimeter", "millimeter", "millimeter")
# Which axes of an array are z, y and x; an image of one slice has two of them.
SpaceAxes = tuple[int | None, int | None, int | None]
Units = tuple[str | None, str | None, str | None]
# What an axis is that is none of space.
_KINDS = {"t": "time", "c": "channel"}


@dataclass(frozen=True)
class Frame:
    """Where voxels lie in a space whose axes are theirs, along z, y, x.

    Attributes
    ----------
    spacing : tuple of float
        Size of a voxel.
    translation : tuple of float
        Where the centre of the first voxel lies.
    units : tuple of str or None
        What both are measured in, as OME-NGFF calls it; None where nothing is said.
    """

    spacing: Spacing = (1.0, 1.0, 1.0)
    translation: Spacing = (0.0, 0.0, 0.0)
    units: Units = (None, None, None)

    @property
    def spacing_in_mm(self) -> Spacing | None:
        """Size of a voxel in millimetres, None where the units are none of length."""
        return convert_to_mm(self.spacing, [PER_MM.get(unit or "") for unit in self.units])


@dataclass(frozen=True)
class Multiscale:
    """What an image's metadata say.

    Attributes
    ----------
    where : str
        The path or URL of its group.
    version : str
        ``"0.5"``, or ``"0.4"`` for that version and those before it.
    axes : tuple of str
        The names of the arrays' axes.
    space : tuple of int or None
        Which of them are z, y and x.
    paths : tuple of str
        The arrays in the group, from the full resolution on.
    frames : tuple of Frame or None
        Where their voxels lie, None where that is not said or makes no sense.
    labels : bool
        Whether it is a label image.
    """

    where: str
    version: str
    axes: tuple[str, ...]
    space: SpaceAxes
    paths: tuple[str, ...]
    frames: tuple[Frame | None, ...]
    labels: bool


def read_multiscale(attributes: Mapping[str, Any], where: str) -> Multiscale:
    """Read the attributes of a group.

    Raises
    ------
    ValueError
        If they are those of no image, or damaged.

    Examples
    --------
    >>> scale = {"type": "scale", "scale": [0.5, 0.5, 2.0]}
    >>> axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "xyz"]
    >>> datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    >>> found = read_multiscale({"multiscales": [{"axes": axes, "datasets": datasets}]}, "a.zarr")
    >>> found.space, found.frames[0].spacing
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
        space = _space(names, [axis.get("type") for axis in axes], where)
        return Multiscale(
            where,
            "0.5" if "ome" in attributes else "0.4",
            names,
            space,
            paths,
            # Those of the whole image come after those of a level.
            tuple(_frame(axes, space, (*_steps(dataset), *_steps(image))) for dataset in datasets),
            "image-label" in ome,
        )
    except _NoVolume:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has OME metadata that cannot be read ({summarise_error(error)}): "
            f"correct 'multiscales' in its attributes, or pass an array inside it"
        ) from error


class _NoVolume(ValueError):
    """The axes of an image are none that supervoxels lie along."""


def _space(names: Sequence[str], kinds: Sequence[str | None], where: str) -> SpaceAxes:
    """Find z, y and x: by their names in any order, or else the axes of space as they come."""
    found = [n for n, kind in enumerate(kinds) if kind == "space"]
    # Some leave the types out, or say it of time as well.
    if len(found) not in (2, 3):
        found = [n for n, axis in enumerate(names) if axis in _SPACE]
    if len(set(names)) < len(names) or len(found) not in (2, 3):
        raise _NoVolume(
            f"{where} has the axes {shorten(', '.join(names))}: supervoxels need z, y and x, or two of them, once"
        )
    if all(names[n] in _SPACE for n in found):
        z, y, x = (next((n for n in found if names[n] == axis), None) for axis in _SPACE)
        return z, y, x
    return (found[0], found[1], found[2]) if len(found) == 3 else (None, found[0], found[1])


def _steps(part: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    steps: Sequence[Mapping[str, Any]] = part.get("coordinateTransformations", ())
    return steps


def _frame(axes: Sequence[Mapping[str, Any]], space: SpaceAxes, steps: Sequence[Mapping[str, Any]]) -> Frame | None:
    """Do one transformation after the other."""
    known = [n for n in space if n is not None]
    sizes, places, scaled = [1.0] * len(known), [0.0] * len(known), False
    for step in steps:
        if step["type"] == "scale":
            factors = [float(step["scale"][n]) for n in known]
            sizes = [size * f for size, f in zip(sizes, factors, strict=True)]
            places = [place * f for place, f in zip(places, factors, strict=True)]
            scaled = True
        elif step["type"] == "translation":
            places = [place + float(step["translation"][n]) for place, n in zip(places, known, strict=True)]
    if not scaled or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    if not all(map(math.isfinite, places)):
        places = [0.0] * len(known)
    units = [unit if isinstance(unit := axes[n].get("unit"), str) else None for n in known]
    # A single slice is taken to be as thick as its pixels are wide.
    z, y, x = (known.index(n) if n is not None else None for n in space)
    thin = (min(sizes), 0.0, units[0])
    parts = [thin if n is None else (sizes[n], places[n], units[n]) for n in (z, y, x)]
    spacing, translation, named = zip(*parts, strict=True)
    return Frame(spacing, translation, named)


@dataclass(frozen=True)
class Resolution:
    """A level of a multiscale image, measured in voxels of its full resolution.

    Attributes
    ----------
    scale : tuple of float
        How long a voxel is along z, y, x.
    offset : tuple of float
        Where the centre of the first voxel lies, from that of the full resolution's first one.
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
    """Describe a Zarr v3 group as an OME-Zarr image (OME-NGFF 0.5), whose levels are the arrays ``0``, ``1`` and so on.

    Parameters
    ----------
    spacing : tuple of float or None
        Size of a voxel along z, y, x; None for a scale of 1 without a unit.
    name : str
        What people call it.
    translation : tuple of float, optional
        Where the centre of the first voxel lies along z, y, x; without a spacing, in voxels.
    units : tuple of str or None
        What the spacing and the translation are measured in.
    levels : sequence of Resolution
        The coarser levels, as `dseeds.io.pyramid.build_pyramid` gives them.
    axes : str
        The arrays' axes in order, as OME-NGFF has them: t, c, z, y and x, of which the first two may be missing.
    labels : bool
        Whether it is a label image.
    image : str, optional
        Of a label image: where the image that it belongs to lies, relative to the group.

    Returns
    -------
    dict
        For the group's attribute ``ome``.

    Examples
    --------
    >>> coarser = Resolution((1.0, 2.0, 2.0), (0.0, 0.5, 0.5))
    >>> ome = ome_image_attributes(spacing=(2.0, 0.5, 0.5), name="ct.nii.gz", levels=[coarser])
    >>> full, half = ome["multiscales"][0]["datasets"]
    >>> full["coordinateTransformations"]
    [{'type': 'scale', 'scale': [2.0, 0.5, 0.5]}]
    >>> half["coordinateTransformations"]
    [{'type': 'scale', 'scale': [2.0, 1.0, 1.0]}, {'type': 'translation', 'translation': [0.0, 0.25, 0.25]}]
    """
    unit = {} if spacing is None else dict(zip(_SPACE, units, strict=True))
    size, begin = spacing or (1.0, 1.0, 1.0), translation or (0.0, 0.0, 0.0)
    more = len(axes) - 3
    datasets = []
    for path, level in enumerate((Resolution(), *levels)):
        scale = [float(s * k) for s, k in zip(size, level.scale, strict=True)]
        place = [float(b + s * o) for b, s, o in zip(begin, size, level.offset, strict=True)]
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * more + scale}]
        if any(place):
            steps.append({"type": "translation", "translation": [0.0] * more + place})
        datasets.append({"path": str(path), "coordinateTransformations": steps})
    source = {} if image is None else {"source": {"image": image}}
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [
                    {
                        "name": axis,
                        "type": _KINDS.get(axis, "space"),
                        **({"unit": unit[axis]} if unit.get(axis) else {}),
                    }
                    for axis in axes
                ],
                "datasets": datasets,
            }
        ],
        # No "colors": an empty list is not allowed, and viewers have colours of their own for labels.
        **({"image-label": {"version": "0.5", **source}} if labels else {}),
    }


def ome_label_attributes(*, spacing: Spacing | None, source: str, **more: Any) -> dict[str, Any]:
    """Describe the supervoxels of an image as an OME-Zarr label image; see `ome_image_attributes`."""
    return ome_image_attributes(spacing=spacing, name=f"supervoxels of {source}", labels=True, **more)
