"""The Dask cluster that `--scheduler` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 15


def check_workers(workers: int | None, scheduler: str | None) -> None:
    """Refuse workers of this machine beside a cluster that has its own."""
    if scheduler and workers is not None:
        raise typer.BadParameter("it is for this machine, and cannot go with --scheduler", param_hint="'--workers'")


@contextmanager
def client_at(
    address: str | None, tls_ca_file: Path | None = None, tls_cert: Path | None = None, tls_key: Path | None = None
) -> Iterator[Client | None]:
    """Lend a client of the cluster at an address, or None.

    The files of TLS that are not given are those of Dask's configuration.
    """
    files = {"tls_ca_file": tls_ca_file, "tls_client_cert": tls_cert, "tls_client_key": tls_key}
    given = {name: str(path) for name, path in files.items() if path}
    if given and not (address or "").startswith("tls://"):
        raise typer.BadParameter(
            "it needs a --scheduler at a tls:// address", param_hint="'--tls-ca-file' / '--tls-cert' / '--tls-key'"
        )
    if address is None:
        yield None
    else:
        with _connect(address, given) as client:
            yield client


def _connect(address: str, files: dict[str, str]) -> Client:
    import ssl

    from distributed import Client, Security
    from distributed.comm.core import CommClosedError

    try:
        # Without files the choice is Dask's, whose configuration may name what finds them.
        security = Security(require_encryption=True, **files) if files else None
        return Client(address, timeout=CONNECT_SECONDS, security=security)
    except TypeError as error:
        # Dask's way to say so.
        raise ValueError(
            f"{address} is reached with certificates: give --tls-ca-file, --tls-cert and --tls-key, or set them in "
            "Dask's configuration"
        ) from error
    except (FileNotFoundError, PermissionError, ssl.SSLError) as error:
        raise ValueError(f"the certificates or the key for {address} cannot be used: {error}") from error
    except (CommClosedError, RuntimeError, OSError, ValueError) as error:
        # Tornado's word for a connection that breaks off while TLS begins is a ValueError.
        if isinstance(error, CommClosedError | RuntimeError) or "SSL" in str(error):
            raise ConnectionError(
                f"the connection to {address} failed, most likely because the certificates do not belong together or "
                f"only one side uses TLS: {error.__cause__ or error}"
            ) from error
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}") from error
