"""Locations that hold small files and Zarr arrays: local folders, and prefixes in the buckets of object stores."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from typing_extensions import override

from dseeds.storage.object_store import (
    connect_prefix,
    create_object,
    delete_objects,
    describe_store_error,
    get_object,
    get_range,
    join_key,
    list_objects,
    put_object,
)

if TYPE_CHECKING:
    from dseeds.storage.prefix_store import PrefixStore

# The schemes of object stores, and how addresses spell them.
_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "azure": "az", "abfs": "abfs", "abfss": "abfss"}
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")


class Location(Protocol):
    """A place for small files and Zarr arrays, each under a key such as ``"a/b.json"``.

    No key is also a prefix of another key followed by a slash, since a folder could not hold both.
    """

    def __hash__(self) -> int:
        return hash(self.address)

    @property
    def address(self) -> str:
        """An absolute path, or a URL without a trailing slash."""

    def read(self, key: str) -> bytes | None:
        """Read a file; return None if it does not exist."""

    def read_part(self, key: str, begin: int, end: int) -> bytes:
        """Read the bytes of a file from `begin` up to `end`; raise FileNotFoundError if it does not exist."""

    def write(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Write or replace a file atomically; if it is not `durable`, a power cut may lose or tear it."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a file atomically unless it exists; of several concurrent calls, exactly one returns True."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files, ignoring missing ones."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """List all keys in a folder, recursively and in any order, relative to the location."""

    def clear(self, prefix: str = "") -> None:
        """Remove everything in a folder, and the folder itself. Links are not followed."""

    def at(self, name: str) -> Location:
        """Return a location within this one."""

    def zarr(self, name: str = "") -> Path | PrefixStore:
        """Return the store of an array or group, for `zarr.create_array` and `zarr.open_array`."""


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Return whether an address is in an object store.

    >>> is_remote("s3://bucket/a.zarr"), is_remote("a.zarr"), is_remote("https://example.org/a.zarr")
    (True, False, False)
    """
    scheme, separator, _ = str(os.fspath(address)).partition("://")
    return bool(separator) and scheme.lower() in _SCHEMES


def open_location(address: str | os.PathLike[str]) -> Location:
    """Return the location at a path or URL, which need not exist yet.

    URLs are ``file://``, or ``s3://`` (``s3a``), ``gs://`` and ``az://`` (``azure``, ``abfs``, ``abfss``) with the name
    of a bucket; for others, a ValueError is raised.

    >>> open_location("s3a://bucket/images/").at("a.zarr").address
    's3://bucket/images/a.zarr'
    """
    text = str(os.fspath(address))
    scheme, separator, rest = text.partition("://")
    if is_remote(text):
        bucket, *keys = rest.split("/")
        if not bucket:
            raise ValueError(f"{text} names no bucket: write {scheme}://BUCKET/NAME")
        return RemoteLocation(f"{_SCHEMES[scheme.lower()]}://{bucket}", "/".join(filter(None, keys)))
    if scheme == "file":
        return LocalLocation(Path(url2pathname(urlsplit(text).path)))
    if separator:
        raise ValueError(f"{text} is neither a path nor an address in an object store (s3://, gs://, az://)")
    return LocalLocation(Path(text).expanduser().absolute())


def open_parent(address: str | os.PathLike[str]) -> tuple[Location, str]:
    """Return the location that contains the file at a path or URL, and the file's key there.

    >>> parent, name = open_parent("s3://bucket/tables/a.parquet")
    >>> parent.address, name
    ('s3://bucket/tables', 'a.parquet')
    """
    location = open_location(address)
    if isinstance(location, RemoteLocation):
        prefix, _, name = location.prefix.rpartition("/")
        return RemoteLocation(location.bucket, prefix), name
    path = Path(location.address)
    return LocalLocation(path.parent), path.name


@dataclass(frozen=True)
class LocalLocation(Location):
    """A folder on this machine, with an absolute path. It need not exist."""

    path: Path

    @property
    @override
    def address(self) -> str:
        return str(self.path)

    @override
    def read(self, key: str) -> bytes | None:
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    @override
    def read_part(self, key: str, begin: int, end: int) -> bytes:
        with (self.path / key).open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    @override
    def write(self, key: str, data: bytes, *, durable: bool = True) -> None:
        target = self.path / key
        with _partial(target, data, durable) as partial:
            partial.replace(target)

    @override
    def create(self, key: str, data: bytes) -> bool:
        # On a file system without hard links, a reader may see the file before it is complete.
        target = self.path / key
        # Without this check, a full disk would raise before the existing file is noticed.
        if os.path.lexists(target):
            return False
        try:
            with _partial(target, data) as partial:
                _link(partial, target, data)
        except FileExistsError:
            return False
        return True

    @override
    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                (self.path / key).unlink()

    @override
    def names(self, prefix: str = "") -> Iterator[str]:
        # A link is a file, even if it leads to a folder.
        try:
            entries = list(os.scandir(self.path / prefix))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self.names(key)
            elif not _PARTIAL.fullmatch(entry.name):
                yield key

    @override
    def clear(self, prefix: str = "") -> None:
        folder = self.path / prefix
        if folder.is_symlink() and folder.is_dir():
            folder.unlink()
        while folder.is_dir():
            # Another process may be clearing it too.
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)

    @override
    def at(self, name: str) -> LocalLocation:
        return LocalLocation(self.path / name)

    @override
    def zarr(self, name: str = "") -> Path:
        return self.path / name


@contextmanager
def _partial(target: Path, data: bytes, durable: bool = True) -> Iterator[Path]:
    """Write data to a temporary file beside its target, and remove that file unless it has been moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            # A power cut cannot tear an empty file, and there are many empty markers.
            if data and durable:
                os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, target: Path, data: bytes) -> None:
    try:
        target.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:
        with target.open("xb") as file:
            try:
                file.write(data)
                file.flush()
            except BaseException:
                target.unlink(missing_ok=True)
                raise


@dataclass(frozen=True)
class RemoteLocation(Location):
    """A prefix, which may be empty, in the bucket with this URL. It pickles, without credentials."""

    bucket: str
    prefix: str = ""

    @property
    @override
    def address(self) -> str:
        return join_key(self.bucket, self.prefix)

    @override
    def read(self, key: str) -> bytes | None:
        with describe_store_error(self.address):
            return get_object(self._store, self._key(key))

    @override
    def read_part(self, key: str, begin: int, end: int) -> bytes:
        with describe_store_error(self.address):
            return get_range(self._store, self._key(key), begin, end)

    @override
    def write(self, key: str, data: bytes, *, durable: bool = True) -> None:
        with describe_store_error(self.address):
            put_object(self._store, self._key(key), data)

    @override
    def create(self, key: str, data: bytes) -> bool:
        with describe_store_error(self.address):
            return create_object(self._store, self._key(key), data)

    @override
    def delete(self, keys: Iterable[str]) -> None:
        with describe_store_error(self.address):
            delete_objects(self._store, [self._key(key) for key in keys])

    @override
    def names(self, prefix: str = "") -> Iterator[str]:
        paths = [path for path, *_ in list_objects(self._store, self._key(prefix))]
        start = len(self.prefix) + 1 if self.prefix else 0
        return (path[start:] for path in paths)

    @override
    def clear(self, prefix: str = "") -> None:
        self.delete(self.names(prefix))

    @override
    def at(self, name: str) -> RemoteLocation:
        return RemoteLocation(self.bucket, self._key(name))

    @override
    def zarr(self, name: str = "") -> PrefixStore:
        # Here, not above: Zarr takes its time to import.
        from dseeds.storage.prefix_store import PrefixStore

        return PrefixStore(self.bucket, self._key(name))

    @property
    def _store(self) -> Any:
        return connect_prefix(self.bucket)

    def _key(self, key: str) -> str:
        return join_key(self.prefix, key)
