"""The capacity of the workers of a cluster, and the units in which users state memory."""

from __future__ import annotations

from dataclasses import dataclass

from dseeds.core.checks import is_whole_number
from dseeds.parallel.machine import cpu_count, memory_limit

# Chunks that a worker reads and decodes at once.
READ_AT_ONCE = 4
# The memory of each worker of a local cluster, at least, if the user does not choose it.
LEAST_WORKER_BYTES = 1 << 30


def parse_memory(memory: int | str) -> int:
    """Return an amount of memory in bytes; raise a ValueError unless it is positive.

    >>> parse_memory("2GiB")
    2147483648
    """
    # Here, not above: Dask takes its time to import.
    from dask.utils import parse_bytes

    try:
        number = int(memory) if is_whole_number(memory) else int(parse_bytes(memory)) * bool(memory)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        number = 0
    if number <= 0:
        raise ValueError(f"memory must be a number of bytes such as 2GiB, got {memory!r}.")
    return number


@dataclass(frozen=True)
class Capacity:
    """The capacity of a cluster's workers."""

    workers: int
    # Of all workers.
    threads: int
    # Bytes of the smallest worker.
    memory: int
    # Threads of the worker with the most.
    threads_per_worker: int


def local_capacity(workers: int | None, memory: int | None) -> Capacity:
    """Choose the capacity of a local cluster: by default a worker per core, but no more than can have 1 GiB each."""
    if workers is not None and (workers < 1 or int(workers) != workers):
        raise ValueError(f"workers must be at least 1 and whole, got {workers!r}.")
    limit = memory_limit()
    number = int(workers or max(1, min(cpu_count(), limit // (memory or LEAST_WORKER_BYTES))))
    return Capacity(number, number, memory or int(0.9 * limit / number), 1)
