"""The computing resources that a user gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dseeds.parallel.capacity import Capacity, local_capacity, parse_memory

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Resources:
    """The computing resources that the user gives."""

    # The memory that one worker may use, or this process if there are no workers.
    memory: int | str | None = None
    workers: int | None = None
    # None for a local cluster.
    client: Client | None = None

    def capacity(self) -> Capacity:
        """Return the capacity of the workers; a local cluster need not exist yet."""
        memory = None if self.memory is None else parse_memory(self.memory)
        if self.client is None:
            return local_capacity(self.workers, memory)
        if self.workers is not None:
            raise ValueError("workers= starts a local cluster, so it cannot be combined with client=.")
        # Here, not above: Dask takes its time to import.
        from dseeds.parallel.cluster import cluster_capacity

        capacity = cluster_capacity(self.client)
        return replace(capacity, memory=min(memory or capacity.memory, capacity.memory))
