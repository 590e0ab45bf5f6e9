"""The metadata of OME-Zarr, as OME-NGFF defines it.

Versions 0.1 to 0.6 are read. 0.5 is written, and 0.4 for labels of an image of version 0.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dseeds.core.geometry import AXES
from dseeds.io.axes import SpaceAxes
from dseeds.io.coordinate_systems import NoAffine, SystemTransformations
from dseeds.io.image_choice import choose_image
from dseeds.io.source import Spacing, convert_to_mm, shorten, summarise_error

# Units of length in a millimetre: their names in OME-NGFF, and short forms that other software writes.
PER_MM = {
    name: per_mm
    for per_mm, names in {
        1e9: ("picometer", "picometre", "pm"),
        1e7: ("angstrom", "\N{ANGSTROM SIGN}", "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}"),
        1e6: ("nanometer", "nanometre", "nm"),
        1e3: ("micrometer", "micrometre", "micron", "um", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m"),
        1.0: ("millimeter", "millimetre", "mm"),
        1e-1: ("centimeter", "centimetre", "cm"),
        1e-2: ("decimeter", "decimetre", "dm"),
        1e-3: ("meter", "metre", "m"),
        1 / 25.4: ("inch", "inches", "in"),
    }.items()
    for spelling in names
    for name in ((spelling, f"{spelling}s") if len(spelling) > 4 and spelling != "inches" else (spelling,))
}
MILLIMETRES = ("millimeter", "millimeter", "millimeter")
Units = tuple[str | None, str | None, str | None]
_OTHER_AXES = {"t": "time", "c": "channel"}
_TRANSFORMATIONS = "coordinateTransformations"


@dataclass(frozen=True)
class Frame:
    """The size and the position of voxels along z, y, x, in a space that has these axes.

    Attributes
    ----------
    spacing : tuple of float
        The size of a voxel.
    translation : tuple of float
        The position of the first voxel's centre.
    units : tuple of str or None
        The units of spacing and translation along each axis, by their names in OME-NGFF; None if unknown.

    Examples
    --------
    >>> Frame((2.0, 0.5, 0.5), units=("micrometer",) * 3).spacing_in_mm
    (0.002, 0.0005, 0.0005)
    """

    spacing: Spacing = (1.0, 1.0, 1.0)
    translation: Spacing = (0.0, 0.0, 0.0)
    units: Units = (None, None, None)

    @property
    def spacing_in_mm(self) -> Spacing | None:
        """Size of a voxel in millimetres; None unless all units are lengths."""
        return convert_to_mm(self.spacing, [PER_MM.get(unit or "") for unit in self.units])


@dataclass(frozen=True)
class Multiscale:
    """The metadata of an OME-Zarr image; `multiscale_of` reads them.

    Attributes
    ----------
    where : str
        The path or URL of the image's group.
    version : str
        ``"0.6"``, ``"0.5"``, ``"0.4"``, or ``"0.3"`` for that version and those before it.
    axes : tuple of str
        The names of the arrays' axes.
    space : tuple of int or None
        Which of these axes are z, y and x; None for an axis that is missing.
    paths : tuple of str
        The arrays in the group, the full resolution first.
    frames : tuple of Frame or None
        The size and position of each array's voxels; None if they are missing or make no sense.
    labels : bool
        Whether it is a label image.
    affines : tuple of ndarray or None
        From voxels (x, y, z) of each array to millimetres, (4, 4), where the metadata (0.6) turn the axes or say which
        way they point; empty if they never do.

    Examples
    --------
    >>> frames = (Frame((2.0, 0.5, 0.5)), Frame((2.0, 1.0, 1.0)))
    >>> image = Multiscale("ct.zarr", "0.5", ("z", "y", "x"), (0, 1, 2), ("0", "1"), frames, labels=False)
    """

    where: str
    version: str
    axes: tuple[str, ...]
    space: SpaceAxes
    paths: tuple[str, ...]
    frames: tuple[Frame | None, ...]
    labels: bool
    affines: tuple[Any, ...] = ()


def read_multiscale(attributes: Mapping[str, Any], where: str, chosen: str | None = None) -> Multiscale:
    """Read the attributes of a group; raise a ValueError if it is no image, or its metadata are damaged.

    One of several images in the group is `chosen` by its number or name.

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
    images = ome["multiscales"]
    number = 0
    if isinstance(images, list) and (len(images) > 1 or chosen is not None):
        number = choose_image(where, [(_image_name(image), "") for image in images], chosen)
    try:
        image = images[number]
        if "coordinateSystems" in image:
            return _read_coordinate_systems(image, where, "image-label" in ome)
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
            version="0.5" if "ome" in attributes else "0.4" if _has_named_axes(image) else "0.3",
            axes=names,
            space=space,
            paths=paths,
            # The transformations of a level come before those of the whole image.
            frames=tuple(_compose_frame(axes, space, _list_steps(dataset, image, where)) for dataset in datasets),
            labels="image-label" in ome,
        )
    except (_NoVolume, NoAffine):
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has OME metadata that cannot be read ({summarise_error(error)}): "
            f"correct 'multiscales' in its attributes, or pass an array inside it"
        ) from error


def _image_name(image: Any) -> str:
    return str(image.get("name", "")) if isinstance(image, Mapping) else ""


def _has_named_axes(image: Mapping[str, Any]) -> bool:
    """Return whether axes have types and units, and levels transformations, as from version 0.4 on."""
    return all(isinstance(axis, Mapping) for axis in image.get("axes", "?")) and all(
        _TRANSFORMATIONS in dataset for dataset in image["datasets"]
    )


def _read_coordinate_systems(image: Mapping[str, Any], where: str, labels: bool) -> Multiscale:
    """Read the metadata of version 0.6, whose transformations map between coordinate systems."""
    datasets = [SystemTransformations.of(image, dataset, where) for dataset in image["datasets"]]
    first = datasets[0]
    names = tuple(str(axis["name"]).lower() for axis in first.axes)
    space = _find_space(names, [axis.get("type") for axis in first.axes], where)
    placed = [dataset.place(space) for dataset in datasets]
    units = [None if n is None else first.axes[n].get("unit") for n in space]
    z, y, x = ((unit if isinstance(unit, str) else None) for unit in (unit or units[1] for unit in units))
    frames = tuple(None if one is None else Frame(one.spacing, one.translation, (z, y, x)) for one in placed)
    per_mm = {PER_MM.get(unit or "") for unit in (z, y, x)}
    unit = per_mm.pop() if len(per_mm) == 1 else None
    affines = tuple(None if one is None or unit is None else one.affine(unit) for one in placed)
    paths = tuple(str(dataset["path"]) for dataset in image["datasets"])
    is_turned = any(affine is not None for affine in affines)
    return Multiscale(where, "0.6", names, space, paths, frames, labels, affines if is_turned else ())


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


def _list_steps(dataset: Mapping[str, Any], image: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """Return the transformations of a level; raise a ValueError for any but scales and translations."""
    steps = [*dataset.get(_TRANSFORMATIONS, ()), *image.get(_TRANSFORMATIONS, ())]
    for step in steps:
        kind = str(step["type"])
        if kind not in ("scale", "translation", "identity"):
            raise NoAffine(
                f"{where} has a transformation of type {shorten(kind, 40)!r}, which is read in version 0.6 only: write "
                f"its metadata in that version, or resample the image"
            )
        if "path" in step:
            raise NoAffine(
                f"{where} keeps the values of a {kind} in an array, which is not read: write them into its OME metadata"
            )
    return steps


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

    Attributes
    ----------
    scale : tuple of float
        The size of a voxel.
    offset : tuple of float
        The position of the first voxel's centre, from that of the full resolution's first voxel.

    Examples
    --------
    >>> half = Resolution(scale=(1.0, 2.0, 2.0), offset=(0.0, 0.5, 0.5))
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
    names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Return the attribute ``ome`` of a Zarr v3 group: an image (OME-NGFF 0.5) of the arrays ``0``, ``1`` and so on.

    Parameters
    ----------
    spacing : tuple of float or None
        The size of a voxel along z, y, x; None for a scale of 1 without a unit.
    name : str
        The image's name, for people.
    translation : tuple of float, optional
        The position of the first voxel's centre along z, y, x, in `units`, or in voxels without a spacing. Default: 0.
    units : tuple of str or None
        The units of spacing and translation along z, y, x, by their names in OME-NGFF. Default: millimetres.
    levels : sequence of Resolution
        The coarser levels, the finest first.
    axes : str
        The arrays' axes in the order of OME-NGFF: t, c, z, y and x, of which the first two may be missing.
    labels : bool
        Whether it is a label image.
    image : str, optional
        For a label image: the path of the image that it belongs to, relative to the group.
    names : dict of int to str, optional
        For a label image: the names of labels.

    Returns
    -------
    dict
        The attribute, which can be written as JSON.

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
        if names:
            properties = [{"label-value": value, "name": name} for value, name in names.items()]
            attributes["image-label"]["properties"] = properties
    return attributes


def in_version_04(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a group of Zarr v2, in version 0.4, from those with `ome_image_attributes`."""
    ome = attributes["ome"]
    described = {
        "multiscales": [{"version": "0.4", **multiscale} for multiscale in ome["multiscales"]],
        **({"image-label": {**ome["image-label"], "version": "0.4"}} if "image-label" in ome else {}),
    }
    return {**{name: value for name, value in attributes.items() if name != "ome"}, **described}


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
    """Return the attribute ``ome`` of a Zarr v3 group with the supervoxels of an image.

    Parameters
    ----------
    spacing : tuple of float or None
        The size of a voxel along z, y, x; None for a scale of 1 without a unit.
    source : str
        The name of the image that was segmented.
    **more
        See `ome_image_attributes`.

    Returns
    -------
    dict
        The attribute, which can be written as JSON.

    Examples
    --------
    >>> ome_label_attributes(spacing=(2.0, 0.5, 0.5), source="ct.nii.gz")["multiscales"][0]["name"]
    'supervoxels of ct.nii.gz'
    """
    return ome_image_attributes(spacing=spacing, name=f"supervoxels of {source}", labels=True, **more)
