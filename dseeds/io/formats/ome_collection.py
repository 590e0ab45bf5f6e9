"""Groups of OME-Zarr around images: the roots that bioformats2raw writes, plates and wells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dseeds.core.lazy_module import LazyModule
from dseeds.io.source import shorten

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

# Images to look for in a root without a list of them.
_MOST_SERIES = 1000


def find_image_group(group: zarr.Group, where: str) -> tuple[zarr.Group, str]:
    """Return the group of the only image in a group, and its address: itself, unless it is a root, a plate or a well.

    Raises a ValueError that names the first image if there are several.
    """
    for _ in range(3):
        attributes = _ome_attributes(group)
        if "multiscales" in attributes:
            break
        images = _list_images(group, attributes)
        if images is None or not images[1]:
            break
        kind, paths = images
        if len(paths) > 1:
            listed = shorten(", ".join(paths), 500)
            raise ValueError(
                f"{where} is {kind} that holds {len(paths)} images ({listed}): pass one of them, such as "
                f"{where}/{paths[0]}"
            )
        inner = _member(group, paths[0])
        if inner is None:
            raise ValueError(f"{where} is {kind} that names {shorten(paths[0], 80)}, which is missing: copy it again")
        group, where = inner, f"{where}/{paths[0]}"
    return group, where


def _ome_attributes(group: zarr.Group) -> Mapping[str, Any]:
    attributes: Any = group.metadata.attributes
    if not isinstance(attributes, Mapping):
        return {}
    ome = attributes.get("ome")
    return {**attributes, **ome} if isinstance(ome, Mapping) else attributes


def _list_images(group: zarr.Group, attributes: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Return what a group is and the paths of its images; None if it is none of these groups."""
    if "plate" in attributes:
        wells = _paths(attributes["plate"], "wells")
        fields = [f"{well}/{field}" for well in wells[:2] for field in _fields(group, well)]
        return "a plate", fields if len(wells) < 3 else [*fields, *wells[2:]]
    if "well" in attributes:
        return "a well", _paths(attributes["well"], "images")
    if "bioformats2raw.layout" in attributes:
        return "a root of bioformats2raw", _series(group)
    return None


def _fields(plate: zarr.Group, well: str) -> list[str]:
    """Return the paths of the images of a well, relative to it; the first one if the well cannot be opened."""
    group = _member(plate, well)
    return (_paths(_ome_attributes(group).get("well"), "images") if group is not None else []) or ["0"]


def _series(root: zarr.Group) -> list[str]:
    """Return the paths of the images in a root: those that its group OME lists, or else 0, 1 and so on."""
    listing = _member(root, "OME")
    series = _ome_attributes(listing).get("series") if listing is not None else None
    if isinstance(series, list):
        return [str(path) for path in series]
    paths: list[str] = []
    while len(paths) < _MOST_SERIES and _member(root, str(len(paths))) is not None:
        paths.append(str(len(paths)))
    return paths


def _paths(listing: Any, key: str) -> list[str]:
    """Return the paths in a list of objects, if it is one."""
    entries = listing.get(key) if isinstance(listing, Mapping) else None
    if not isinstance(entries, list):
        return []
    return [str(entry["path"]) for entry in entries if isinstance(entry, Mapping) and "path" in entry]


def _member(group: zarr.Group, path: str) -> zarr.Group | None:
    """Return a group within a group; None if there is none, or its path leads elsewhere."""
    if not path or path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/") or ":" in path:
        return None
    try:
        # Of either version, for roots of version 2 may hold images of version 3.
        member = zarr.open(group.store, path=f"{group.path}/{path}".strip("/"), mode="r")
    except (ConnectionError, PermissionError):
        raise
    except Exception:  # damaged metadata can raise anything
        return None
    return member if isinstance(member, zarr.Group) else None
