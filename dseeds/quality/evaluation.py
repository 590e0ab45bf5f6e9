"""`evaluate`: the quality of supervoxels, out of core.

Regions count their share of each supervoxel and write it as rows. The rows are then added up and counted once more,
one range of labels after the other (`dseeds.quality.metrics`). All sums are of integers, or of floats in an exact
representation, so no figure depends on how the volume is cut or on the number of workers.
"""

from __future__ import annotations

import math
import operator
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.checks import check_threads, read_extents
from dseeds.core.dtypes import LARGEST_EXACT
from dseeds.core.exact_sum import totals
from dseeds.core.geometry import Tiling, Triple, check_spacing, triple
from dseeds.core.progress import Progress
from dseeds.io import Source
from dseeds.io.labels import (
    TASK_BYTES,
    align_sources,
    check_still_unedited,
    choose_tiling,
    label_parameters,
    materialise,
    open_labels,
)
from dseeds.io.open import open_voxels
from dseeds.io.source import SourceQuery
from dseeds.parallel.capacity import parse_memory
from dseeds.parallel.clients import open_client
from dseeds.parallel.executor import Executor, open_executor
from dseeds.quality import kernels as kernel
from dseeds.quality import metrics, seams
from dseeds.quality.counting import ROUNDING, QualityJob, add_region, count_part, count_quality_region, lowest_integer
from dseeds.seeds.cell_size import choose_step, millimetres
from dseeds.storage.label_records import label_ranges
from dseeds.storage.location import open_location

if TYPE_CHECKING:
    from dseeds.parallel.clients import ClientLike

# Components of a region are numbered in 32 bits.
LARGEST_REGION = 1 << 31
# The most voxels to search for a boundary.
MOST_NEARBY = 1 << 20


def evaluate(
    labels: Any,
    truth: Any = None,
    *,
    image: Any = None,
    tolerance: int | str = 1,
    chunks: int | Sequence[int] | None = None,
    size_bins: int | None = None,
    step: int | Sequence[int] | str | None = None,
    spacing: Sequence[float] | None = None,
    volume: int | None = None,
    level: int | None = None,
    region: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    client: ClientLike | None = None,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the quality of supervoxels: their shapes, and their fit to a true segmentation and to the image.

    The supervoxels may be those of any program, and volumes of any size: they are measured region by region. All
    figures are exact, and bit-identical however the volume is cut and wherever the tasks run. The functions of
    `dseeds.quality.metrics` and `dseeds.quality.seams` named like the figures have their formulas and sources.

    Parameters
    ----------
    labels : array_like or source
        The supervoxels, axes (z, y, x), with any labels from 1 to 2^63 - 1; 0 is masked out and left out of every
        figure. An array, or what `segment` takes as a source; floats must be whole numbers. An array of two axes is one
        plane, and so are truth and image.
    truth : array_like or source, optional
        The true segmentation on the same grid: 0 is background, everything else structures. Without it there are no
        figures that compare with it.
    image : array_like or source, optional
        The intensities on the same grid. Without them there is no ``explained_variation``.
    tolerance : int or str, default 1
        How far off a boundary may be in ``boundary_recall``: voxels along every axis (Chebyshev distance), or a length
        such as ``"3mm"`` (Euclidean distance). Time grows with its third power where boundaries are far.
    chunks : int or sequence of int, optional
        Voxels along (z, y, x) of the chunks that may have left seams. Without it there is no ``seam_excess``.
    size_bins : int, optional
        Bins of the histogram of sizes. Without it there is no ``size_histogram``.
    step : int, sequence of int or str, optional
        The step of the lattice that the supervoxels grew from, as for `segment`: planes of chunks are then compared
        with those at the same place in their cells. Default: that stored in the labels, if they are an output of
        `segment`.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres, for lengths. Default: that of labels, truth or image.
    volume : int, optional
        Which volume of a 4D image, from 0.
    level : int, default 0
        Which level of an OME-Zarr image the labels belong to; labels of a coarser level are ``labels.zarr/1``.
    region : int or sequence of int, optional
        Voxels along (z, y, x) of one task. Default: what fits the memory.
    memory : int or str, optional
        Memory of a task, such as ``"512MiB"``, the default.
    threads : int, optional
        Threads of this process that share the work. Default: one per core.
    client : distributed.Client, cluster, str or Path, optional
        A cluster whose workers share the work instead, as for `segment`. Default: Dask's current client, if there is
        a `scratch` and no `threads`.
    scratch : path or URL, optional
        A folder for intermediate data that all workers see, required with a client. Default: the machine's own for
        temporary files.
    progress : Progress, optional
        Follows stages and tasks.

    Returns
    -------
    dict
        Plain Python numbers, ready for JSON.

        ``supervoxels``, ``size_min``, ``size_mean``, ``size_median``, ``size_max``, ``size_std``
            The number of supervoxels, and their sizes in voxels.
        ``size_histogram``
            Only with `size_bins`: ``edges``, the smallest size of each bin and after them the largest of all; and
            ``counts``, the supervoxels in each bin.
        ``components_per_label``, ``disconnected``
            Mean number of 6-connected components, and number of supervoxels with more than one.
        ``compactness``
            The mean isoperimetric quotient.
        ``achievable_dice``, ``achievable_dice_per_structure``
            The mean over the structures, and one figure for each. Only with `truth`.
        ``achievable_segmentation_accuracy``, ``undersegmentation_error``, ``undersegmentation_error_levinshtein``
            Only with `truth`; the second one is that of Neubert and Protzel.
        ``boundary_recall``
            Only with `truth`.
        ``explained_variation``
            Only with `image`.
        ``seam_excess``, ``seam_excess_per_axis``, ``seam_step``
            Only with `chunks`: how many more boundaries there are on the planes of chunks, 0 for no seams; and the step
            of the lattice that was taken into account.
        ``worst_seams``
            Only with `chunks`: up to 5 planes of chunks with most boundaries more than expected, the worst first, as
            dicts: ``axis`` and ``plane``, the voxel above the plane; the plane's ``excess``; ``at``, a voxel (z, y, x)
            amid the boundaries of the worst chunk on it, for ``preview(labels, at=...)``; and ``excess_there``.

    Raises
    ------
    ValueError
        If the sources are not volumes of one shape, labels or truth are not whole numbers from 0 to 2^63 - 1, no voxel
        has a label, no labelled voxel is in a structure, the image is not finite real numbers at the labelled voxels,
        or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> truth = np.zeros((4, 4, 4), int)
    >>> truth[:, :, 2:] = 7
    >>> labels = 1 + np.arange(64).reshape(4, 4, 4) // 32
    >>> figures = dseeds.evaluate(labels, truth)
    >>> figures["supervoxels"], figures["achievable_segmentation_accuracy"]
    (2, 0.5)
    >>> dseeds.evaluate(truth + 1, truth)["achievable_dice_per_structure"]
    {7: 1.0}
    """
    label_source = open_labels(labels)
    true_source = None if truth is None else open_labels(truth)
    image_source = None
    if image is not None:
        [image_source] = open_voxels(image, SourceQuery(volume, level=level or 0, planes=True))
    named = {"truth": true_source, "image": image_source}
    others = align_sources(label_source, {name: source for name, source in named.items() if source is not None})
    sources, shape = {"labels": label_source, **others}, label_source.shape
    known_spacing = next((source.spacing for source in sources.values() if source.spacing is not None), None)
    lengths = check_spacing(spacing) if spacing is not None else known_spacing
    task_bytes = parse_memory(memory) if memory is not None else TASK_BYTES
    # Voxels as they are read, and as the kernels take them, and components.
    voxel_bytes = 4 + sum(source.dtype.itemsize + 8 for source in sources.values())
    tile = choose_tiling(shape, label_source.chunks, voxel_bytes, task_bytes, read_extents("region", region))
    if math.prod(tile) > LARGEST_REGION:
        raise ValueError(f"a region must not have more than 2^31 voxels, but region is {tile}.")
    if size_bins is not None and size_bins < 1:
        raise ValueError(f"size_bins must be 1 or more, not {size_bins}.")
    chunk = read_extents("chunks", chunks)
    cell = _lattice_step(label_source, step, shape, spacing, known_spacing)
    if client is not None and scratch is None:
        raise ValueError("a cluster needs scratch= (--scratch), a folder or URL that all its workers see.")
    place = open_location(scratch if scratch is not None else tempfile.gettempdir()).at(f"dseeds-{uuid.uuid4().hex}")
    limits = _read_tolerance(tolerance, lengths, shape)
    tiling = Tiling(shape, tile)
    job = QualityJob(label_source, others.get("truth"), others.get("image"), tiling, place.address, *limits)
    with (
        open_client(client, may_use_current=scratch is not None and threads is None) as connected,
        open_executor(check_threads(threads), connected, progress=progress) as executor,
    ):
        try:
            copies: dict[str, Any] = {
                name: materialise(source, place, name, anywhere=connected is not None)
                for name, source in sources.items()
            }
            return measure_quality(replace(job, **copies), chunk, cell, executor, size_bins)
        finally:
            place.clear()


def measure_quality(
    job: QualityJob, chunks: Triple | None, step: Triple | None, executor: Executor, size_bins: int | None = None
) -> dict[str, Any]:
    """Count all regions and ranges of labels, and return the figures of `evaluate`."""
    job = with_intensity_range(job, executor)
    regions = [(job, number) for number in range(len(job.tiling))]
    indices, boundaries, squares = {}, np.zeros(2, np.int64), []
    planes = [np.zeros((n, 2), np.int64) for n in job.tiling.shape]
    for number, counts in executor.map_unordered("measure", count_quality_region, regions, len(regions)):
        if counts is not None:
            indices[number] = counts.index
            boundaries += counts.boundaries
            squares.append(counts.squares)
            for axis, (lo, hi) in enumerate(zip(*counts.box.bounds, strict=True)):
                planes[axis][lo:hi] += counts.planes[axis, : hi - lo]
    if not indices:
        raise ValueError("labels has no supervoxel: every voxel is 0, masked out.")
    ranges = [(job, part) for part in label_ranges(indices)]
    tally = metrics.add_up(list(executor.map_unordered("count", count_part, ranges, len(ranges))))
    figures: dict[str, Any] = {}
    if job.truth is not None:
        dice = metrics.achievable_dice(tally)
        figures |= {
            "achievable_dice": math.fsum(dice.values()) / len(dice),
            "achievable_dice_per_structure": dice,
            "achievable_segmentation_accuracy": metrics.achievable_segmentation_accuracy(tally),
            "undersegmentation_error": metrics.undersegmentation_error(tally),
            "undersegmentation_error_levinshtein": metrics.undersegmentation_error_levinshtein(tally),
            "boundary_recall": metrics.boundary_recall(*boundaries.tolist()),
        }
    if job.image is not None:
        figures["explained_variation"] = metrics.explained_variation(tally, _exact_total(squares))
    figures |= {
        "compactness": metrics.compactness(tally),
        "supervoxels": tally.supervoxels,
        "components_per_label": tally.components / tally.supervoxels,
        "disconnected": tally.disconnected,
        **metrics.size_statistics(tally.sizes),
    }
    if size_bins is not None:
        figures["size_histogram"] = metrics.size_histogram(tally.sizes, size_bins)
    if chunks is not None:
        between = [rows[:-1] for rows in planes]
        figures |= seams.seam_excess(between, chunks, step)
        figures["seam_step"] = None if step is None else list(step)
        worst = seams.find_worst_planes(between, chunks, step)
        figures["worst_seams"] = seams.locate_seams(job, worst, chunks, executor)
    check_still_unedited(job.labels)
    return figures


def with_intensity_range(job: QualityJob, executor: Executor) -> QualityJob:
    """Return the job with the origin, the centre and the scale of its intensities."""
    if job.image is None:
        return job
    mean, low, high = _intensity_range(job, executor)
    if job.image.dtype.kind in "iu" and max(-low, high) > LARGEST_EXACT:
        regions = [(job, number) for number in range(len(job.tiling))]
        lowest = executor.map_unordered("range", lowest_integer, regions, len(regions))
        job = replace(job, origin=min(value for value in lowest if value is not None))
        mean, low, high = _intensity_range(job, executor)
    return job if low >= high else replace(job, centre=mean / 2, scale=high / 2 - low / 2)


def _intensity_range(job: QualityJob, executor: Executor) -> tuple[float, float, float]:
    """Return the mean, the lowest and the highest intensity above the origin, where there are labels."""
    regions = [(job, number) for number in range(len(job.tiling))]
    sums, sizes, infinite, lows, highs = zip(
        *executor.map_unordered("range", add_region, regions, len(regions)), strict=True
    )
    if any(infinite):
        raise ValueError("image has NaN or infinite values at labelled voxels: mask them out with label 0.")
    low, high = min(lows), max(highs)
    return (min(max(_exact_total(sums) / sum(sizes), low), high) if low < high else low), low, high


def _exact_total(sums: Sequence[NDArray[np.int64]]) -> float:
    """Add up sums in the format of `dseeds.core.exact_sum`."""
    return float(totals(kernel.combine_sums(np.concatenate(sums), np.zeros(len(sums), np.int64), 1), 0)[0])


def _read_tolerance(
    tolerance: int | str, spacing: tuple[float, float, float] | None, shape: Triple
) -> tuple[Triple, float | None, tuple[float, float, float]]:
    """Return the `reach`, `distance` and `spacing` of a `QualityJob`."""
    length = millimetres(tolerance) if isinstance(tolerance, str) else None
    if length is None:
        radius, scale = float(_read_voxels(tolerance)), (1.0, 1.0, 1.0)
    elif spacing is None:
        raise ValueError(
            f"tolerance {tolerance!r} needs the voxels' size: give spacing=(z, y, x) in millimetres (--spacing)."
        )
    else:
        radius, scale = length, spacing
    reach = triple(min(radius / side * ROUNDING, n - 1) for side, n in zip(scale, shape, strict=True))
    if math.prod(2 * r + 1 for r in reach) > MOST_NEARBY:
        raise ValueError(f"tolerance {tolerance!r} is too large ({max(reach)} voxels): use a smaller tolerance.")
    return reach, length, scale


def _read_voxels(tolerance: int | str) -> int:
    try:
        voxels = int(tolerance) if isinstance(tolerance, str) else operator.index(tolerance)
    except (TypeError, ValueError):
        voxels = -1
    if voxels < 0:
        raise ValueError(
            f"tolerance must be a whole number of voxels, 0 or more, or a length such as 3mm, not {tolerance!r}."
        )
    return voxels


def _lattice_step(
    labels: Source, step: Any, shape: Triple, spacing: Sequence[float] | None, known: Sequence[float] | None
) -> Triple | None:
    """Return the step of the lattice: the user's, or else that stored in the labels, if any."""
    if step is not None:
        return choose_step(shape, step=step, spacing=spacing, known_spacing=known)
    stored = label_parameters(labels).get("step")
    return None if stored is None else triple(stored)
