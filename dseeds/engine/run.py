"""A run: what is asked for, and what follows from it.

All that is known of a run lies in a folder beside its target, ``labels.zarr.dseeds`` for ``labels.zarr``: what was
asked, who is at work, what is done, and the scratch, unless that is to lie elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dseeds._version import __version__
from dseeds.core.geometry import Lattice, Triple, triple
from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.memory_model import ChunkShapes
from dseeds.engine.run_state import ImageQuery, RunState
from dseeds.engine.scratch import ImportedImage, ImportedMask, source_name
from dseeds.io import Frame, Image, Mask, ResampledMask, ome_label_attributes
from dseeds.io.affine import affine_attributes, with_spacing
from dseeds.io.formats.nifti import NIFTI_ENDINGS, is_nifti
from dseeds.io.ome_metadata import MILLIMETRES
from dseeds.io.pyramid_levels import PyramidLevel, compute_resolutions
from dseeds.seeds.cell_size import Step
from dseeds.seeds.order_statistics import WindowSearch
from dseeds.storage.label_group import ATTRIBUTE, LabelGroup, level_name
from dseeds.storage.location import Location, open_location
from dseeds.storage.slabs import slab_layout
from dseeds.storage.zarr_arrays import ZSTD_CODEC, Layout

SUFFIX = ".dseeds"
# What the user says that the labels depend on.
LABELS_FOLLOW = (
    "step",
    "n_segments",
    "spacing",
    "window",
    "percentiles",
    "bins",
    "compactness",
    "volume",
    "level",
    "channel_axis",
    "weights",
    "mask",
    "min_size",
    "levels",
)


@dataclass(frozen=True)
class RunOptions:
    """What a run is to do, as the user says it; see `dseeds.segment`. None where nothing is said."""

    step: Step | None = None
    n_segments: int | None = None
    spacing: Sequence[float] | None = None
    window: Any = None
    percentiles: Any = None
    bins: str | None = None
    compactness: float | None = None
    volume: int | None = None
    channel_axis: int | str | None = None
    weights: Sequence[float] | None = None
    mask: Any = None
    min_size: int | None = None
    levels: int | None = None
    level: int | None = None
    pyramid: str | None = None
    features: bool | None = None
    region: int | Sequence[int] | None = None
    chunks: int | Sequence[int] | None = None
    shards: int | Sequence[int] | None = None
    scratch: str | Path | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> RunOptions:
        """Take what is to be done out of all arguments of a function."""
        return cls(**{field.name: arguments.get(field.name) for field in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """Give what is said as plain values; a mask that has no name is left out."""
        said = {key: value for key, value in vars(self).items() if value is not None}
        if not isinstance(self.mask, str | Path):
            said.pop("mask", None)
        return {key: _plain(value) for key, value in said.items()}


@dataclass(frozen=True)
class Run:
    """A run that has been checked, and may have been begun.

    Attributes
    ----------
    image : Image
        The volume.
    given : object
        The source as it was given, or the first of several.
    target : str
        Where the labels go: a path or URL.
    document : dict
        What identifies the run, as plain values.
    overwrite : bool
        Whether an older output is to be replaced.
    mask : Mask or None
        The mask, if one is given.
    """

    image: Image
    given: Any
    target: str
    document: dict[str, Any]
    overwrite: bool = False
    mask: Mask | None = None

    @property
    def folder(self) -> Location:
        """Where all that is known of the run lies."""
        return open_location(self.target + SUFFIX)

    @property
    def nifti(self) -> bool:
        """Whether the labels are to be NIfTI."""
        return is_nifti(self.target)

    @property
    def features(self) -> str | None:
        """Where the table and the graph of the supervoxels go: beside the labels. None where none are wanted."""
        if not self.document["asked"].get("features"):
            return None
        return features_beside(self.target)

    @property
    def identity(self) -> str:
        """A hash of all that the labels and the scratch depend on."""
        return run_identity(self.document)

    @property
    def scratch(self) -> str:
        """Where the arrays that tasks hand to each other lie."""
        elsewhere = self.document["scratch"]
        place = self.folder if elsewhere is None else scratch_elsewhere(elsewhere, self.folder)
        return str(place.at(self.identity).at("scratch").address)

    def course(self, *, followed: bool = True) -> RunState:
        """Follow the run as far as it has come, or give the course of one that has not been begun."""
        document = self.document
        dtypes = [np.dtype(name) for name in document["dtypes"]]
        given = tuple(None if window is None else tuple(window) for window in document["windows"])
        search = WindowSearch(dtypes, given, tuple(document["percentiles"]))
        wanted = ImageQuery(
            mask=document["mask"] not in (None, "auto"),
            foreground=document["mask"] == "auto",
            equalised=document["bins"] == "equalised",
            may_be_masked=document["mask"] is not None or any(dtype.kind == "f" for dtype in dtypes),
        )
        return (RunState.of if followed else RunState)(self.job(), search, wanted)

    def job(self) -> Job:
        """Give what tasks are told."""
        document, scratch = self.document, self.scratch
        shape, step, region = (triple(document[key]) for key in ("shape", "step", "region"))
        mask: Mask | ResampledMask | None = self.mask
        if self.mask is not None and not self.mask.readable_by_workers:
            mask = self.mask.through(ImportedMask(scratch))
        return Job(
            self.image if self.image.readable_by_workers else ImportedImage(scratch, tuple(document["dtypes"])),
            shape,
            step,
            region,
            scratch,
            Journal(self.folder.address, self.identity),
            tuple(self._labels(scratch, level) for level in range(document["levels"] + 1)),
            compactness=document["compactness"],
            weights=tuple(document["weights"]),
            mask=mask,
            min_size=document["min_size"],
        )

    def _labels(self, scratch: str, level: int) -> LabelGroup:
        if self.nifti:
            return LabelGroup(open_location(scratch), "labels")
        return LabelGroup(open_location(self.target), level_name(level), run=self.identity)

    def attributes(self, course: RunState) -> dict[str, Any]:
        """Describe the labels: how they came about, for us, and where they lie in space, for readers of OME-Zarr."""
        job, asked = course.job, self.document["asked"]
        return {
            ATTRIBUTE: {
                "supervoxels": course.supervoxels,
                "run": self.identity,
                "parameters": {
                    "asked": {key: value for key, value in asked.items() if key in LABELS_FOLLOW},
                    "step": job.step,
                    "cells": job.lattice.cells,
                    "windows": job.windows,
                    "bins": self.document["bins"],
                    "weights": job.weights,
                    "thresholds": job.thresholds,
                    "compactness": job.compactness,
                    "min_size": job.min_size,
                    "rounds": len(job.schedule),
                },
                "source": self.image.identity,
                **affine_attributes(with_spacing(self.image.affine, asked.get("spacing"))),
                "versions": {
                    "dseeds": __version__,
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("numpy", "numba", "zarr", "dask", "distributed")},
                },
            },
            "ome": self.ome(),
        }

    def ome(self, level: int = 0) -> dict[str, Any]:
        """Describe labels of a level of supervoxels for readers of OME-Zarr: they lie where the image does."""
        spacing = self.document["asked"].get("spacing")
        # Viewers lay labels inside an image upon it, whatever size of voxels the run was told.
        known = spacing is None or self.into_image
        frame = self.image.frame if known else Frame(tuple(spacing), units=MILLIMETRES)
        return ome_label_attributes(
            **vars(frame),
            source=self.image.name,
            levels=compute_resolutions(self.pyramid, self.document["pyramid"]["method"]),
            # Coarser supervoxels lie in a group within that of the others.
            image="../" * (3 if level else 2) if self.into_image else None,
        )

    @property
    def pyramid(self) -> tuple[PyramidLevel, ...]:
        """The coarser levels of the labels' pyramid."""
        return tuple(
            PyramidLevel(triple(shape), triple(factors)) for shape, factors in self.document["pyramid"]["levels"]
        )

    @property
    def into_image(self) -> bool:
        """Whether the labels are written into the image that they belong to."""
        return bool(self.document["into_image"])

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays in scratch that a run has for its source and target's sake."""
        found = {}
        if not self.image.readable_by_workers:
            found = {
                source_name(c): slab_layout(self.image.shape, dtype) for c, dtype in enumerate(self.image.dtypes)
            }
        if self.mask is not None and not self.mask.readable_by_workers:
            found["mask"] = slab_layout(self.mask.own, np.dtype(np.uint8))
        if self.nifti:
            found["labels"] = self.labels_layout
        return found

    @property
    def labels_layout(self) -> Layout:
        """How the labels are cut."""
        shape = triple(self.document["shape"])
        labels = self.document["labels"]
        dtype = Lattice(shape, triple(self.document["step"])).label_dtype
        return Layout(shape, dtype, triple(labels["shard"]), triple(labels["chunk"]), ZSTD_CODEC, checked=self.nifti)


def features_beside(target: str) -> str:
    """Give the folder for the features of the labels at a path or URL.

    >>> features_beside("/data/labels.nii.gz"), features_beside("s3://lab/labels.zarr")
    ('/data/labels.features', 's3://lab/labels.features')
    """
    for ending in (*NIFTI_ENDINGS, ".ome.zarr", ".zarr"):
        target = target.removesuffix(ending)
    return f"{target}.features"


def run_identity(document: Mapping[str, Any]) -> str:
    """Hash all that the labels and the scratch depend on."""
    margin = ("asked", "scratch", "overwrite", "given", "given_mask")
    relevant = {key: value for key, value in document.items() if key not in margin}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def scratch_elsewhere(address: str, folder: Location) -> Location:
    """Give the place of a run's scratch that is not in its folder: runs of targets of one name have different ones."""
    which = hashlib.sha256(folder.address.encode()).hexdigest()[:8]
    return open_location(address).at(f"{folder.address.rpartition('/')[2]}-{which}")


def chunk_shapes(image: Image, label_chunks: Triple | None) -> ChunkShapes:
    """Return the chunks and shards of the arrays that tasks read, and the chunks of the labels."""
    if image.readable_by_workers:
        return ChunkShapes(image.chunks, image.shards, label_chunks)
    layout = slab_layout(image.shape, max(image.dtypes, key=lambda dtype: dtype.itemsize))
    return ChunkShapes(triple(layout.chunk), triple(layout.shard), label_chunks)


def _plain(value: Any) -> Any:
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [None if item is None else _plain(item) for item in value]
    return np.asarray(value).tolist()
