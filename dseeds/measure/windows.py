"""The intensity windows of tables: given, stored in the labels, or searched for region by region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dseeds.core.dtypes import native_dtype
from dseeds.core.geometry import Tiling
from dseeds.io import Image, Source
from dseeds.io.labels import label_parameters, read_labels
from dseeds.parallel.executor import Executor
from dseeds.seeds.intensity_windows import Limits, check_percentiles, exact_number, read_windows
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch


class WindowJob(Protocol):
    """What the tasks of a search for windows have in common."""

    @property
    def labels(self) -> Source:
        """The supervoxels."""

    @property
    def image(self) -> Image | None:
        """The intensities on the same grid."""

    @property
    def tiling(self) -> Tiling:
        """The regions."""


def begin_search(labels: Source, image: Image | None, window: Any, percentiles: Sequence[float] | None) -> WindowSearch:
    """Return the search for the intensity windows, which is done if they are given or stored in the labels."""
    if image is None:
        return WindowSearch((), ())
    given = read_windows(window, image.channels)
    if window is None and percentiles is None:
        given = _stored_windows(labels, image.channels) or given
    return WindowSearch(tuple(map(native_dtype, image.dtypes)), given, check_percentiles(percentiles or (0.5, 99.5)))


def _stored_windows(labels: Source, channels: int) -> tuple[Limits, ...] | None:
    """Return the windows stored in labels that `segment` wrote, if they have one for each channel."""
    try:
        windows = tuple((exact_number(low), exact_number(high)) for low, high in label_parameters(labels)["windows"])
    except (KeyError, TypeError, ValueError):
        return None
    return windows if len(windows) == channels else None


def search_windows(job: WindowJob, search: WindowSearch, executor: Executor) -> tuple[Limits, ...]:
    """Search for the windows of the intensities where there are labels."""
    count = len(job.tiling)
    try:
        while not search.done:
            calls = ((job, number, search) for number in range(count))
            search.narrow(
                sum(executor.map_unordered("window", count_region_digits, calls, count), np.zeros(1, np.int64))
            )
        return search.windows()
    except NoFiniteValues:
        raise ValueError(
            "labels has no supervoxel with a finite intensity: check that labels and image belong together."
        ) from None


def count_region_digits(job: WindowJob, number: int, search: WindowSearch) -> NDArray[np.int64]:
    """Count a region's digits for the search for windows, where there are labels."""
    box = job.tiling.box(number)
    assert job.image is not None
    return search.count(job.image.read(box.slices), read_labels(job.labels, box) != 0)
