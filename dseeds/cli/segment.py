"""`dseeds segment`: segment a volume into supervoxels."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.errors import print_advice
from dseeds.cli.options import KeepScratchOption, MemoryOption, WorkersOption, output_option, work_option
from dseeds.cli.output import OutputOptions
from dseeds.cli.run_arguments import RunArguments

EXAMPLES = (
    "dseeds segment ct.nii.gz labels.nii.gz --step 8mm --window abdomen",
    "dseeds segment brain.ome.zarr --into-image --level 1 --step 16",
    "dseeds segment brain.ome.zarr labels.zarr --n-segments 5000 --workers 4 --memory 2GiB",
    "dseeds segment t1.nii.gz t2.nii.gz flair.nii.gz labels.nii.gz --mask brain.nii.gz --min-size 20",
    "dseeds segment embryo.zarr labels.zarr --step 4,16,16 --scheduler tcp://10.0.0.1:8786",
    "dseeds segment s3://lab/embryo.zarr s3://lab/labels.zarr --scratch s3://fast/tmp --resume",
)


def segment_command(
    run: RunArguments,
    cluster: ClusterOptions,
    output: OutputOptions,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    keep_scratch: KeepScratchOption = False,
    resume: Annotated[
        bool,
        work_option(
            "--resume",
            help="Resume the unfinished run of this target, if there is one. Options not given are taken from it.",
        ),
    ] = False,
    html: Annotated[
        str | None,
        output_option(
            metavar="FILE",
            help="Also write a report of the run as an HTML page, see dseeds report. This reads all labels.",
        ),
    ] = None,
) -> None:
    """Segment a volume into supervoxels, out of core, on all cores or on a Dask cluster.

    The labels are the same, bit for bit, with any number of workers and any amount of memory.
    """
    source, target = run.source_and_target()
    try:
        with cluster.connect(workers) as client, output.progress() as progress:
            from dseeds.api.segment import segment

            report = segment(
                source,
                target,
                **vars(run.run_options()),
                memory=memory,
                workers=workers,
                client=client,
                overwrite=run.overwrite,
                resume=resume,
                keep_scratch=keep_scratch,
                progress=progress,
                html=html,
            )
    except KeyboardInterrupt as stop:
        # Typer replaces this exception by one without notes.
        print_advice(stop)
        raise
    output.print_result(report.to_json(), partial(print, report))
