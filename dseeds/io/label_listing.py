"""Labels inside the OME-Zarr image that they belong to: in its group ``labels``, which lists them by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dseeds.io import Image, Multiscale, ZarrSource, multiscale_of
from dseeds.storage.location import Location, is_remote, open_location

DEFAULT_NAME = "supervoxels"
_NAMES = re.compile(r"\w[\w.+-]*")
# How often a list is written again where another process writes it at the same time.
TRIES = 5


def resolve_target(source: Any, target: str | Path | None, into_image: bool | str) -> str | Path:
    """Give the target, or that inside the image.

    Raises
    ------
    ValueError
        If neither is wanted or both are, and as `label_address`.
    """
    if (target is None) == (into_image is False):
        raise ValueError("labels go to a target or into their image: name the one, or say into_image (--into-image).")
    if target is not None:
        return target
    return label_address(source, DEFAULT_NAME if into_image is True else str(into_image))


def label_address(source: Any, name: str = DEFAULT_NAME) -> str:
    """Give the address of labels inside the image that they belong to.

    Parameters
    ----------
    source : path, URL or zarr.Group, or a list of these
        The image, or the first of several.
    name : str
        What the labels are called.

    Raises
    ------
    ValueError
        If the name is none, or the source is no OME-Zarr image of version 0.5 in a place that can be written to.
    """
    if not _NAMES.fullmatch(name) or name.endswith((".dseeds", ".nii", ".nii.gz")):
        raise ValueError(f"{name!r} is no name for labels inside an image: take letters, digits and any of . _ - +")
    source = source[0] if isinstance(source, list | tuple) else source
    image = multiscale_of(source)
    if image is None:
        raise ValueError(f"{source} is no OME-Zarr image, which alone has labels inside it: name a target.")
    misfit = _misfit(image)
    if misfit:
        raise ValueError(f"{image.where} {misfit}: name a target of their own, or bring the image into that form.")
    _listed(open_location(image.where).at("labels"))
    return str(open_location(image.where).at("labels").at(name).address)


def is_label_of(image: Image, target: str) -> bool:
    """Tell whether a target is among the labels inside an image that they fit into.

    Raises
    ------
    ValueError
        If it is, and the list of these cannot be read.
    """
    folder, _ = _parted(target)
    for part in image.parts:
        found = part.multiscale if isinstance(part, ZarrSource) else None
        if found is not None and _folder(found) == folder and _misfit(found) is None:
            _listed(open_location(folder))
            return True
    return False


def list_labels(target: str) -> None:
    """Add labels inside an image to the list of those that are there."""
    folder, name = _parted(target)
    for _ in range(TRIES):
        names = _listed(open_location(folder))
        if name in names:
            return
        _list(open_location(folder), [*names, name])


def unlist_labels(target: str) -> None:
    """Take labels off the list, if they are on it: those that were there are about to be replaced."""
    folder, name = _parted(target)
    names = _listed(open_location(folder))
    if name in names:
        _list(open_location(folder), [other for other in names if other != name])


def _misfit(image: Multiscale) -> str | None:
    """Tell why labels do not fit into an image."""
    if image.version != "0.5":
        return "is OME-Zarr of version 0.4 or before, and labels are written in version 0.5"
    axes = [n for n in image.space if n is not None]
    if len(axes) < 3 or axes != sorted(axes):
        # Viewers lay an image and its labels upon each other axis by axis, whatever these are called.
        return f"has the axes {', '.join(image.axes)}, and labels inside an image need z, y and x in this order"
    return None


def _folder(image: Multiscale) -> str | None:
    """Give the address of the group of an image's labels; None where nothing can be written."""
    try:
        return str(open_location(image.where).at("labels").address)
    except ValueError:
        return None


def _parted(target: str) -> tuple[str, str]:
    """Give the group that labels lie in, and their name."""
    if is_remote(target):
        folder, _, name = target.rpartition("/")
        return folder, name
    return str(Path(target).parent), Path(target).name


def _document(folder: Location) -> dict[str, Any]:
    """Read the metadata of a group of labels, or make what a new one has."""
    text = folder.read("zarr.json")
    found: dict[str, Any] = json.loads(text or '{"zarr_format": 3, "node_type": "group"}')
    ome = found.setdefault("attributes", {}).setdefault("ome", {})
    # Which ome-zarr leaves out, and OME-NGFF requires.
    ome.setdefault("version", "0.5")
    ome.setdefault("labels", [])
    return found


def _listed(folder: Location) -> list[str]:
    """Read which labels there are."""
    try:
        return [str(name) for name in _document(folder)["attributes"]["ome"]["labels"]]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder.address}/zarr.json is no list of labels that can be read: correct it, or name a target elsewhere."
        ) from error


def _list(folder: Location, names: list[str]) -> None:
    document = _document(folder)
    document["attributes"]["ome"]["labels"] = names
    folder.write("zarr.json", json.dumps(document, indent=2).encode())
