"""Nodes of Zarr, which are arrays or groups: how they are opened, where they are, and whether they have changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dseeds.core.lazy_module import LazyModule
from dseeds.io.source import summarise_error
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.object_store import list_objects, url_of

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store
else:
    zarr = LazyModule("zarr")

_METADATA = re.compile(r"zarr\.json|\.z\w+")


def open_node(address: Path | str) -> zarr.Array | zarr.Group:
    """Open a group or an array at a path or URL; raises as `dseeds.io.open_source`."""
    location = open_location(address) if is_remote(address) else None
    try:
        return zarr.open(location.zarr() if location else address, mode="r")
    except (ConnectionError, PermissionError):
        raise
    except zarr.errors.GroupNotFoundError:
        # Raised below, since this one does not pickle, not even as the context of another error.
        pass
    except Exception as error:  # damaged metadata can raise anything
        raise ValueError(
            f"{address} cannot be opened as Zarr ({summarise_error(error)}): "
            f"check its address, and its metadata for damage or a version other than 2 and 3"
        ) from error
    if location:
        # Raises if the bucket does not exist, which Zarr takes for an empty one.
        location.read("zarr.json")
    if isinstance(address, str):
        raise FileNotFoundError(f"{address} does not exist, or holds neither Zarr array nor group")
    raise ValueError(
        f"{address} is a folder without Zarr metadata (zarr.json, .zarray or .zgroup): "
        f"pass the folder of a Zarr array, of an OME-Zarr image or of a series of DICOM or TIFF, or name a file"
    )


def with_absolute_path(node: zarr.Array | zarr.Group) -> zarr.Array | zarr.Group:
    """Reopen a local node by its absolute path: workers may run in another folder."""
    store = node.store
    if type(store) is not zarr.storage.LocalStore or store.root.is_absolute():
        return node
    return zarr.open(zarr.storage.LocalStore(store.root.absolute(), read_only=True), path=node.path, mode="r")


def is_in_process_memory(node: zarr.Array | zarr.Group) -> bool:
    """Return whether no other process can reach the node."""
    store = _unwrapped(node.store)
    if isinstance(store, zarr.storage.FsspecStore):
        return "memory" in np.atleast_1d(store.fs.protocol)
    if isinstance(store, zarr.storage.ObjectStore):
        return type(store.store).__name__ == "MemoryStore"
    return isinstance(store, zarr.storage.MemoryStore)


def node_address(node: zarr.Array | zarr.Group) -> str:
    """Return the path or URL of a node, the same however it was opened."""
    # Here, not above: Zarr takes its time to import.
    from dseeds.storage.prefix_store import PrefixStore

    store = _unwrapped(node.store)
    if isinstance(store, zarr.storage.LocalStore):
        return str((store.root / node.path).absolute())
    if isinstance(store, zarr.storage.FsspecStore):
        return str(store.fs.unstrip_protocol(f"{store.path}/{node.path}".rstrip("/")))
    if isinstance(store, zarr.storage.ObjectStore) and not isinstance(store, PrefixStore):
        return url_of(store.store, node.path) or str(node.store_path)
    return "the zarr array" if isinstance(store, zarr.storage.MemoryStore) else str(node.store_path)


def hash_chunks(array: zarr.Array) -> str | None:
    """Return a digest of the names, sizes and dates of an array's chunks; None if the store has no dates."""
    store, state = _unwrapped(array.store), 0
    chunks: Iterable[tuple[Any, ...]]
    if isinstance(store, zarr.storage.LocalStore):
        chunks = _list_files(store.root / array.path, "")
    elif isinstance(store, zarr.storage.ObjectStore):
        chunks = _list_keys(store.store, array.path)
    else:
        return None
    # Combined by xor, for the order of a listing may vary.
    for chunk in chunks:
        if not _METADATA.fullmatch(chunk[0].rpartition("/")[2]):
            state ^= int.from_bytes(hashlib.blake2b(repr(chunk).encode(), digest_size=16).digest())
    return f"{state:032x}"


def _list_files(folder: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    """List the files that may be chunks with their sizes and dates; other folders may hold anything, such as labels."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if not entry.is_dir():
                status = entry.stat()
                yield name, status.st_size, status.st_mtime_ns
            elif _may_hold_chunks(entry.name):
                yield from _list_files(Path(entry.path), f"{name}/")


def _list_keys(store: Any, path: str) -> Iterator[tuple[str, int, str]]:
    """List the objects that may be chunks with their sizes and tags."""
    for key, size, tag in list_objects(store, path):
        name = key.removeprefix(f"{path}/") if path else key
        if all(map(_may_hold_chunks, name.split("/")[:-1])):
            yield name, size, tag


def _may_hold_chunks(folder: str) -> bool:
    return folder == "c" or folder.isdecimal()


def _unwrapped(store: Store) -> Store:
    while isinstance(store, zarr.storage.WrapperStore):
        store = store._store
    return store
