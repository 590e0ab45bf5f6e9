"""Description of an image or an output by its metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr

from dseeds import phantom
from dseeds.io import Source, ZarrSource, frame_of, open_source
from dseeds.io.formats.nifti import is_written_by_us
from dseeds.io.formats.ome_zarr import split_group
from dseeds.io.image import open_channels
from dseeds.io.source import SeveralVolumes, SourceQuery, resolve_address
from dseeds.storage.label_group import ATTRIBUTE, EDITING, EDITS
from dseeds.storage.location import Location, open_location
from dseeds.storage.ownership import MARKER

Description = dict[str, Any]


def describe(target: str | os.PathLike[str], *, volume: int | None = None, level: int = 0) -> Description:
    """Describe a label volume or phantom written by this program, or any other readable image, without reading voxels.

    The result holds plain values, ready for JSON. ``kind`` is ``"labels"`` or ``"phantom"`` for an output of this
    program, else ``"image"``. ``path``, ``format``, ``shape``, ``dtype`` and ``spacing`` are always present. Colours
    add ``channels``; several volumes or channels add ``further_axes`` and ``options``, how to choose among them; a
    file that contradicts itself adds ``notes``. Zarr adds ``chunks`` and ``shards``; OME-Zarr ``level``, ``levels``
    (their number), ``translation`` and ``units``; labels in Zarr ``supervoxels``, ``step``, ``cells``, ``windows``,
    ``knees``, ``rounds``, ``asked``, ``source`` and ``versions``, and ``edits`` (their number) and ``unfinished_edit``
    where there are any; a phantom ``noise``, ``organs`` and ``seed``.

    A ValueError is raised if the target is unfinished, damaged or not an image.

    >>> import tempfile
    >>> from dseeds.phantom import write_phantom
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_phantom(f"{folder}/body.zarr", shape=(24, 32, 32), spacing=(2.0, 1.5, 1.5), seed=3)
    ...     description = describe(f"{folder}/body.zarr")
    >>> description["kind"], description["spacing"], description["seed"]
    ('phantom', [2.0, 1.5, 1.5], 3)
    """
    location = _open_location(target)
    if location:
        _check_finished(location)
    try:
        source, further = _open_any(target, volume, level)
    except FileNotFoundError:
        if location:
            _check_no_run(location)
        raise
    return {
        "kind": "image",
        "path": os.fspath(target),
        "format": source.kind,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "spacing": None if source.spacing is None else list(source.spacing),
        **further,
        **({"notes": list(source.notes)} if source.notes else {}),
        **_describe_storage(source),
        **_describe_output(target, location, source.kind),
    }


def _open_any(target: str | os.PathLike[str], volume: int | None, level: int) -> tuple[Source, Description]:
    """Open one volume of a target, or its channels; return also what else it holds, and how to choose."""
    try:
        return open_source(target, volume=volume, level=level), {}
    except ValueError as error:
        refusal = error
    more: Description = {}
    if isinstance(refusal, SeveralVolumes):
        more["further_axes"] = refusal.sizes
    for chosen, axis in ((volume, None), (volume or 0, None), (volume or 0, "c"), (volume or 0, 0), (volume or 0, 1)):
        with suppress(ValueError):
            image = open_channels(target, SourceQuery(chosen, axis, "copy", level))
            if any(dtype.kind == "b" for dtype in image.dtypes):
                raise refusal
            if "further_axes" in more:
                more["options"] = _describe_options(target, volume, level)
            elif image.channels > 1:
                more["channels"] = image.channels
            return image.parts[0], more
    raise refusal


def _describe_options(target: str | os.PathLike[str], volume: int | None, level: int) -> str:
    """Return the advice that an image with several volumes or channels is refused with."""
    try:
        open_channels(target, SourceQuery(volume, None, "image", level))
    except ValueError as error:
        # The address precedes the first colon that a space follows.
        return str(error).partition(": ")[2]
    return "all channels are taken together"


def _describe_output(target: str | os.PathLike[str], location: Location | None, kind: str) -> Description:
    if kind == "zarr":
        return _describe_group(location.zarr() if location else target)
    # The header of a NIfTI file has space for its intent only.
    if kind == "nifti" and is_written_by_us(Path(target), labels=True):
        return {"kind": "labels"}
    return {}


def _open_location(target: str | os.PathLike[str]) -> Location | None:
    try:
        group, chosen = split_group(resolve_address(os.fspath(target)))
        return open_location(target if chosen is None else group)
    except ValueError:
        return None


def _check_finished(location: Location) -> None:
    for marker in (MARKER, phantom.PHANTOM_MARKER):
        if location.read(marker) is not None:
            _check_no_run(location)
            raise ValueError(
                f"{location.address} is unfinished: wait if it is still being written, or else write it again with "
                f"--overwrite."
            )


def _check_no_run(location: Location) -> None:
    """Raise ValueError if a target has an unfinished run."""
    # Imported late, because the engine imports Dask, which is slow.
    from dseeds.engine.run import SUFFIX
    from dseeds.engine.run_directory import DOCUMENT

    if open_location(location.address + SUFFIX).read(DOCUMENT) is not None:
        raise ValueError(
            f"{location.address} is unfinished: see the progress of its run with dseeds status {location.address}, and "
            f"resume it with dseeds segment and --resume, or dseeds step for a run of batch jobs."
        )


def _describe_storage(source: Source) -> Description:
    if not isinstance(source, ZarrSource):
        return {}
    shards = source.array.shards
    layout = {"chunks": list(source.array.chunks), "shards": None if shards is None else list(shards)}
    if source.multiscale is None:
        return layout
    frame = frame_of(source)
    levels = {"level": source.level, "levels": len(source.multiscale.paths)}
    return {**layout, **levels, "translation": list(frame.translation), "units": list(frame.units)}


def _describe_group(store: Any) -> Description:
    """Return what this program noted in a group's attributes."""
    node = zarr.open(store, mode="r")
    attributes: Any = node.attrs.get(ATTRIBUTE) if isinstance(node, zarr.Group) else None
    if not isinstance(attributes, Mapping):
        return {}
    if "phantom" in attributes:
        recipe = as_mapping(attributes["phantom"])
        return {"kind": "phantom", **{key: recipe.get(key) for key in ("noise", "organs", "seed")}}
    has_labels = "image-label" in as_mapping(node.attrs.get("ome"))
    if "painted" in attributes:
        painted = {key: attributes[key] for key in ("painted", "labels", "fill") if key in attributes}
        return {**({"kind": "labels"} if has_labels else {}), **painted}
    if "imported" in attributes:
        return {"kind": "labels" if has_labels else "image", "imported": attributes["imported"]}
    parameters = as_mapping(attributes.get("parameters"))
    return {
        "kind": "labels",
        "supervoxels": attributes.get("supervoxels"),
        **({EDITS: attributes[EDITS]} if EDITS in attributes else {}),
        **({"unfinished_edit": attributes[EDITING]} if EDITING in attributes else {}),
        **{key: parameters.get(key) for key in ("step", "cells", "windows", "knees", "rounds", "asked")},
        **{key: attributes.get(key) for key in ("source", "versions")},
    }


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a value if it is a mapping, and an empty one for anything that others may have put in its place."""
    return value if isinstance(value, Mapping) else {}
