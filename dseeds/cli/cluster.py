"""The Dask cluster that `--scheduler` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dseeds.cli.options import work_option

if TYPE_CHECKING:
    from distributed import Client

_certificate_option = partial(
    work_option, metavar="FILE", exists=True, dir_okay=False, show_default="from Dask's configuration"
)


@dataclass(frozen=True)
class ClusterOptions:
    """The options that select an existing Dask cluster."""

    scheduler: Annotated[
        str | None,
        work_option(
            metavar="ADDRESS",
            help="Use the Dask cluster at this address, such as tcp://10.0.0.1:8786, and leave it running.",
        ),
    ] = None
    tls_ca_file: Annotated[
        Path | None,
        _certificate_option(
            "--tls-ca-file",
            help="CA certificates (PEM) used to verify a scheduler at a tls:// address.",
        ),
    ] = None
    tls_cert: Annotated[
        Path | None,
        _certificate_option(
            "--tls-cert",
            help="Client certificate (PEM) for a scheduler at a tls:// address.",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        _certificate_option(
            "--tls-key",
            help="Private key (PEM) of --tls-cert, unless that file contains it.",
        ),
    ] = None

    @contextmanager
    def connect(self, workers: int | None = None) -> Iterator[Client | None]:
        """Connect to the cluster while the context lasts; yield None if no scheduler is named.

        `workers` is the option of that name for a local cluster, which excludes `--scheduler`.
        """
        paths = {"tls_ca_file": self.tls_ca_file, "tls_client_cert": self.tls_cert, "tls_client_key": self.tls_key}
        tls_files = {setting: str(path) for setting, path in paths.items() if path}
        if tls_files and not (self.scheduler or "").startswith("tls://"):
            raise typer.BadParameter(
                "they need a --scheduler at a tls:// address", param_hint="'--tls-ca-file' / '--tls-cert' / '--tls-key'"
            )
        if self.scheduler and workers is not None:
            raise typer.BadParameter("local workers cannot be combined with --scheduler", param_hint="'--workers'")
        if self.scheduler is None:
            yield None
        else:
            # Here, not above: Dask takes its time to import.
            from dseeds.parallel.clients import connect_to_scheduler

            with connect_to_scheduler(self.scheduler, tls_files) as client:
                yield client
