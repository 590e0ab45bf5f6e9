"""`dseeds segment`: a volume is cut into supervoxels."""

from __future__ import annotations

from typing import Annotated

import typer

from dseeds.cli import errors
from dseeds.cli.cluster import check_workers, client_at
from dseeds.cli.options import (
    OUTPUT,
    AsJson,
    Bins,
    ChannelAxis,
    Chunks,
    Compactness,
    Features,
    IntoImage,
    KeepScratch,
    LabelName,
    Level,
    Levels,
    Mask,
    Memory,
    MinSize,
    Overwrite,
    Percentiles,
    Pyramid,
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
    Target,
    TlsCaFile,
    TlsCert,
    TlsKey,
    Volume,
    Weights,
    Window,
    Workers,
    asked,
    places,
)
from dseeds.cli.progress import following

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds segment ct.nii.gz labels.nii.gz --step 8mm --window abdomen\n\n"
    "dseeds segment brain.ome.zarr --into-image --level 1 --step 16\n\n"
    "dseeds segment brain.ome.zarr labels.zarr --n-segments 5000 --workers 4 --memory 2GiB\n\n"
    "dseeds segment t1.nii.gz t2.nii.gz flair.nii.gz labels.nii.gz --mask brain.nii.gz --min-size 20\n\n"
    "dseeds segment embryo.zarr labels.zarr --step 4,16,16 --scheduler tcp://10.0.0.1:8786\n\n"
    "dseeds segment s3://lab/embryo.zarr s3://lab/labels.zarr --scratch s3://fast/tmp --resume"
)


def segment(
    context: typer.Context,
    source: Sources = None,
    target: Target = None,
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
    pyramid: Pyramid = None,
    features: Features = False,
    volume: Volume = None,
    level: Level = None,
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
    into_image: IntoImage = False,
    label_name: LabelName = None,
    overwrite: Overwrite = False,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a page about the run as well, see dseeds report; all labels are read for it.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
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
        "html": html,
    }
    sources, place = places(source, target, into_image, label_name)
    check_workers(workers, scheduler)

    from dseeds.api.segment import segment as run

    try:
        with client_at(scheduler, tls_ca_file, tls_cert, tls_key) as client, following(quiet) as progress:
            report = run(sources, place, client=client, progress=progress, **options)
    except KeyboardInterrupt as stop:
        # Here, for what comes of it further up has no notes.
        errors.say_notes(stop)
        raise
    if as_json:
        print(report.to_json())
    elif not quiet:
        print(report)
