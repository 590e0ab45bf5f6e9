"""The criteria: figures of supervoxels, and the noise and blur under which they are measured again.

After Stutz, Hermans, Leibe, "Superpixels: An Evaluation of the State-of-the-Art", CVIU 166, 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dseeds.benchmark.cases import Case
from dseeds.core.optional import import_optional
from dseeds.quality.evaluation import evaluate


@dataclass(frozen=True)
class Criterion:
    """A figure: its heading in tables, how many digits it has there, and 1 if more is better, -1 if less, or 0."""

    heading: str
    better: int = 0
    digits: int = 3


# Those of `dseeds.evaluate` have its names.
CRITERIA = {
    "achievable_dice": Criterion("aDice", 1),
    "achievable_segmentation_accuracy": Criterion("ASA", 1),
    "undersegmentation_error": Criterion("UE", -1),
    "boundary_recall": Criterion("recall", 1),
    "explained_variation": Criterion("EV", 1),
    "compactness": Criterion("compact"),
    "size_variation": Criterion("size CV"),
    "tiny_share": Criterion("tiny"),
    "extra_pieces": Criterion("extra pieces", digits=1),
    "supervoxels": Criterion("supervoxels", digits=0),
    "nanoseconds_per_voxel": Criterion("ns/voxel", digits=0),
}
# What ranks methods, and what is measured again under noise and blur.
RANKING = "achievable_dice", "undersegmentation_error", "explained_variation"
ROBUSTNESS = RANKING[:2]
# Labels smaller than this share of a cell are tiny.
TINY = 0.1


def measure_criteria(labels: NDArray[Any], case: Case) -> dict[str, Any]:
    """Return all figures of `CRITERIA` but the time.

    Parameters
    ----------
    labels : ndarray of integers, shape (z, y, x)
        The supervoxels; 0 is left out.
    case : Case
        The image, whose channels count alike in the explained variation, the truth and the cells.

    Returns
    -------
    dict
        Those of `dseeds.evaluate`, and ``size_variation``, the standard deviation of the sizes divided by their mean;
        ``tiny_share``, the share of labels smaller than a tenth of a cell; and ``extra_pieces``, by how many
        6-connected components outnumber labels.
    """
    first, *others = case.scaled.reshape(-1, *case.shape)
    figures = evaluate(labels, case.truth, image=first)
    variations = [evaluate(labels, image=channel)["explained_variation"] for channel in others]
    sizes = np.unique(labels[labels != 0], return_counts=True)[1]
    count = figures["supervoxels"]
    figures |= {
        "explained_variation": float(np.mean([figures["explained_variation"], *variations])),
        "size_variation": figures["size_std"] / figures["size_mean"],
        "tiny_share": float(np.mean(sizes < TINY * prod(case.step))),
        "extra_pieces": round(figures["components_per_label"] * count) - count,
    }
    return {name: figures[name] for name in CRITERIA if name in figures}


@dataclass(frozen=True)
class Disturbance:
    """Gaussian noise with a standard deviation in widths of the window, or Gaussian blur with one in voxels."""

    kind: Literal["noise", "blur"]
    strength: float

    @property
    def name(self) -> str:
        """The kind and the strength.

        >>> Disturbance("noise", 0.1).name
        'noise 0.1'
        """
        return f"{self.kind} {self.strength:g}"

    def apply(self, case: Case) -> Case:
        """Return the case with a disturbed image and, if it is a volume, a disturbed map of boundaries."""
        channels = case.scaled.reshape(-1, *case.shape)
        image = np.stack([self._disturb(channel, number) for number, channel in enumerate(channels)])
        boundaries = case.boundaries
        if isinstance(boundaries, np.ndarray):
            boundaries = self._disturb(case.relief / 255, len(channels)).astype(np.float32)
        windows = ((0.0, 1.0),) * len(channels)
        return replace(case, image=image.reshape(case.image.shape), windows=windows, boundaries=boundaries)

    def _disturb(self, values: NDArray[Any], seed: int) -> NDArray[Any]:
        if self.kind == "blur":
            ndimage = import_optional("scipy.ndimage", "blur", "scipy")
            blurred: NDArray[Any] = ndimage.gaussian_filter(values, self.strength)
            return blurred
        noise = np.random.default_rng(seed).standard_normal(values.shape, np.float32)
        return np.asarray(np.clip(values + np.float32(self.strength) * noise, 0, 1))
