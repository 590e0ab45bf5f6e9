"""A Zarr store in which nothing may be missing."""

from __future__ import annotations

from typing_extensions import override
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore


class CompleteStore(WrapperStore[Store]):
    """A store that raises for missing or empty chunks, which Zarr alone reads as zeros."""

    @override
    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        if not value and key != "zarr.json":
            raise LookupError(f"{key} is missing or empty")
        return value
