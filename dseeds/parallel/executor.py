"""TODO."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import Client, as_completed

from dseeds.core.progress import Progress
from dseeds.parallel.cluster import Capacity, connect

# Tasks in flight for each thread, and how often Dask tries one again.
IN_FLIGHT, RETRIES = 4, 2


@dataclass(frozen=True)
class Executor:
    """Who does the work.

    Attributes
    ----------
    threads : int
        Threads of this process; 0 for a cluster's workers.
    client : Client or None
        The cluster.
    progress : Progress or None
        Who follows.
    """

    threads: int
    client: Client | None = None
    progress: Progress | None = None

    def each(
        self, stage: str, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], total: int
    ) -> Iterator[Any]:
        """Call a function with each of some arguments, and give what comes of it, in any order.

        Parameters
        ----------
        stage : str
            What this is called on the dashboard and in the progress.
        function : callable
            What pickles, and may be called again.
        calls : iterable of tuple
            The arguments.
        total : int
            How many calls there are.
        """
        if self.progress:
            self.progress.begin(stage, total)
        for result in (
            self._on_cluster(stage, function, iter(calls)) if self.client else self._here(function, iter(calls))
        ):
            if self.progress:
                self.progress.advance(stage)
            yield result
        if self.progress:
            self.progress.end(stage)

    def _here(self, function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        with ThreadPoolExecutor(self.threads) as pool:
            running = {pool.submit(function, *call) for call in itertools.islice(calls, 2 * self.threads)}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    running |= {pool.submit(function, *call) for call in itertools.islice(calls, len(done))}
                    for future in done:
                        yield future.result()
            finally:
                for future in running:
                    future.cancel()

    def _on_cluster(self, stage: str, function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        assert self.client is not None
        # An address would be another client's too, which has other results by that name.
        numbers, own = itertools.count(), uuid.uuid4().hex

        def submit(call: tuple[Any, ...]) -> Any:
            key = f"{stage}-{own}-{next(numbers)}"
            return self.client.submit(function, *call, key=key, pure=False, retries=RETRIES)  # type: ignore[union-attr]

        bound = IN_FLIGHT * max(1, sum(self.client.nthreads().values()))
        running = as_completed([submit(call) for call in itertools.islice(calls, bound)])
        try:
            for future in running:
                result = future.result()
                for call in itertools.islice(calls, 1):
                    running.add(submit(call))
                yield result
        finally:
            self.client.cancel(list(running.futures), force=True)


@contextmanager
def open_executor(
    threads: int, client: Client | None = None, local: Capacity | None = None, progress: Progress | None = None
) -> Iterator[Executor]:
    """Lend who does the work: the client's cluster, a local one that is closed at the end, or this process' threads."""
    if client is None and local is None:
        yield Executor(threads, None, progress)
        return
    with ExitStack() as stack:
        yield Executor(0, stack.enter_context(connect(client, local or Capacity(1, 1, 0, 1), progress)), progress)
