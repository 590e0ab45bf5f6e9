"""Access to prefixes in the buckets of object stores, through obstore.

Each process takes the endpoint and the credentials from its environment at every call: they never travel to workers,
and renewed credentials take effect at once.
"""

from __future__ import annotations

import math
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from dseeds.core.lazy_module import LazyModule
from dseeds.core.optional import import_optional

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = LazyModule("asyncio")

_T = TypeVar("_T")

_SCHEMES = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}
# Seconds for which a failing store is asked again before it is given up; the environment variable overrides them. A
# store that does not answer at all takes two read timeouts. Transfers may take longer as long as bytes arrive.
PATIENCE, _DEFAULT_PATIENCE = "DSEEDS_STORE_PATIENCE", 45.0
_CLIENT = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=25),
    "timeout": timedelta(minutes=10),
}
_BACKOFF = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2}
# Attempts at a request that obstore itself does not repeat.
_ATTEMPTS = 8
# Larger objects are uploaded in parts. Parts of a writer that dies stay in the store, invisible but billed.
_PART = 64 << 20
_DELETE_BATCH = 10_000
_NO_BUCKET = re.compile("NoSuchBucket|bucket does not exist|ContainerNotFound")
# The last two are metadata services of clouds, which are asked for credentials when there are no others.
_REFUSED = re.compile(
    "401 Unauthorized|403 Forbidden|AccessKeyId|AuthenticationFailed|ExpiredToken|InvalidToken|TokenRefreshRequired|"
    r"169\.254\.169\.254|metadata\.google\.internal"
)
_INTERRUPTED = re.compile("HTTP error|response body|NoSuchUpload")


def get_object(store: Any, path: str) -> bytes | None:
    """Read an object; return None if it does not exist."""
    try:
        return bytes(_retry(lambda: _obstore().get(store, path).bytes()))
    except FileNotFoundError as error:
        if _is_missing_bucket(error):
            raise
        return None


def get_range(store: Any, path: str, begin: int, end: int) -> bytes:
    """Read the bytes of an object from `begin` up to `end`; raise FileNotFoundError if it does not exist."""
    return bytes(_retry(lambda: _obstore().get_range(store, path, start=begin, end=end)))


async def put_object_async(store: Any, path: str, data: Any) -> None:
    """Write or replace an object."""
    await retry_async(lambda: _obstore().put_async(store, path, data, chunk_size=_PART))


def put_object(store: Any, path: str, data: bytes) -> None:
    """Write or replace an object."""
    _retry(lambda: _obstore().put(store, path, data, chunk_size=_PART))


def create_object(store: Any, path: str, data: bytes) -> bool:
    """Write an object unless it exists, and return whether this call wrote it."""
    obstore, writer = _obstore(), uuid.uuid4().hex
    try:
        _retry(lambda: obstore.put(store, path, data, mode="create", attributes={"writer": writer}))
    except obstore.exceptions.AlreadyExistsError:
        # It may be ours, if the response was lost and the request was repeated.
        with suppress(FileNotFoundError):
            return bool(_retry(lambda: obstore.get(store, path).attributes).get("writer") == writer)
        return False
    return True


def delete_objects(store: Any, paths: Sequence[str]) -> None:
    """Remove objects, ignoring missing ones."""
    for start in range(0, len(paths), _DELETE_BATCH):
        batch = list(paths[start : start + _DELETE_BATCH])
        try:
            _retry(partial(_obstore().delete, store, batch))
        except FileNotFoundError as error:
            if _is_missing_bucket(error):
                raise
            # Some stores stop at the first missing object.
            with ThreadPoolExecutor(16) as threads:
                list(threads.map(lambda path: _delete_object(store, path), batch))


def _delete_object(store: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        _retry(lambda: _obstore().delete(store, path))


def list_objects(store: Any, prefix: str) -> list[tuple[str, int, str]]:
    """List the objects below a prefix: paths, sizes, and tags that change with the content."""

    def entries() -> list[tuple[str, int, str]]:
        pages = _obstore().list(store, prefix or None, chunk_size=1000)
        return [
            (entry["path"], entry["size"], entry["e_tag"] or entry["last_modified"].isoformat())
            for page in pages
            for entry in page
        ]

    with describe_store_error(url_of(store, prefix) or prefix):
        return _retry(entries)


def url_of(store: Any, path: str) -> str | None:
    """Return the URL of a path in a store of obstore, or None if the kind of store has no URLs."""
    scheme = _SCHEMES.get(type(store).__name__)
    if scheme is None:
        return None
    bucket = store.config.get("bucket") or store.config.get("container_name")
    return "/".join(filter(None, (f"{scheme}://{bucket}", str(store.prefix or "").strip("/"), path)))


def join_key(prefix: str, key: str) -> str:
    """Join a prefix and a key, either of which may be empty.

    >>> join_key("a/b", "c"), join_key("", "c")
    ('a/b/c', 'c')
    """
    return "/".join(filter(None, (prefix, key)))


@contextmanager
def describe_store_error(address: str) -> Iterator[None]:
    """Turn exceptions of obstore into operating system errors with a readable message.

    FileNotFoundError: the bucket does not exist. PermissionError: credentials are missing, wrong or expired.
    ConnectionError: the store cannot be reached, or fails repeatedly.
    """
    try:
        yield
    except Exception as error:
        readable = _readable_error(error, address)
        if readable is None:
            raise
        raise readable from error


def _readable_error(error: Exception, address: str) -> OSError | None:
    if _is_missing_bucket(error):
        return FileNotFoundError(f"the bucket of {address} does not exist: check its name, or create it")
    if type(error).__module__ != "obstore.exceptions":
        return None
    text = _message(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    # The final cause follows the last dash; the store's own response can fill pages.
    reason = code[1] if code else " ".join(text.partition("<")[0].rpartition(" - ")[2].split()).rstrip(" :")
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or _REFUSED.search(text):
        return PermissionError(
            f"access to {address} was refused ({reason}): renew the credentials, or have access granted to them; "
            f"a run that this ended can then be resumed"
        )
    return ConnectionError(
        f"{address} cannot be used ({reason}): check its address and endpoint, or wait until the store works again; "
        f"a run that this ended can then be resumed"
    )


def _is_missing_bucket(error: Exception) -> bool:
    relevant = isinstance(error, FileNotFoundError) or type(error).__module__ == "obstore.exceptions"
    return relevant and _NO_BUCKET.search(_message(error)) is not None


def _message(error: Exception) -> str:
    return str(error).partition("\n\nDebug source")[0]


class _Attempts:
    """The attempts at an idempotent request whose response was interrupted, which obstore does not repeat."""

    def __init__(self) -> None:
        self.pause = 0.0
        self._remaining = _ATTEMPTS
        self._deadline = time.monotonic() + _patience(dict(_environment())) / 2

    def allow_another(self, error: Exception) -> bool:
        self._remaining -= 1
        self.pause += 0.1
        interrupted = _INTERRUPTED.search(_message(error)) is not None
        return interrupted and self._remaining > 0 and time.monotonic() < self._deadline


def _retry(call: Callable[[], _T]) -> _T:
    attempts = _Attempts()
    while True:
        try:
            return call()
        except Exception as error:
            if not attempts.allow_another(error):
                raise
        time.sleep(attempts.pause)


async def retry_async(call: Callable[[], Awaitable[_T]]) -> _T:
    """Await the result of an idempotent request, which is repeated if its response is interrupted."""
    attempts = _Attempts()
    while True:
        try:
            return await call()
        except Exception as error:
            if not attempts.allow_another(error):
                raise
        await asyncio.sleep(attempts.pause)


def _obstore() -> Any:
    return import_optional("obstore", "an object store", "dseeds[remote]")


def _environment() -> tuple[tuple[str, str], ...]:
    """Return the environment variables that configure a store."""
    prefixes = ("AWS_", "AZURE_", "GOOGLE_", PATIENCE)
    return tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith(prefixes)))


def _patience(environment: Mapping[str, str]) -> float:
    """Return for how many seconds requests to a failing store are repeated."""
    text = environment.get(PATIENCE) or _DEFAULT_PATIENCE
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ValueError(f"{PATIENCE} is {text!r}: it must be a number of seconds, such as 45.")


def connect_prefix(bucket: str, prefix: str = "") -> Any:
    """Return a store of obstore for a prefix in a bucket; no request is sent yet."""
    return _connect(join_key(bucket, quote(prefix)), _environment())


@lru_cache(maxsize=256)
def _connect(url: str, environment: tuple[tuple[str, str], ...]) -> Any:
    """Open a store, whose connections the whole process shares."""
    _obstore()
    from obstore.store import from_url

    variables = dict(environment)
    # Explicit client options keep obstore from reading these variables itself.
    allow_http = any(
        variables.get(f"{cloud}_ALLOW_HTTP", "").lower() in ("1", "true") for cloud in ("AWS", "AZURE", "GOOGLE")
    ) or any(value.startswith("http://") for value in variables.values())
    client: Any = {**_CLIENT, "allow_http": allow_http}
    retry: Any = {"max_retries": 1000, "retry_timeout": timedelta(seconds=_patience(variables)), "backoff": _BACKOFF}
    options = {"credential_provider": _credential_provider(environment)} if url.startswith("s3:") else {}
    with describe_store_error(url):
        return from_url(url, client_options=client, retry_config=retry, **options)


@lru_cache(maxsize=1)
def _credential_provider(environment: tuple[tuple[str, str], ...]) -> Any:
    """Return boto3's provider, which knows profiles and single sign-on, or None if the environment has credentials."""
    variables = dict(environment)
    if "AWS_ACCESS_KEY_ID" in variables or variables.get("AWS_SKIP_SIGNATURE") or find_spec("boto3") is None:
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        # boto3 hands out credentials that stay valid for at least ten minutes.
        return Boto3CredentialProvider(ttl=timedelta(minutes=10))
    except Exception as error:
        raise PermissionError(
            f"no credentials for s3:// addresses ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            f"AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for public buckets"
        ) from error
