"""`dseeds segment`: a volume is cut into supervoxels."""

from __future__ import annotations

from typing import Annotated

import typer

from dseeds.cli import errors
from dseeds.cli.cluster import check_workers, client_at
from dseeds.cli.options import (
    AsJson,
    Bins,
    ChannelAxis,
    Chunks,
    Compactness,
    Features,
    KeepScratch,
    Levels,
    Mask,
    Memory,
    MinSize,
    Overwrite,
    Percentiles,
    Quiet,
    Region,
    Resume,
    Scheduler,
    Scratch,
    Segments,
    Shards,
    Sources,
    Spacing,
    Step,
    TlsCaFile,
    TlsCert,
    TlsKey,
    Volume,
    Weights,
    Window,
    Workers,
    asked,
    one_or_several,
)
from dseeds.cli.progress import following

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds segment ct.nii.gz labels.nii.gz --step 8mm --window abdomen\n\n"
    "dseeds segment brain.ome.zarr labels.zarr --n-segments 5000 --workers 4 --memory 2GiB\n\n"
    "dseeds segment t1.nii.gz t2.nii.gz flair.nii.gz labels.nii.gz --mask brain.nii.gz --min-size 20\n\n"
    "dseeds segment embryo.zarr labels.zarr --step 4,16,16 --scheduler tcp://10.0.0.1:8786\n\n"
    "dseeds segment s3://lab/embryo.zarr s3://lab/labels.zarr --scratch s3://fast/tmp --resume"
)


def segment(
    context: typer.Context,
    source: Sources,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Where the labels go: a new OME-Zarr group, or .nii or .nii.gz where the source is NIfTI.",
        ),
    ],
    step: Step = None,
    n_segments: Segments = None,
    spacing: Spacing = None,
    mask: Mask = None,
    window: Window = None,
    percentiles: Percentiles = None,
    bins: Bins = None,
    compactness: Compactness = None,
    min_size: MinSize = None,
    levels: Levels = None,
    features: Features = False,
    volume: Volume = None,
    channel_axis: ChannelAxis = None,
    weights: Weights = None,
    region: Region = None,
    workers: Workers = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    tls_ca_file: TlsCaFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    scratch: Scratch = None,
    keep_scratch: KeepScratch = False,
    resume: Resume = False,
    chunks: Chunks = None,
    shards: Shards = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut a volume into supervoxels, out of core, on all cores or on a Dask cluster.

    The labels are the same, bit for bit, with any number of workers and any amount of memory.
    """
    options = {
        **asked(context),
        "memory": memory,
        "workers": workers,
        "keep_scratch": keep_scratch,
        "resume": resume,
        "overwrite": overwrite,
    }
    check_workers(workers, scheduler)

    from dseeds.engine import segment as run

    try:
        with client_at(scheduler, tls_ca_file, tls_cert, tls_key) as client, following(quiet) as progress:
            report = run(one_or_several(source), target, client=client, progress=progress, **options)
    except KeyboardInterrupt as stop:
        # Here, for what comes of it further up has no notes.
        errors.say_notes(stop)
        raise
    if as_json:
        print(report.to_json())
    elif not quiet:
        print(report)
