"""Places that small files and Zarr arrays lie in: folders, and prefixes of buckets in object stores."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dseeds.storage.object_store import PrefixStore, RemoteLocation

# The schemes of object stores, and what they are called in addresses.
_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "azure": "az", "abfs": "abfs", "abfss": "abfss"}
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")


class Location(Protocol):
    """Somewhere that small files and Zarr arrays lie, each under a key such as ``"a/b.json"``.

    A key is not also the folder of others: what a folder cannot hold, a place should not.
    """

    @property
    def address(self) -> str:
        """An absolute path, or a URL without a trailing slash."""

    def read(self, key: str) -> bytes | None:
        """Read a file; None where there is none."""

    def read_part(self, key: str, begin: int, end: int) -> bytes:
        """Read the bytes of a file from `begin` up to `end`; `FileNotFoundError` where there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Write or replace a file, whole or not at all."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a file, whole, unless there is one: of many who try, one gets True, and all others False."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files. What is missing does not matter."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """List all keys below a prefix, which is a folder's name, in any order, relative to the place."""

    def clear(self, prefix: str = "") -> None:
        """Remove all that lies below a prefix, and the folder itself where there is one. Links are not followed."""

    def at(self, name: str) -> Location:
        """Give a place within this one."""

    def zarr(self, name: str = "") -> Path | PrefixStore:
        """Give what `zarr.create_array` and `zarr.open_array` take for an array or group of this name."""


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Tell whether an address is one in an object store.

    Examples
    --------
    >>> is_remote("s3://bucket/a.zarr"), is_remote("a.zarr"), is_remote("https://example.org/a.zarr")
    (True, False, False)
    """
    scheme, found, _ = str(os.fspath(address)).partition("://")
    return bool(found) and scheme.lower() in _SCHEMES


def open_location(address: str | os.PathLike[str]) -> Location:
    """Give the place at a path or URL, whether or not anything lies there yet.

    Parameters
    ----------
    address : str or path
        A path or ``file://`` URL, or ``s3://`` (``s3a``), ``gs://``, ``az://`` (``azure``, ``abfs``, ``abfss``) with
        the bucket's name.

    Raises
    ------
    ValueError
        If it is another URL, or one without a bucket.

    Examples
    --------
    >>> open_location("s3a://bucket/images/").at("a.zarr").address
    's3://bucket/images/a.zarr'
    """
    text = str(os.fspath(address))
    scheme, found, rest = text.partition("://")
    if is_remote(text):
        bucket, *keys = rest.split("/")
        if not bucket:
            raise ValueError(f"{text} names no bucket: write {scheme}://BUCKET/NAME")
        return RemoteLocation(f"{_SCHEMES[scheme.lower()]}://{bucket}", "/".join(filter(None, keys)))
    if scheme == "file":
        return LocalLocation(Path(url2pathname(urlsplit(text).path)))
    if found:
        raise ValueError(f"{text} is neither a path nor an address in an object store (s3://, gs://, az://)")
    return LocalLocation(Path(text).expanduser().absolute())


@dataclass(frozen=True)
class LocalLocation:
    """A folder as a `Location`.

    Parameters
    ----------
    path : Path
        Absolute. It need not exist.
    """

    path: Path

    @property
    def address(self) -> str:
        """See `Location.address`."""
        return str(self.path)

    def read(self, key: str) -> bytes | None:
        """See `Location.read`."""
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def read_part(self, key: str, begin: int, end: int) -> bytes:
        """See `Location.read_part`."""
        with (self.path / key).open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    def write(self, key: str, data: bytes) -> None:
        """See `Location.write`."""
        target = self.path / key
        with _partial(target, data) as partial:
            partial.replace(target)

    def create(self, key: str, data: bytes) -> bool:
        """See `Location.create`. Where the file system knows no links, a reader may see it before it is whole."""
        target = self.path / key
        # On a full disk too there may be one already.
        if os.path.lexists(target):
            return False
        try:
            with _partial(target, data) as partial:
                _link(partial, target, data)
        except FileExistsError:
            return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """See `Location.delete`."""
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                (self.path / key).unlink()

    def names(self, prefix: str = "") -> Iterator[str]:
        """See `Location.names`. A link is a name, wherever it leads."""
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

    def clear(self, prefix: str = "") -> None:
        """See `Location.clear`."""
        folder = self.path / prefix
        if folder.is_symlink() and folder.is_dir():
            folder.unlink()
        while folder.is_dir():
            # Another may be clearing it too.
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)

    def at(self, name: str) -> LocalLocation:
        """See `Location.at`."""
        return LocalLocation(self.path / name)

    def zarr(self, name: str = "") -> Path:
        """See `Location.zarr`."""
        return self.path / name


@contextmanager
def _partial(target: Path, data: bytes) -> Iterator[Path]:
    """Write what a file shall hold next to it, and take it away again if it is not moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            # What is empty cannot be torn by a power cut, and marks are many.
            if data:
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
