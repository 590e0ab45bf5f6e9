"""A run: what is asked for, and what follows from it.

All that is known of a run lies in a folder beside its target, ``labels.zarr.dseeds`` for ``labels.zarr``: what was
asked, who is at work, what is done, and the scratch, unless that is to lie elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dseeds import __version__
from dseeds.course import Course
from dseeds.io import Source, ome_label_attributes
from dseeds.io.place import Place, open_place
from dseeds.journal import Journal
from dseeds.lattice import Lattice, Triple, triple
from dseeds.stages import Job
from dseeds.steps import Step
from dseeds.store import UNIT_CHUNK, WIDE, ImportedSource, Layout
from dseeds.target import ATTRIBUTE, Labels

NIFTI_ENDINGS = (".nii", ".nii.gz")
SUFFIX = ".dseeds"
# What the user says that the labels depend on.
LABELS_FOLLOW = ("step", "n_segments", "spacing", "window", "compactness", "volume")
# A slab of a source that workers cannot read themselves.
SLAB_BYTES = 64 << 20


@dataclass(frozen=True)
class Asked:
    """What a run is to do, as the user says it; see `dseeds.segment`. None where nothing is said."""

    step: Step | None = None
    n_segments: int | None = None
    spacing: Sequence[float] | None = None
    window: Sequence[float] | None = None
    compactness: float | None = None
    volume: int | None = None
    region: int | Sequence[int] | None = None
    chunks: int | Sequence[int] | None = None
    shards: int | Sequence[int] | None = None
    scratch: str | Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give what is said as plain values."""
        return {key: _plain(value) for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Run:
    """A run that has been checked, and may have been begun.

    Attributes
    ----------
    image : Source
        The volume.
    given : object
        The source as it was given.
    target : str
        Where the labels go: a path or URL.
    document : dict
        What identifies the run, as plain values.
    overwrite : bool
        Whether an older output is to be replaced.
    """

    image: Source
    given: Any
    target: str
    document: dict[str, Any]
    overwrite: bool = False

    @property
    def folder(self) -> Place:
        """Where all that is known of the run lies."""
        return open_place(self.target + SUFFIX)

    @property
    def nifti(self) -> bool:
        """Whether the labels are to be NIfTI."""
        return is_nifti(self.target)

    @property
    def identity(self) -> str:
        """A hash of all that the labels and the scratch depend on."""
        return identity(self.document)

    @property
    def scratch(self) -> str:
        """Where the arrays that tasks hand to each other lie."""
        elsewhere = self.document["scratch"]
        place = self.folder if elsewhere is None else scratch_elsewhere(elsewhere, self.folder)
        return str(place.at(self.identity).at("scratch").address)

    def course(self) -> Course:
        """Follow the run as far as it has come."""
        return Course.of(self.job(), self.document["window"] is None)

    def job(self) -> Job:
        """Give what tasks are told."""
        document = self.document
        shape, step, region = (triple(document[key]) for key in ("shape", "step", "region"))
        scratch = self.scratch
        source = (
            self.image
            if self.image.readable_by_workers
            else ImportedSource(scratch, self.image.dtype.newbyteorder("=").str)
        )
        return Job(
            source,
            shape,
            step,
            region,
            scratch,
            Journal(self.folder.address, self.identity),
            Labels(scratch, "labels") if self.nifti else Labels(open_place(self.target).address, run=self.identity),
            window=tuple(document["window"] or (0.0, 0.0)),
            compactness=document["compactness"],
        )

    def attributes(self, job: Job) -> dict[str, Any]:
        """Describe the labels: how they came about, for us, and where they lie in space, for readers of OME-Zarr."""
        asked = self.document["asked"]
        spacing = asked.get("spacing") or self.image.spacing
        return {
            ATTRIBUTE: {
                "supervoxels": job.lattice.size,
                "run": self.identity,
                "parameters": {
                    "asked": {key: value for key, value in asked.items() if key in LABELS_FOLLOW},
                    "step": job.step,
                    "cells": job.lattice.cells,
                    "window": job.window,
                    "compactness": job.compactness,
                    "rounds": len(job.schedule),
                },
                "source": self.image.identity,
                "versions": {
                    "dseeds": __version__,
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("numpy", "numba", "zarr", "dask", "distributed")},
                },
            },
            "ome": ome_label_attributes(spacing=None if spacing is None else tuple(spacing), source=self.image.name),
        }

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays in scratch that a run has for its source and target's sake."""
        found = {}
        if not self.image.readable_by_workers:
            found["source"] = source_layout(self.image)
        if self.nifti:
            found["labels"] = self.labels_layout
        return found

    @property
    def labels_layout(self) -> Layout:
        """How the labels are cut."""
        shape = triple(self.document["shape"])
        labels = self.document["labels"]
        dtype = Lattice(shape, triple(self.document["step"])).label_dtype
        return Layout(shape, dtype, triple(labels["shard"]), triple(labels["chunk"]), WIDE, checked=self.nifti)


def is_nifti(target: str) -> bool:
    """Tell whether labels are to be NIfTI by the name of their target."""
    return target.lower().endswith(NIFTI_ENDINGS)


def identity(document: Mapping[str, Any]) -> str:
    """Hash all that the labels and the scratch depend on."""
    relevant = {key: value for key, value in document.items() if key not in ("asked", "scratch", "overwrite", "given")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def scratch_elsewhere(address: str, folder: Place) -> Place:
    """Give the place of a run's scratch that is not in its folder: runs of targets of one name have different ones."""
    which = hashlib.sha256(folder.address.encode()).hexdigest()[:8]
    return open_place(address).at(f"{folder.address.rpartition('/')[2]}-{which}")


def source_layout(image: Source) -> Layout:
    """Cut the copy of a source that only this process can read into slabs."""
    shard = (thickness(image.shape, image.dtype.itemsize), *(min(n, 4 * UNIT_CHUNK) for n in image.shape[1:]))
    return Layout.cut(image.shape, image.dtype.newbyteorder("="), shard, UNIT_CHUNK)


def memory_cut(image: Source, label_chunks: Triple | None) -> tuple[Triple | None, ...]:
    """Give the chunks and shards of what tasks read, and the chunks of the labels: what `task_bytes` asks for."""
    if image.readable_by_workers:
        return image.chunks, image.shards, label_chunks
    layout = source_layout(image)
    return triple(layout.chunk), triple(layout.shard), label_chunks


def thickness(shape: Triple, itemsize: int) -> int:
    """Choose how many planes of values of so many bytes this process holds at once."""
    return min(UNIT_CHUNK, max(1, SLAB_BYTES // (shape[1] * shape[2] * itemsize)))


def _plain(value: Any) -> Any:
    return (
        value
        if isinstance(value, int | float | str)
        else str(value)
        if isinstance(value, Path)
        else np.asarray(value).tolist()
    )
