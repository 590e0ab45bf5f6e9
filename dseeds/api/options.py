"""The options of `supervoxels`, as they travel from the public function to the code for each kind of array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dseeds.core.geometry import Lattice, Triple
from dseeds.seeds.cell_size import Step, choose_step
from dseeds.seeds.flood import check_boundaries
from dseeds.seeds.hierarchy import check_levels
from dseeds.seeds.in_memory import CutSettings
from dseeds.seeds.intensity_windows import check_bins, check_percentiles, check_weights, read_windows
from dseeds.seeds.min_size import choose_min_size
from dseeds.seeds.schedule import OWN_MAP
from dseeds.seeds.scores import check_compactness

if TYPE_CHECKING:
    from dseeds.core.mask_blocks import MaskBlocks
    from dseeds.io import Mask


@dataclass(frozen=True)
class SupervoxelOptions:
    """The options of `dseeds.supervoxels`, under the names of its parameters and not yet checked."""

    step: Step | None
    n_segments: int | None
    spacing: Sequence[float] | None
    mask: Any
    window: Any
    percentiles: Sequence[float] | str
    bins: str
    compactness: float
    min_size: int | None
    levels: int
    boundaries: Any
    channel_axis: int | str | None
    weights: Sequence[float] | None
    threads: int | None
    memory: int | str | None
    scratch: str | os.PathLike[str] | None

    @property
    def given_mask(self) -> Any:
        """The mask, with lists as arrays; None for no mask and for ``"auto"``."""
        if self._is_mask_auto:
            return None
        return np.asarray(self.mask) if isinstance(self.mask, list | tuple) else self.mask

    @property
    def _is_mask_auto(self) -> bool:
        return isinstance(self.mask, str) and self.mask == "auto"

    def counted_blocks(self, mask: Mask | None) -> MaskBlocks | None:
        """Return where the voxels inside a mask lie, if a number of supervoxels is given; None otherwise."""
        return None if mask is None or self.n_segments is None else mask.blocks()

    def lattice(
        self, shape: Triple, blocks: MaskBlocks | None = None, known_spacing: Sequence[float] | None = None
    ) -> Lattice:
        """Return the lattice of a volume of a shape (z, y, x), with `n_segments` inside the blocks of a mask."""
        step = choose_step(
            shape,
            step=self.step,
            n_segments=self.n_segments,
            spacing=self.spacing,
            known_spacing=known_spacing,
            mask=blocks,
        )
        return Lattice(shape, step)

    def settings(self, channels: int, blocks: MaskBlocks | None = None) -> CutSettings:
        """Return the checked parameters for this number of channels; raise a ValueError if one is out of range."""
        compactness = check_compactness(self.compactness)
        boundaries = check_boundaries(self.boundaries, compactness)
        return CutSettings(
            windows=(*read_windows(self.window, channels), *([None] if boundaries == OWN_MAP else [])),
            percentiles=check_percentiles(self.percentiles),
            bins=check_bins(self.bins),
            auto_mask=self._is_mask_auto,
            weights=check_weights(self.weights, channels),
            compactness=compactness,
            min_size=choose_min_size(self.min_size, self.n_segments, blocks),
            levels=check_levels(self.levels),
            boundaries=boundaries,
        )
