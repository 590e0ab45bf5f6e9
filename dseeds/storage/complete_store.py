"""A Zarr store in which nothing may be missing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from typing_extensions import override
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore


class CompleteStore(WrapperStore[Store]):
    """A store that raises for missing or empty chunks, which Zarr alone reads as zeros.

    Zarr has several ways to read a chunk; which one it takes depends on its version and on the codec pipeline that the
    user has configured.
    """

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return _require(key, await super().get(key, prototype, byte_range))

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a chunk without the event loop: what the fused pipeline of Zarr 3.3 calls."""
        store: Any = self._store
        return _require(key, store.get_sync(key, prototype=prototype, byte_range=byte_range))

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], **options: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield parts of a shard, which may have gone since its index was read: what Zarr 3.2 calls."""
        store: Any = self._store
        try:
            async for parts in store.get_ranges(key, byte_ranges, **options):
                yield parts
        except BaseExceptionGroup as error:
            if error.subgroup(FileNotFoundError) is None:
                raise
            _require(key, None)


def _require(key: str, value: Buffer | None) -> Buffer | None:
    """Return a value; raise a LookupError if it is that of a chunk, and missing or empty."""
    if not value and key != "zarr.json":
        raise LookupError(f"{key} is missing or empty")
    return value
