"""What an output or an image is, read back from its metadata; no voxel is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr

from dseeds import phantom
from dseeds.io import Source, ZarrSource, frame_of, open_source
from dseeds.io.formats.nifti import is_written_by_us
from dseeds.storage.label_group import ATTRIBUTE
from dseeds.storage.location import Location, open_location
from dseeds.storage.ownership import MARKER

Description = dict[str, Any]


def describe(target: str | os.PathLike[str], *, volume: int | None = None, level: int = 0) -> Description:
    """Describe a label volume or a phantom that this program wrote, or any other image that it can read.

    Parameters
    ----------
    target : path or URL
        What `dseeds.io.open_source` takes.
    volume : int, optional
        Which volume of a 4D image, from 0.
    level : int, default 0
        Which level of an OME-Zarr image.

    Returns
    -------
    dict
        Plain values, ready for JSON. ``kind`` is ``"labels"``, ``"phantom"`` or ``"image"``, the first two only for
        what this program wrote; ``path``, ``format``, ``shape``, ``dtype`` and ``spacing`` are always there,
        ``chunks`` and ``shards`` for Zarr; ``level``, ``levels``, their number, ``translation`` and ``units`` for
        OME-Zarr; ``supervoxels``, ``step``, ``cells``, ``windows``, ``rounds``, ``asked``,
        ``source`` and ``versions`` for labels in Zarr; ``noise``, ``organs`` and ``seed`` for a phantom.

    Raises
    ------
    FileNotFoundError
        If the path leads nowhere.
    ValueError
        If it is unfinished, damaged or no image.

    Examples
    --------
    >>> import tempfile
    >>> from dseeds.phantom import write_phantom
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_phantom(f"{folder}/body.zarr", shape=(24, 32, 32), spacing=(2.0, 1.5, 1.5), seed=3)
    ...     description = describe(f"{folder}/body.zarr")
    >>> description["kind"], description["spacing"], description["seed"]
    ('phantom', [2.0, 1.5, 1.5], 3)
    """
    place = _place(target)
    if place:
        _refuse_unfinished(place)
    try:
        source = open_source(target, volume=volume, level=level)
    except FileNotFoundError:
        if place:
            _refuse_begun(place)
        raise
    return {
        "kind": "image",
        "path": os.fspath(target),
        "format": source.kind,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "spacing": None if source.spacing is None else list(source.spacing),
        **_storage(source),
        **_noted(target, place, source.kind),
    }


def _noted(target: str | os.PathLike[str], place: Location | None, kind: str) -> Description:
    """Read what this program noted in its outputs."""
    if kind == "zarr":
        return _of_group(place.zarr() if place else target)
    return _of_nifti(Path(target)) if kind == "nifti" else {}


def _place(target: str | os.PathLike[str]) -> Location | None:
    """Give the place of a target; None for those that can only be read."""
    try:
        return open_location(target)
    except ValueError:
        return None


def _refuse_unfinished(place: Location) -> None:
    for marker in (MARKER, phantom.PHANTOM_MARKER):
        if place.read(marker) is not None:
            _refuse_begun(place)
            raise ValueError(
                f"{place.address} is unfinished: it is still being written, or was left; in the latter case, write it "
                f"again with --overwrite."
            )


def _refuse_begun(place: Location) -> None:
    # It imports Dask, for which only those wait who need it.
    from dseeds.engine.run import SUFFIX
    from dseeds.engine.run_directory import DOCUMENT

    if open_location(place.address + SUFFIX).read(DOCUMENT) is not None:
        raise ValueError(
            f"{place.address} is unfinished: see how far its run is with dseeds status {place.address}, and go on with "
            f"it with dseeds segment and --resume, or dseeds step if it is one of batch jobs."
        )


def _storage(source: Source) -> Description:
    if not isinstance(source, ZarrSource):
        return {}
    shards = source.array.shards
    cut = {"chunks": list(source.array.chunks), "shards": None if shards is None else list(shards)}
    if source.multiscale is None:
        return cut
    frame = frame_of(source)
    levels = {"level": source.level, "levels": len(source.multiscale.paths)}
    return {**cut, **levels, "translation": list(frame.translation), "units": list(frame.units)}


def _of_group(where: Any) -> Description:
    """Read what this program noted in a group's attributes."""
    node = zarr.open(where, mode="r")
    noted: Any = node.attrs.get(ATTRIBUTE) if isinstance(node, zarr.Group) else None
    if not isinstance(noted, Mapping):
        return {}
    if "phantom" in noted:
        recipe = _mapping(noted["phantom"])
        return {"kind": "phantom", **{key: recipe.get(key) for key in ("noise", "organs", "seed")}}
    if "painted" in noted:
        found = {"kind": "labels"} if "image-label" in _mapping(node.attrs.get("ome")) else {}
        return {**found, **{key: noted[key] for key in ("painted", "labels", "fill") if key in noted}}
    if "imported" in noted:
        kind = "labels" if "image-label" in _mapping(node.attrs.get("ome")) else "image"
        return {"kind": kind, "imported": noted["imported"]}
    parameters = _mapping(noted.get("parameters"))
    return {
        "kind": "labels",
        "supervoxels": noted.get("supervoxels"),
        **{key: parameters.get(key) for key in ("step", "cells", "windows", "rounds", "asked")},
        **{key: noted.get(key) for key in ("source", "versions")},
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    """Take what others may have changed for nothing where it makes no sense."""
    return value if isinstance(value, Mapping) else {}


def _of_nifti(path: Path) -> Description:
    """Recognise labels by the header's intent: there is room for nothing more."""
    return {"kind": "labels"} if is_written_by_us(path, labels=True) else {}
