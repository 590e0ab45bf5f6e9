"""The client of the cluster to use: what the user passes, or Dask's current client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dseeds.parallel.unguarded_script import end_importing_worker

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

    # What users may pass as `client`.
    ClientLike = Client | Cluster | str | Path

CONNECT_SECONDS = 15
# What Dask calls the scheduler of its current client.
_DISTRIBUTED = ("dask.distributed", "distributed")
# Why something asynchronous cannot be used.
_BLOCKS = (
    "and this call would block its event loop: make the call in a thread, with await asyncio.to_thread(...), or pass "
    "the address of the scheduler or a client that is not asynchronous."
)


@contextmanager
def open_client(client: Any, *, may_use_current: bool = True) -> Iterator[Client | None]:
    """Yield a client of the cluster that the user passes: a client, a cluster, or the address or file of a scheduler.

    If None is passed, this is Dask's current client, which is announced on standard error, or None if there is none, if
    `may_use_current` is false, or within a Dask task. A client that is made here is closed at the end.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If it is closed, or asynchronous and of this thread's own event loop.
    ConnectionError, FileNotFoundError
        If no scheduler answers, or there is no such file.
    """
    end_importing_worker()
    if client is None:
        current = _current_client() if may_use_current else None
        if current is not None:
            print(f"Using the current Dask client: {_address(current)}", file=sys.stderr, flush=True)
        yield current
        return
    # Here, not above: Dask takes its time to import.
    from distributed.client import Client

    with ExitStack() as stack:
        if not isinstance(client, Client):
            client = stack.enter_context(_connect(client))
        _check_client(client)
        stack.enter_context(thread_given_back(client))
        yield client


def connect_to_scheduler(address: str, tls_files: dict[str, str] | None = None) -> Client:
    """Connect to the scheduler at an address, with files for TLS by the name of Dask's setting."""
    import ssl

    from distributed import Client, Security
    from distributed.comm.core import CommClosedError

    try:
        # Without files, Dask's own configuration decides, which may name certificates.
        security = Security(require_encryption=True, **tls_files) if tls_files else None
        # Not Dask's default, which a client that cannot connect would leave behind.
        return Client(address, timeout=CONNECT_SECONDS, security=security, set_as_default=False)
    except TypeError as error:
        # Dask raises this if an address at tls:// comes without certificates.
        raise ValueError(
            f"{address} requires certificates: pass --tls-ca-file, --tls-cert and --tls-key, or set them in Dask's "
            "configuration"
        ) from error
    except (FileNotFoundError, PermissionError, ssl.SSLError) as error:
        raise ValueError(f"the certificates or the key for {address} cannot be used: {error}") from error
    except (CommClosedError, RuntimeError, OSError, ValueError) as error:
        # Tornado raises a ValueError if the connection breaks during the TLS handshake.
        if isinstance(error, CommClosedError | RuntimeError) or "SSL" in str(error):
            raise ConnectionError(
                f"the connection to {address} failed, most likely because the certificates do not belong together or "
                f"only one side uses TLS: {error.__cause__ or error}"
            ) from error
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}") from error


@contextmanager
def thread_given_back(client: Client) -> Iterator[None]:
    """Release this thread's place for other tasks in the meantime if it runs a task of the client's own cluster.

    The task would otherwise wait for ever for others that have no thread.
    """
    from distributed import get_worker, rejoin, secede
    from distributed.threadpoolexecutor import thread_state

    try:
        is_own_task = get_worker().scheduler.address == _address(client)
    except ValueError:
        is_own_task = False
    if not is_own_task or not getattr(thread_state, "proceed", False):
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


def _current_client() -> Client | None:
    """Return the client by which Dask would compute here, if it can be used."""
    # If there is a client, it is imported already.
    if "distributed" not in sys.modules:
        return None
    from dask import config
    from distributed import get_worker
    from distributed.client import Client

    try:
        get_worker()
    except ValueError:
        pass
    else:
        # The task is on the cluster already, and has a part of it to itself.
        return None
    scheduler = config.get("scheduler", None)
    if isinstance(scheduler, Client):
        current = scheduler
    elif scheduler is None or (isinstance(scheduler, str) and scheduler.lower() in _DISTRIBUTED):
        try:
            current = Client.current()
        except ValueError:
            return None
    else:
        # Dask itself uses another scheduler.
        return None
    try:
        _check_client(current)
    except (ValueError, ConnectionError) as error:
        if current.status != "closed":
            print(f"The current Dask client is not used, because {error}", file=sys.stderr, flush=True)
        return None
    return current


def _check_client(client: Client) -> None:
    """Raise an error if a client cannot be used from this thread."""
    if client.status == "closed":
        raise ValueError("the client is closed: pass an open one, such as Client(ADDRESS).")
    if client.asynchronous:
        raise ValueError(f"the client is asynchronous, {_BLOCKS}")
    if client.status != "running":
        raise ConnectionError("the client has no connection to its scheduler: pass one of a cluster that is running.")


def _address(client: Client) -> str:
    """Return the address of a client's scheduler."""
    return "" if client.scheduler is None else str(client.scheduler.address)


def _connect(cluster: Any) -> Client:
    """Return a client of a cluster, which is given by its object, its address or the file of its scheduler."""
    from distributed.client import Client

    if isinstance(cluster, str | Path):
        if not str(cluster).endswith(".json"):
            return connect_to_scheduler(str(cluster))
        if not Path(cluster).is_file():
            raise FileNotFoundError(f"the scheduler file {cluster} does not exist.")
        return Client(scheduler_file=str(cluster), timeout=CONNECT_SECONDS, set_as_default=False)
    kind = type(cluster).__name__
    if not hasattr(cluster, "scheduler_address"):
        raise TypeError(f"client must be a distributed.Client, a cluster or the address of a scheduler, not {kind}.")
    if getattr(cluster, "asynchronous", False):
        raise ValueError(f"the {kind} is asynchronous, {_BLOCKS}")
    if (status := getattr(getattr(cluster, "status", None), "name", "running")) != "running":
        raise ValueError(f"the {kind} is {status}: pass one that is running.")
    return Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
