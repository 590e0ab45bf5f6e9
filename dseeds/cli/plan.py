"""`dseeds plan`: what a run will take."""

from __future__ import annotations

from typing import Annotated

import typer

from dseeds.cli.cluster import check_workers, client_at
from dseeds.cli.options import (
    WORK,
    AsJson,
    Bins,
    ChannelAxis,
    Chunks,
    Compactness,
    Features,
    IntoImage,
    LabelName,
    Level,
    Levels,
    Mask,
    Memory,
    MinSize,
    Overwrite,
    Percentiles,
    Pyramid,
    Region,
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

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds plan embryo.zarr labels.zarr --step 16 --workers 4 --memory 2GiB\n\n"
    "dseeds plan embryo.zarr labels.zarr --no-calibrate --json | jq .scratch_bytes"
)


def plan(
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
    chunks: Chunks = None,
    shards: Shards = None,
    into_image: IntoImage = False,
    label_name: LabelName = None,
    overwrite: Overwrite = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Estimate the time from a trial on a small part, which takes some seconds.",
            rich_help_panel=WORK,
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Tell what `segment` would take with the same options: tasks, memory, room on the disk and time.

    Nothing is written.
    """
    options = {
        **asked(context),
        "memory": memory,
        "workers": workers,
        "overwrite": overwrite,
        "calibrate": calibrate,
    }
    sources, place = places(source, target, into_image, label_name)
    check_workers(workers, scheduler)

    from dseeds.engine.planning import plan as make

    with client_at(scheduler, tls_ca_file, tls_cert, tls_key) as client:
        found = make(sources, place, client=client, **options)
    print(found.to_json() if as_json else found)
