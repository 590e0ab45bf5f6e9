"""`segment`, the public function: the out-of-core run, then the HTML report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dseeds.core.progress import Progress
from dseeds.engine.report import Report
from dseeds.engine.run import RunOptions
from dseeds.engine.segmentation import run_segmentation
from dseeds.io.label_listing import resolve_target
from dseeds.parallel.clients import open_client
from dseeds.parallel.resources import Resources
from dseeds.seeds.cell_size import Step
from dseeds.seeds.contrast import ContrastWarning
from dseeds.storage.owned_file import check_own_file

if TYPE_CHECKING:
    from dseeds.parallel.clients import ClientLike


def segment(
    source: Any,
    target: str | Path | None = None,
    *,
    into_image: bool | str = False,
    step: Step | None = None,
    n_segments: int | None = None,
    spacing: Sequence[float] | None = None,
    mask: Any = None,
    window: Any = None,
    percentiles: Sequence[float] | str | None = None,
    bins: str | None = None,
    compactness: float | None = None,
    min_size: int | None = None,
    levels: int | None = None,
    boundaries: Any = None,
    pyramid: str | None = None,
    features: bool | None = None,
    volume: int | None = None,
    level: int | None = None,
    channel_axis: int | str | None = None,
    weights: Sequence[float] | None = None,
    region: int | Sequence[int] | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    workers: int | None = None,
    client: ClientLike | None = None,
    overwrite: bool = False,
    resume: bool = False,
    scratch: str | Path | None = None,
    keep_scratch: bool = False,
    progress: Progress | None = None,
    html: str | Path | None = None,
) -> Report:
    """Cut a volume of any size into 3D SEEDS supervoxels, in this process if it fits in memory, else on Dask.

    The labels are those of `supervoxels`, bit for bit, however the volume is cut into regions and on any number of
    workers.

    Parameters
    ----------
    source : path, URL, zarr array or group, nibabel or SimpleITK image, ndarray, Dask array, DataArray, or a list
        The volume, axes (z, y, x): a Zarr array (v2 or v3), an OME-Zarr image with its axes in any order, a folder with
        a DICOM series, a NIfTI file, whose (x, y, z) is reversed, or any other format that `dseeds info` can read. Each
        item of a list is a channel. A Dask array is computed once, block by block, into Dask's
        ``temporary-directory``, by the current client or Dask scheduler.
    target : path or URL
        Where to write the labels: a new Zarr v3 group with the labels at ``0``; or, for a NIfTI source, a local file
        whose name ends in ``.nii`` or ``.nii.gz``.
    into_image : bool or str, default False
        Instead of a target: write the labels into the source, an OME-Zarr image of version 0.4 or 0.5, as an image of
        the same version in its group ``labels``, which lists it once it is complete. Its name is ``supervoxels``, or
        the name given here.
    step, n_segments, spacing, mask, window, percentiles, bins, compactness, min_size, channel_axis, weights
        As for `supervoxels`; the mask may be anything that a source may be, and the channel axis of an OME-Zarr image
        may be given by name. The source's own spacing serves `n_segments` and a step such as ``"12mm"``, but does not
        change a step in voxels. Regions outside the mask have no tasks. Joining small supervoxels takes some bytes for
        each supervoxel in this process.
    levels : int, default 0
        The number of coarser levels of supervoxels to write as well, for targets in Zarr: groups ``2x``, ``4x`` and so
        on, each with the labels at ``0`` and a table ``parents``, see `supervoxels`. This process holds the region
        adjacency graph: some 500 bytes for each supervoxel.
    boundaries : source, ``"image"``, ``"dark"`` or ``"gradient"``, optional
        As for `supervoxels`; a map may be anything that a source may be, of one channel on the image's grid.
    pyramid : {"mode", "nearest", "none"}, default "mode"
        How to downsample the label images, for targets in Zarr: to the most frequent label of each block of voxels,
        where ties go to the smallest label and 0 counts like any other; to the block's first voxel; or not at all. The
        resolution levels are those of the OME-Zarr image from the level that is read, with the same factors; without
        them, voxels are halved until no axis has more than 256, see `dseeds.io.pyramid_levels.choose_levels`.
    volume : int, optional
        The volume of a 4D source, from 0.
    level : int, default 0
        The resolution level of an OME-Zarr image to cut; 0 is the full resolution.
    features : bool, default False
        Write the table of supervoxels and their region adjacency graph as well, see `features`: into a folder beside
        the target with the same name and the ending ``.features``. A boundary map is measured as the last channel.
    region : int or sequence of int, optional
        Voxels along (z, y, x) of one task's region, rounded up to whole cells. Default: as large as the memory allows.
    chunks, shards : int or sequence of int, optional
        The chunks and shards of the labels, in voxels along (z, y, x). A region consists of whole shards, a shard of
        whole chunks. Default: a shard is a region, and chunks are about 64 voxels long.
    memory : int or str, optional
        The memory of a worker, or of this process if the volume is cut in it, such as ``"2GiB"``. Default: the workers'
        limit; three quarters of what is free.
    workers : int, optional
        Workers of a local cluster. Default: no local cluster if there is a client or the volume fits in memory, else
        one worker per core. A script needs ``if __name__ == "__main__":``, since every worker imports it.
    client : distributed.Client, cluster, str or Path, optional
        The cluster to use: a client of it, its object, such as a ``LocalCluster``, the address of its scheduler or the
        scheduler's file (``.json``). Default: Dask's current client, if there is one, which is then printed; else none
        if the volume fits in memory, or a local cluster, which is closed at the end and whose dashboard's address is
        printed. Within a Dask task the current client is not used.
    overwrite : bool, default False
        Replace an older output of this program as soon as the new labels are written, and an unfinished run. Nothing
        else is ever replaced.
    resume : bool, default False
        Resume the unfinished run of this target, if there is one. Options not given are taken from it; options given
        have to be the same. The labels are those of a run that was never interrupted.
    scratch : path or URL, optional
        The folder for intermediate data, which all workers can reach; 1 to 8 bytes per voxel. Default: beside the
        target.
    keep_scratch : bool, default False
        Keep the intermediate data and the record of the run, which is then done on Dask.
    progress : Progress, optional
        Receives the progress of stages and tasks. Default: in a notebook, bars below the cell during the run.
    html : path or URL, optional
        Where to write an HTML report of the run as well, see `html_report`. With `overwrite`, a report that this
        program wrote is replaced.

    Returns
    -------
    Report
        The figures of the run.

    Warns
    -----
    ContrastWarning
        As for `supervoxels`; the report has the same sentences as its `notes`.

    Raises
    ------
    FileNotFoundError
        If the source or the target's folder does not exist.
    FileExistsError
        If the target exists and is not, or must not be, overwritten; if it has an unfinished run; or if another process
        is working on it.
    TypeError
        If the source's values have more than 64 bits.
    ValueError
        If the source is not a volume, has no intensities or is damaged, a parameter is out of range, the memory or the
        disk is too small, or the parameters differ from those of the unfinished run.
    RegionFailed
        If a region's task fails repeatedly. The run can be resumed.

    Examples
    --------
    >>> import tempfile, zarr
    >>> import dseeds
    >>> from distributed import Client
    >>> folder = tempfile.TemporaryDirectory()
    >>> image = zarr.create_array(f"{folder.name}/image.zarr", shape=(32, 32, 32), dtype="uint16")
    >>> image[:, 10:20] = 1000
    >>> with Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0") as client:
    ...     report = dseeds.segment(image, f"{folder.name}/labels.zarr", step=8, client=client)
    >>> report.supervoxels
    64
    >>> labels = zarr.open_array(f"{folder.name}/labels.zarr/0")
    >>> bool((labels[:] == dseeds.supervoxels(image[:], step=8)).all())
    True
    >>> folder.cleanup()
    """
    target = resolve_target(source, target, into_image)
    options = RunOptions(
        step=step,
        n_segments=n_segments,
        spacing=spacing,
        window=window,
        percentiles=percentiles,
        bins=bins,
        compactness=compactness,
        volume=volume,
        channel_axis=channel_axis,
        weights=weights,
        mask=mask,
        boundaries=boundaries,
        min_size=min_size,
        levels=levels,
        level=level,
        pyramid=pyramid,
        features=features,
        region=region,
        chunks=chunks,
        shards=shards,
        scratch=scratch,
    )
    if html is not None:
        check_own_file(html, overwrite)
    with open_client(client, may_use_current=workers is None) as connected:
        outcome = run_segmentation(
            source,
            target,
            options,
            Resources(memory, workers, connected),
            overwrite=overwrite,
            resume=resume,
            keep_scratch=keep_scratch,
            progress=progress,
        )
    for note in outcome.contrast_notes:
        warnings.warn(note, ContrastWarning, stacklevel=2)
    if html is not None:
        # Here, not above: drawing libraries are needed only for the report.
        from dseeds.viz.html_report import html_report

        run = outcome.run
        try:
            html_report(
                run.target.address, html, plan=outcome.plan, report=outcome.report, image=run.image, overwrite=overwrite
            )
        except Exception as error:
            error.add_note(f"the labels in {run.target.address} are complete and published: only the page is missing")
            raise
    return outcome.report
