"""Prefixes in the buckets of object stores as stores of Zarr."""

from __future__ import annotations

from typing import Any

from typing_extensions import override
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from dseeds.storage.object_store import connect_prefix, describe_store_error, join_key, put_object_async, retry_async


class PrefixStore(ObjectStore[Any]):
    """A prefix of a bucket as a store of Zarr, with readable errors; it reconnects when it is unpickled.

    The prefix should be that of an array: Zarr creates groups at all levels from an array up to its store's root.
    """

    def __init__(self, bucket: str, prefix: str, read_only: bool = False) -> None:
        self.bucket = bucket
        self.prefix = prefix
        super().__init__(self.store, read_only=read_only)

    @property
    def store(self) -> Any:
        """The store of obstore, connected with the credentials that the environment has now."""
        return connect_prefix(self.bucket, self.prefix)

    @store.setter
    def store(self, _: Any) -> None:
        """Ignore the store that the base class sets."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bucket, self.prefix, self.read_only)

    def __str__(self) -> str:
        return join_key(self.bucket, self.prefix)

    @override
    def with_read_only(self, read_only: bool = False) -> PrefixStore:
        return PrefixStore(self.bucket, self.prefix, read_only)

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with describe_store_error(str(self)):
            return await retry_async(lambda: super(PrefixStore, self).get(key, prototype, byte_range))

    @override
    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        data = value.as_buffer_like()
        with describe_store_error(str(self)):
            await put_object_async(self.store, key, data)

    @override
    async def delete(self, key: str) -> None:
        with describe_store_error(str(self)):
            await retry_async(lambda: super(PrefixStore, self).delete(key))
