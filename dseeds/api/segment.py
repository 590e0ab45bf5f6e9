"""`segment`: the out-of-core run, and the page about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed import Client

from dseeds.core.progress import Progress
from dseeds.engine.driver import run_segmentation
from dseeds.engine.report import Report
from dseeds.engine.run import RunOptions
from dseeds.io.label_listing import resolve_target
from dseeds.parallel.cluster import Resources
from dseeds.seeds.cell_size import Step
from dseeds.storage.owned_file import check_own_file


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
    percentiles: Sequence[float] | None = None,
    bins: str | None = None,
    compactness: float | None = None,
    min_size: int | None = None,
    levels: int | None = None,
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
    client: Client | None = None,
    overwrite: bool = False,
    resume: bool = False,
    scratch: str | Path | None = None,
    keep_scratch: bool = False,
    progress: Progress | None = None,
    html: str | Path | None = None,
) -> Report:
    """Cut a volume of any size into 3D SEEDS supervoxels, out of core, on Dask.

    The labels are those of `supervoxels`, bit for bit, however the volume is cut and on however many workers.

    Parameters
    ----------
    source : path, URL, zarr.Array, zarr.Group, nibabel image, ndarray, Dask array or DataArray, or a list of these
        The volume, axes (z, y, x): a Zarr array (v2 or v3), an OME-Zarr image, whose axes may come in any order, a
        folder with a DICOM series, or a NIfTI file, whose (x, y, z) is turned round, and what else `dseeds info` can
        read. Of a list, each is a channel. A Dask array is computed once, block by block, into Dask's
        ``temporary-directory``, by the client or Dask scheduler that there is.
    target : path or URL
        Where the labels go: a new Zarr v3 group with the labels at ``0``; or, for a NIfTI source, a local file whose
        name ends in ``.nii`` or ``.nii.gz``.
    into_image : bool or str, default False
        Instead of a target: write the labels into the source, an OME-Zarr image of version 0.5, as one of the images in
        its group ``labels``, which lists it when it is whole. They are called ``supervoxels``, or what is said here.
    step, n_segments, spacing, mask, window, percentiles, bins, compactness, min_size, channel_axis, weights
        As for `supervoxels`; the mask may be whatever a source may be, and the channel axis of an OME-Zarr image may be
        called by its name. A spacing that the source states serves `n_segments` and a step such as ``"12mm"``; a step
        in voxels is taken as it is. Regions with nothing inside the mask have no tasks. Joining small supervoxels takes
        some bytes for each supervoxel in this process.
    levels : int, default 0
        How many coarser levels of supervoxels to write as well, for targets in Zarr: groups ``2x``, ``4x`` and so on,
        each with the labels at ``0`` and a table ``parents``, see `supervoxels`. This process holds the graph of what
        touches what: some 500 bytes for each supervoxel.
    pyramid : {"mode", "nearest", "none"}, default "mode"
        How coarser levels of the label images are made, for targets in Zarr: of each block of voxels the most frequent
        label, of several that are equally frequent the smallest, where 0 counts as any other; or its first voxel; or
        not at all. There are as many as the OME-Zarr image has from the level on that is read, with the same factors;
        else voxels are halved until no axis has more than 256 of them, see `dseeds.io.pyramid_levels.choose_levels`.
    volume : int, optional
        Which volume of a 4D source, from 0.
    level : int, default 0
        Which level of an OME-Zarr image to cut, 0 being the full resolution.
    features : bool, default False
        Write the table of supervoxels and their region adjacency graph as well, see `features`: in a folder beside the
        target that is called as it is, with ``.features`` for its ending.
    region : int or sequence of int, optional
        Voxels along (z, y, x) that one task works on, rounded up to whole cells. Default: what the memory allows.
    chunks, shards : int or sequence of int, optional
        How the labels are cut, in voxels along (z, y, x). A region is made up of whole shards, a shard of whole chunks.
        Default: a shard is a region, and chunks are about 64 voxels long.
    memory : int or str, optional
        What one worker may use, such as ``"2GiB"``. Default: the workers' limit.
    workers : int, optional
        Workers of the local cluster. Default: one per core.
    client : distributed.Client, optional
        The cluster to use. Default: a local one, closed at the end, whose dashboard's address is printed.
    overwrite : bool, default False
        Replace an older output of this program, when the new labels begin to be written, and an unfinished run. Nothing
        else is ever replaced.
    resume : bool, default False
        Go on with the unfinished run of this target, if there is one. What is not said is taken from it; what is said
        has to be the same. The labels are those of a run that was never interrupted.
    scratch : path or URL, optional
        Where intermediate data go, which all workers see; 1 to 6 bytes per voxel. Default: beside the target.
    keep_scratch : bool, default False
        Leave the intermediate data, and all that is known of the run, where they are.
    progress : Progress, optional
        Is told about stages and tasks. Default: in a notebook, bars below the cell while the run lasts.
    html : path or URL, optional
        Where to write a page about the run as well, see `html_report`; one that this program wrote is replaced if
        `overwrite` is set.

    Returns
    -------
    Report
        What was done.

    Raises
    ------
    FileNotFoundError
        If the source or the target's folder does not exist.
    FileExistsError
        If the target exists and is not to be, or must not be, overwritten; if there is an unfinished run of it; or if
        another process is at work on it.
    TypeError
        If the source's values have more than 64 bits.
    ValueError
        If the source is no volume, has no intensities or is damaged, a parameter is out of range, the memory or the
        disk is too small, or the unfinished run to be gone on with is another one.
    RegionFailed
        If a region's task fails again and again. The run can be gone on with.

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
    outcome = run_segmentation(
        source,
        target,
        options,
        Resources(memory, workers, client),
        overwrite=overwrite,
        resume=resume,
        keep_scratch=keep_scratch,
        progress=progress,
    )
    if html is not None:
        # Drawing libraries are imported only when a page is asked for.
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
