"""The job that every task of a run receives, and how tasks read what earlier phases left."""

from __future__ import annotations

import itertools
import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.forks import cached_property
from dseeds.core.geometry import Box, Lattice, Regions, Triple, triple
from dseeds.engine.exchange import Exchange, label_reach
from dseeds.engine.history import History
from dseeds.engine.journal import Journal
from dseeds.engine.messages import MessageLog
from dseeds.engine.scratch import ID_BLOCK, ImportedImage, Scratch
from dseeds.io import Image, Mask, ResampledMask
from dseeds.io.pyramid_levels import PyramidLevel
from dseeds.seeds.flood import boundary_map
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.flood import BoundaryMap
from dseeds.seeds.order_statistics import WindowSearch
from dseeds.seeds.schedule import OWN_MAP, Round, schedule
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.zarr_arrays import count_bytes


class AnalysisInput(NamedTuple):
    """The input of a region's task that counts intensities."""

    search: WindowSearch
    # The bytes that images and states of regions may take in the memory of the process after a task.
    room: int = 0


class RegionInput(NamedTuple):
    """The input of a region's task that depends on the regions around it."""

    history: History
    # As for `AnalysisInput`.
    room: int = 0
    # Whether the region may rest in the round after this one.
    may_rest: bool = False


@dataclass(frozen=True)
class Job:
    """Everything that a task depends on besides its phase and region; all shapes are (z, y, x)."""

    # The volume, or its copy in scratch if workers cannot read it.
    source: Image | ImportedImage
    shape: Triple
    step: Triple
    # Cells per region.
    region: Triple
    # The folder or prefix in a bucket for the arrays that tasks hand to each other.
    scratch: str
    journal: Journal
    # The labels, and after them those of each coarser level.
    labels: tuple[LabelGroup, ...]
    # The intensity window of each channel, with equal ends if it is constant; empty until they are found.
    windows: tuple[Limits, ...] = ()
    # The knee of each channel's bins, see `OrderStatistics.knee`; None if they are equally wide.
    knees: tuple[float | None, ...] = ()
    compactness: float = 0.0
    weights: tuple[int, ...] = (1,)
    mask: Mask | ResampledMask | None = None
    # For each channel, the bin (of 64) of each of the 4096 grey levels; None if bins are equally wide.
    tables: tuple[NDArray[np.uint8], ...] | None = field(default=None, compare=False)
    # For each channel, the highest grey level of the background; None without a foreground mask.
    thresholds: tuple[int, ...] | None = None
    # A flag for each region that has no voxel inside the mask, see `pack_flags`; None if none is known.
    outside: bytes | None = None
    # Whether any voxel lies outside the mask, and whether one may, as far as known before the bins are.
    masked: bool = False
    may_be_masked: bool = False
    min_size: int = 0
    # The kind of a boundary map, a key of `dseeds.seeds.flood.KINDS`; None without one. A map of its own is the last
    # channel of the source.
    boundaries: str | None = None
    # The first levels of the labels' pyramids, as far as regions consist of whole blocks and shards of them, and how
    # blocks are reduced.
    pyramid: tuple[PyramidLevel, ...] = ()
    pyramid_method: str = "mode"

    def __getstate__(self) -> dict[str, Any]:
        # Without cached properties, which grow with the volume and would travel with every task.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def channels(self) -> int:
        """The number of channels of the source: those of the image, and a boundary map of its own."""
        return len(self.weights) + (self.boundaries == OWN_MAP)

    @property
    def image_windows(self) -> tuple[Limits, ...]:
        """The intensity windows of the image's channels."""
        return self.windows[: len(self.weights)]

    @property
    def image_knees(self) -> tuple[float | None, ...]:
        """The knees of the bins of the image's channels."""
        return self.knees[: len(self.weights)]

    @cached_property
    def boundary_map(self) -> BoundaryMap:
        """What floods the volume; only with a boundary map."""
        assert self.boundaries is not None
        return boundary_map(self.boundaries, self.weights)

    @property
    def has_joins(self) -> bool:
        """Whether supervoxels are joined at the end: small ones to neighbours, or all to those of coarser levels."""
        return self.min_size > 1 or len(self.labels) > 1

    @cached_property
    def lattice(self) -> Lattice:
        """The lattice."""
        return Lattice(self.shape, self.step)

    @cached_property
    def regions(self) -> Regions:
        """The regions."""
        return Regions(self.lattice, self.region)

    @cached_property
    def store(self) -> Scratch:
        """The arrays in scratch."""
        return Scratch(self.scratch, self.regions)

    @cached_property
    def planned_schedule(self) -> tuple[Round, ...]:
        """The rounds of an image that is not constant."""
        return schedule(self.lattice, self.channels, self.boundaries)

    @cached_property
    def schedule(self) -> tuple[Round, ...]:
        """The rounds; empty for a constant image, in which nothing can move."""
        return () if all(lo >= hi for lo, hi in self.windows) else self.planned_schedule

    @cached_property
    def exchange(self) -> Exchange:
        """What regions exchange."""
        reach = label_reach(masked=self.may_be_masked, has_joins=self.has_joins)
        return Exchange(self.regions, self.schedule, self.channels, reach)

    @cached_property
    def messages(self) -> MessageLog:
        """The messages of the regions."""
        return MessageLog(self.scratch, self.journal.run)

    @property
    def key(self) -> str:
        """The name of the run in the memory of a process."""
        return f"{self.scratch}#{self.journal.run}"

    def voxel_box(self, number: int) -> Box:
        """Return the box of a region's voxels."""
        return self.lattice.grids[-1].units_of(self.regions.box(number))

    @cached_property
    def outside_regions(self) -> NDArray[np.bool_]:
        """A flag for each region that has no voxel inside the mask, as far as known; nothing is stored for these."""
        count = len(self.regions)
        return np.zeros(count, np.bool_) if self.outside is None else unpack_flags(self.outside, count)

    def is_outside(self, number: int) -> bool:
        """Return whether a region is known to have no voxel inside the mask."""
        return bool(self.outside_regions[number])

    # Reading

    def read_image(self, box: Box) -> tuple[NDArray[Any], ...]:
        """Read the volume in a box of voxels, channel by channel."""
        values = self.source.read(box.slices)
        # Reads from scratch are counted there.
        if not isinstance(self.source, ImportedImage):
            count_bytes(read=sum(channel.nbytes for channel in values))
        return values

    def read_mask(self, box: Box) -> NDArray[np.bool_] | None:
        """Read the mask in a box of voxels; None if there is no mask."""
        if self.mask is None:
            return None
        inside = self.mask.read(box.slices)
        count_bytes(read=inside.nbytes)
        return inside

    def read_cells(self, name: str, box: Box) -> NDArray[Any]:
        """Read a box of an array of cells, with zeros for regions outside the mask."""
        dtype = self.store.layouts[name].dtype
        return self._read_by_region(partial(self.store.read, name), dtype, box, box, lambda cells: cells)

    def read_labels(self, box: Box, level: int = 0, coarser: int = 0) -> NDArray[Any]:
        """Read the labels of a level in a box of voxels, with zeros for regions outside the mask.

        They may be those of a coarser level of their pyramid that regions have written.
        """
        grid, pyramid, full = self.lattice.grids[-1], self.pyramid[:coarser], box
        for part in pyramid[::-1]:
            lo, hi = (triple(map(operator.mul, corner, part.factors)) for corner in (full.lo, full.hi))
            full = Box(lo, hi)
        full = full.intersection(Box((0, 0, 0), self.shape))

        def units_of(cells: Box) -> Box:
            voxels = grid.units_of(cells)
            for part in pyramid:
                voxels = part.coarsen(voxels)
            return voxels

        read = self.labels[level].coarser(coarser).read
        return self._read_by_region(read, self.lattice.label_dtype, box, grid.cells_of(full), units_of)

    def _read_by_region(
        self,
        read: Callable[[Box], NDArray[Any]],
        dtype: np.dtype[Any],
        box: Box,
        cells: Box,
        units_of: Callable[[Box], Box],
    ) -> NDArray[Any]:
        """Read a box that touches `cells`, region by region if any is outside the mask."""
        numbers = self.regions.touching(cells)
        if not any(map(self.is_outside, numbers)):
            return read(box)
        out = np.zeros(box.shape, dtype)
        for number in itertools.filterfalse(self.is_outside, numbers):
            piece = box.intersection(units_of(self.regions.box(number)))
            # A region may reach no further into a coarser level than into a block of another.
            if min(piece.shape) > 0:
                out[piece.relative_to(box.lo).slices] = read(piece)
        return out

    def look_up(self, name: str, ids: NDArray[Any]) -> NDArray[Any]:
        """Return the entries of ids in a table, in their shape and dtype; only the blocks with these ids are read."""
        is_needed = np.zeros(int(ids.max()) // ID_BLOCK + 1, np.bool_)
        for plane in ids:
            is_needed[plane.astype(np.int64) // ID_BLOCK] = True
        blocks = [int(block) for block in np.flatnonzero(is_needed)]
        positions = np.zeros(len(is_needed), np.int64)
        positions[blocks] = np.arange(len(blocks))
        table = np.concatenate([self.store.read(name, Box((n, 0, 0), (n + 1, 1, 1))).reshape(-1) for n in blocks])
        out = np.empty(ids.shape, ids.dtype)
        for entries, plane in zip(out, ids, strict=True):
            index = plane.astype(np.int64)
            entries[:] = table[positions[index // ID_BLOCK] * ID_BLOCK + index % ID_BLOCK]
        return out


def pack_flags(flags: NDArray[np.bool_]) -> bytes:
    """Compress flags, because they travel with every task.

    >>> unpack_flags(pack_flags(np.array([True, False, True])), 3)
    array([ True, False,  True])
    """
    return zlib.compress(np.packbits(flags).tobytes())


def unpack_flags(packed: bytes, count: int) -> NDArray[np.bool_]:
    """Return the `count` flags that `pack_flags` compressed."""
    return np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count).astype(np.bool_)
