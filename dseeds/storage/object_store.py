"""Prefixes of buckets in object stores, reached by obstore.

The endpoint and the credentials are those that the environment of each process names at the time: nothing of them
travels to workers, and who renews them is heard.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import quote

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from dseeds.core.optional import import_optional

T = TypeVar("T")

_CLASSES = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}
# A store that errs or dawdles now and then is asked again, one that is dead is given up: how long that takes in seconds
# may be set in the environment, for some prefer to wait for a store that is down. A silent one is waited for twice. A
# request as a whole may take longer, as long as bytes arrive.
PATIENCE, _PATIENCE = "DSEEDS_STORE_PATIENCE", 45.0
_CLIENT = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=25),
    "timeout": timedelta(minutes=10),
}
_BACKOFF = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2}
# How often what obstore does not repeat is begun anew.
_ATTEMPTS = 8
# In one request up to this size: of many parts, those of a writer that dies would stay, unseen but paid for.
_PART = 64 << 20
_BATCH = 10_000
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
_REFUSED = (
    "401 Unauthorized",
    "403 Forbidden",
    "AccessKeyId",
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    # Where a machine in the cloud is told its own credentials, which are looked for last.
    "169.254.169.254",
    "metadata.google.internal",
)
_BROKEN_OFF = ("HTTP error", "response body", "NoSuchUpload")


@dataclass(frozen=True)
class RemoteLocation:
    """A prefix of a bucket as a `Place`. It pickles, without credentials.

    Parameters
    ----------
    bucket : str
        The bucket's URL.
    prefix : str
        What all keys begin with, without slashes at its ends; may be empty.
    """

    bucket: str
    prefix: str = ""

    @property
    def address(self) -> str:
        """See `Place.address`."""
        return _joined(self.bucket, self.prefix)

    def read(self, key: str) -> bytes | None:
        """See `Place.read`."""
        obstore = _obstore()
        with describe_store_error(self.address):
            try:
                return bytes(_persist(lambda: obstore.get(self._store, self._key(key)).bytes()))
            except FileNotFoundError as error:
                if _is_of_bucket(error):
                    raise
                return None

    def read_part(self, key: str, begin: int, end: int) -> bytes:
        """See `Place.read_part`."""
        with describe_store_error(self.address):
            return bytes(_persist(lambda: _obstore().get_range(self._store, self._key(key), start=begin, end=end)))

    def write(self, key: str, data: bytes) -> None:
        """See `Place.write`."""
        with describe_store_error(self.address):
            _persist(lambda: _obstore().put(self._store, self._key(key), data, chunk_size=_PART))

    def create(self, key: str, data: bytes) -> bool:
        """See `Place.create`."""
        obstore, where, name = _obstore(), self._key(key), uuid.uuid4().hex
        with describe_store_error(self.address):
            try:
                _persist(lambda: obstore.put(self._store, where, data, mode="create", attributes={"writer": name}))
            except obstore.exceptions.AlreadyExistsError:
                # Perhaps it is ours: the answer was lost, and the request made again.
                with suppress(FileNotFoundError):
                    return bool(_persist(lambda: obstore.get(self._store, where).attributes).get("writer") == name)
                return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """See `Place.delete`."""
        doomed = [self._key(key) for key in keys]
        with describe_store_error(self.address):
            for start in range(0, len(doomed), _BATCH):
                _delete(self._store, doomed[start : start + _BATCH])

    def names(self, prefix: str = "") -> Iterator[str]:
        """See `Place.names`."""
        found = [name for name, *_ in list_objects(self._store, self._key(prefix))]
        skipped = len(self.prefix) + 1 if self.prefix else 0
        return (path[skipped:] for path in found)

    def clear(self, prefix: str = "") -> None:
        """See `Place.clear`."""
        self.delete(self.names(prefix))

    def at(self, name: str) -> RemoteLocation:
        """See `Place.at`."""
        return RemoteLocation(self.bucket, self._key(name))

    def zarr(self, name: str = "") -> PrefixStore:
        """See `Place.zarr`."""
        return PrefixStore(self.bucket, self._key(name))

    @property
    def _store(self) -> Any:
        return _connect(self.bucket, _environment())

    def _key(self, key: str) -> str:
        return _joined(self.prefix, key)


class PrefixStore(ObjectStore[Any]):
    """A prefix of a bucket as a store of Zarr, whose errors are worded, and which is opened anew by who unpickles it.

    Zarr makes groups of all that an array lies within up to the root of its store, so that should be the array.

    Parameters
    ----------
    bucket, prefix : str
        See `RemoteLocation`.
    read_only : bool
        Whether to refuse to write.
    """

    def __init__(self, bucket: str, prefix: str, read_only: bool = False) -> None:
        self.bucket = bucket
        self.prefix = prefix
        super().__init__(self.store, read_only=read_only)

    @property
    def store(self) -> Any:
        """The store of obstore's, as the environment has it now: who opened an array may have new credentials since."""
        return _connect(_joined(self.bucket, quote(self.prefix)), _environment())

    @store.setter
    def store(self, _: Any) -> None:
        """Take no other."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bucket, self.prefix, self.read_only)

    def __str__(self) -> str:
        return _joined(self.bucket, self.prefix)

    def with_read_only(self, read_only: bool = False) -> PrefixStore:
        """See `Store.with_read_only`."""
        return PrefixStore(self.bucket, self.prefix, read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See `Store.get`."""
        with describe_store_error(str(self)):
            return await _persist_there(lambda: super(PrefixStore, self).get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """See `Store.set`."""
        self._check_writable()
        data = value.as_buffer_like()
        with describe_store_error(str(self)):
            await _persist_there(lambda: _obstore().put_async(self.store, key, data, chunk_size=_PART))

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        with describe_store_error(str(self)):
            await _persist_there(lambda: super(PrefixStore, self).delete(key))


def url_of(store: Any, path: str) -> str | None:
    """Give the URL of a path in a store of obstore's, None where it is of no kind that we know URLs of."""
    scheme = _CLASSES.get(type(store).__name__)
    if scheme is None:
        return None
    bucket = store.config.get("bucket") or store.config.get("container_name")
    return "/".join(filter(None, (f"{scheme}://{bucket}", str(store.prefix or "").strip("/"), path)))


def list_objects(store: Any, prefix: str) -> list[tuple[str, int, str]]:
    """List what lies below a prefix in a store of obstore's: names, sizes, and tags that change with the content."""

    def entries() -> list[tuple[str, int, str]]:
        pages = _obstore().list(store, prefix or None, chunk_size=1000)
        return [
            (found["path"], found["size"], found["e_tag"] or found["last_modified"].isoformat())
            for page in pages
            for found in page
        ]

    with describe_store_error(url_of(store, prefix) or prefix):
        return _persist(entries)


@contextmanager
def describe_store_error(address: str) -> Iterator[None]:
    """Turn what obstore raises into an error of the system with a sentence of its own.

    Parameters
    ----------
    address : str
        What the sentence is about. Credentials are not part of an address.

    Raises
    ------
    FileNotFoundError
        If the bucket does not exist.
    PermissionError
        If the credentials have expired, are wrong, missing, or not enough.
    ConnectionError
        If the store was not reached, or failed time and again.
    """
    try:
        yield
    except Exception as error:
        plain = _plain(error, address)
        if plain is None:
            raise
        raise plain from error


def _plain(error: Exception, address: str) -> OSError | None:
    if _is_of_bucket(error):
        return FileNotFoundError(f"the bucket of {address} does not exist: check its name, or create it")
    if type(error).__module__ != "obstore.exceptions":
        return None
    text = _text(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    # Behind the dash is what came of it in the end; the store's own words are pages.
    reason = code[1] if code else " ".join(text.partition("<")[0].rpartition(" - ")[2].split()).rstrip(" :")
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or any(w in text for w in _REFUSED):
        return PermissionError(
            f"access to {address} was refused ({reason}): renew the credentials, or get them the right to it; "
            f"a run that this ended can then be resumed"
        )
    return ConnectionError(
        f"{address} cannot be used ({reason}): check its address and endpoint, or wait until the store is well; "
        f"a run that this ended can then be resumed"
    )


def _is_of_bucket(error: Exception) -> bool:
    ours = isinstance(error, FileNotFoundError) or type(error).__module__ == "obstore.exceptions"
    return ours and any(word in _text(error) for word in _NO_BUCKET)


def _text(error: Exception) -> str:
    return str(error).partition("\n\nDebug source")[0]


class _Patience:
    """When to begin anew what obstore does not: a request whose answer broke off.

    It must be one that may be made twice.
    """

    def __init__(self) -> None:
        self.pause = 0.0
        self._left = _ATTEMPTS
        self._end = time.monotonic() + _patience(dict(_environment())) / 2

    def again(self, error: Exception) -> bool:
        self._left -= 1
        self.pause += 0.1
        passing = any(words in _text(error) for words in _BROKEN_OFF)
        return passing and self._left > 0 and time.monotonic() < self._end


def _persist(call: Callable[[], T]) -> T:
    patience = _Patience()
    while True:
        try:
            return call()
        except Exception as error:
            if not patience.again(error):
                raise
        time.sleep(patience.pause)


async def _persist_there(call: Callable[[], Awaitable[T]]) -> T:
    patience = _Patience()
    while True:
        try:
            return await call()
        except Exception as error:
            if not patience.again(error):
                raise
        await asyncio.sleep(patience.pause)


def _delete(store: Any, keys: list[str]) -> None:
    obstore = _obstore()
    try:
        _persist(lambda: obstore.delete(store, keys))
    except FileNotFoundError as error:
        if _is_of_bucket(error):
            raise
        # Some stores stop at the first that is missing.
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda key: _delete_one(store, key), keys))


def _delete_one(store: Any, key: str) -> None:
    with suppress(FileNotFoundError):
        _persist(lambda: _obstore().delete(store, key))


def _joined(prefix: str, key: str) -> str:
    return "/".join(filter(None, (prefix, key)))


def _obstore() -> Any:
    return import_optional("obstore", "an object store", "dseeds[remote]")


def _environment() -> tuple[tuple[str, str], ...]:
    """Find what a store is configured by, apart from its address."""
    prefixes = ("AWS_", "AZURE_", "GOOGLE_", PATIENCE)
    return tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith(prefixes)))


def _patience(environment: Mapping[str, str]) -> float:
    """Tell how many seconds a store that fails is asked again."""
    said = environment.get(PATIENCE) or _PATIENCE
    with suppress(ValueError):
        if 0 < float(said) < math.inf:
            return float(said)
    raise ValueError(f"{PATIENCE} is {said!r}: it must be a number of seconds, such as 45.")


@lru_cache(maxsize=256)
def _connect(url: str, environment: tuple[tuple[str, str], ...]) -> Any:
    """Open a prefix of a bucket; nothing is sent yet. Its connections are shared by the whole process."""
    _obstore()
    from obstore.store import from_url

    known = dict(environment)
    # With options of our own, obstore asks the environment for none.
    allowed = any(known.get(f"{cloud}_ALLOW_HTTP", "").lower() in ("1", "true") for cloud in ("AWS", "AZURE", "GOOGLE"))
    client: Any = {**_CLIENT, "allow_http": allowed or any(value.startswith("http://") for value in known.values())}
    retry: Any = {"max_retries": 1000, "retry_timeout": timedelta(seconds=_patience(known)), "backoff": _BACKOFF}
    more = {"credential_provider": _profile(environment)} if url.startswith("s3:") else {}
    with describe_store_error(url):
        return from_url(url, client_options=client, retry_config=retry, **more)


@lru_cache(maxsize=1)
def _profile(environment: tuple[tuple[str, str], ...]) -> Any:
    """Find credentials in files and by single sign-on, which only boto3 knows of, unless the environment has some."""
    known = dict(environment)
    if "AWS_ACCESS_KEY_ID" in known or known.get("AWS_SKIP_SIGNATURE") or find_spec("boto3") is None:
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        # They are good for ten minutes at least when boto3 hands them out.
        return Boto3CredentialProvider(ttl=timedelta(minutes=10))
    except Exception as error:
        raise PermissionError(
            f"there are no credentials for s3:// addresses ({error}): set AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or AWS_SKIP_SIGNATURE=true where all may read"
        ) from error
