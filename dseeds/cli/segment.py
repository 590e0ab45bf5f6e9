"""`dseeds segment`: a volume is cut into supervoxels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dseeds.cli.cluster import client_at
from dseeds.cli.options import (
    AsJson,
    Compactness,
    Memory,
    Overwrite,
    Quiet,
    Region,
    Scheduler,
    Scratch,
    Segments,
    Spacing,
    Step,
    TlsCaFile,
    TlsCert,
    TlsKey,
    Volume,
    Window,
    Workers,
    numbers,
)
from dseeds.cli.progress import following

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds segment ct.nii.gz labels.nii.gz --step 8mm --window -150,250\n\n"
    "dseeds segment brain.ome.zarr labels.zarr --n-segments 5000 --workers 4 --memory 2GiB\n\n"
    "dseeds segment embryo.zarr labels.zarr --step 4,16,16 --scheduler tcp://10.0.0.1:8786"
)


def segment(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A NIfTI file, or path or URL of a Zarr array or OME-Zarr image.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="Where the labels go: a new OME-Zarr group, or .nii or .nii.gz where the source is NIfTI.",
        ),
    ],
    step: Step = None,
    n_segments: Segments = None,
    spacing: Spacing = None,
    window: Window = None,
    compactness: Compactness = 0.0,
    volume: Volume = None,
    region: Region = None,
    workers: Workers = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    tls_ca_file: TlsCaFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    scratch: Scratch = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut a volume into supervoxels, out of core, on all cores or on a Dask cluster.

    The labels are the same, bit for bit, with any number of workers and any amount of memory.
    """
    voxels = numbers("--region", region, int)
    options: dict[str, Any] = {
        "step": step,
        "n_segments": n_segments,
        "spacing": numbers("--spacing", spacing, float),
        "window": numbers("--window", window, float),
        "compactness": compactness,
        "volume": volume,
        "region": voxels[0] if voxels and len(voxels) == 1 else voxels,
        "memory": memory,
        "workers": workers,
        "scratch": scratch,
        "overwrite": overwrite,
    }
    if scheduler and workers is not None:
        raise typer.BadParameter("it is for this machine, and cannot go with --scheduler", param_hint="'--workers'")

    from dseeds.engine import segment as run

    with client_at(scheduler, tls_ca_file, tls_cert, tls_key) as client, following(quiet) as progress:
        report = run(source, target, client=client, progress=progress, **options)
    if as_json:
        print(report.to_json())
    elif not quiet:
        print(report)
