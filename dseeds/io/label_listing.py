"""Labels inside the OME-Zarr image that they belong to: its group ``labels`` lists them by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dseeds.io import Image, Multiscale, ZarrSource, multiscale_of
from dseeds.storage.label_group import ZarrFormat
from dseeds.storage.location import Location, is_remote, open_location

DEFAULT_NAME = "supervoxels"
# The versions of OME-Zarr that labels are written in, and of Zarr that these belong to.
_ZARR_FORMATS: dict[str, ZarrFormat] = {"0.4": 2, "0.5": 3}
_NAMES = re.compile(r"\w[\w.+-]*")
# How often a list is written again if another process writes it at the same time.
_TRIES = 5


def resolve_target(source: Any, target: str | Path | None, into_image: bool | str) -> str | Path:
    """Return the target, or the address of labels inside their image.

    Raises a ValueError unless exactly one of target and into_image is set.
    """
    if (target is None) == (into_image is False):
        raise ValueError(
            "labels go either to a target or into their image: pass a target, or into_image (--into-image)."
        )
    if target is not None:
        return target
    return label_address(source, DEFAULT_NAME if into_image is True else str(into_image))


def label_address(source: Any, name: str = DEFAULT_NAME) -> str:
    """Return the address of labels inside the image, or the first of a list of images, that they belong to.

    Raises a ValueError if the name is not valid, or the source is not an OME-Zarr image of version 0.4 or 0.5 at an
    address that can be written to.
    """
    if not _NAMES.fullmatch(name) or name.endswith((".dseeds", ".nii", ".nii.gz")):
        raise ValueError(f"{name!r} is not a name for labels inside an image: use letters, digits and any of . _ - +")
    source = source[0] if isinstance(source, list | tuple) else source
    image = multiscale_of(source)
    if image is None:
        raise ValueError(f"{source} is not an OME-Zarr image, and only these hold labels: name a target.")
    misfit = _misfit(image)
    if misfit:
        raise ValueError(f"{image.where} {misfit}: name a separate target for the labels, or convert the image.")
    _read_names(open_location(image.where).at("labels"))
    return str(open_location(image.where).at("labels").at(name).address)


def is_label_of(image: Image, target: str) -> bool:
    """Return whether a target is in the group of an image's labels; raise a ValueError if their list is damaged."""
    folder, _ = _split(target)
    for part in image.parts:
        multiscale = part.multiscale if isinstance(part, ZarrSource) else None
        if multiscale is not None and _label_folder(multiscale) == folder and _misfit(multiscale) is None:
            _read_names(open_location(folder))
            return True
    return False


def list_labels(target: str) -> None:
    """Add labels inside an image to its list."""
    folder, name = _split(target)
    for _ in range(_TRIES):
        names = _read_names(open_location(folder))
        if name in names:
            return
        _write_names(open_location(folder), [*names, name])


def unlist_labels(target: str) -> None:
    """Remove labels that are about to be replaced from the list of their image, if they are on it."""
    folder, name = _split(target)
    names = _read_names(open_location(folder))
    if name in names:
        _write_names(open_location(folder), [other for other in names if other != name])


def _misfit(image: Multiscale) -> str | None:
    """Return why labels do not fit into an image; None if they do."""
    if image.version not in _ZARR_FORMATS:
        version = "0.3 or before" if image.version == "0.3" else image.version
        return f"is OME-Zarr of version {version}, and labels are written into images of versions 0.4 and 0.5"
    if _zarr_format(open_location(image.where)) != _ZARR_FORMATS[image.version]:
        return f"has metadata of OME-Zarr {image.version}, which belong into Zarr v{_ZARR_FORMATS[image.version]}"
    axes = [n for n in image.space if n is not None]
    if len(axes) < 3 or axes != sorted(axes):
        # Viewers overlay an image and its labels axis by axis, without looking at the names.
        return f"has the axes {', '.join(image.axes)}, and labels inside an image need z, y and x in this order"
    return None


def _label_folder(image: Multiscale) -> str | None:
    """Return the address of the group of an image's labels; None if it cannot be written to."""
    try:
        return str(open_location(image.where).at("labels").address)
    except ValueError:
        return None


def _split(target: str) -> tuple[str, str]:
    """Return the address of the group that holds labels, and their name."""
    if is_remote(target):
        folder, _, name = target.rpartition("/")
        return folder, name
    return str(Path(target).parent), Path(target).name


def label_format(target: str) -> ZarrFormat:
    """Return the version of Zarr that labels inside an image are in, which is that of the image."""
    return _list_format(open_location(_split(target)[0]))


def _list_format(folder: Location) -> ZarrFormat:
    return _zarr_format(open_location(_split(folder.address)[0]))


def _zarr_format(group: Location) -> ZarrFormat:
    return 3 if group.read("zarr.json") is not None else 2


def _document(folder: Location) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read the metadata of a group of labels, or return those of a new one.

    Returns the file's name, its contents, and the part of these that has the list.
    """
    if _list_format(folder) == 2:
        document: dict[str, Any] = json.loads(folder.read(".zattrs") or "{}")
        document.setdefault("labels", [])
        return ".zattrs", document, document
    document = json.loads(folder.read("zarr.json") or '{"zarr_format": 3, "node_type": "group"}')
    ome = document.setdefault("attributes", {}).setdefault("ome", {})
    # OME-NGFF requires both, and ome-zarr leaves out the version.
    ome.setdefault("version", "0.5")
    ome.setdefault("labels", [])
    return "zarr.json", document, ome


def _read_names(folder: Location) -> list[str]:
    """Read the names of the labels on a list."""
    try:
        return [str(name) for name in _document(folder)[2]["labels"]]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder.address} has no readable list of labels in its metadata: correct it, or name another target."
        ) from error


def _write_names(folder: Location, names: list[str]) -> None:
    file, document, listing = _document(folder)
    listing["labels"] = names
    folder.write(file, json.dumps(document, indent=2).encode())
    if file == ".zattrs" and folder.read(".zgroup") is None:
        folder.write(".zgroup", json.dumps({"zarr_format": 2}).encode())
