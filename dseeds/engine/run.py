"""The options of a run, the specification that identifies it, and the run itself once its inputs are open.

Everything about a run lies in a folder beside its target, ``labels.zarr.dseeds`` for ``labels.zarr``: its
specification, its lease, its journal and, unless the user puts it elsewhere, its scratch.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dseeds._version import __version__
from dseeds.core.checks import read_extents
from dseeds.core.forks import cached_property
from dseeds.core.geometry import Lattice, Regions, Triple, triple
from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.memory_model import ChunkShapes
from dseeds.engine.run_state import ImageQuery, RunState
from dseeds.engine.scratch import ImportedImage, ImportedMask, source_name
from dseeds.io import Frame, Image, Mask, ResampledMask, Spacing, ome_label_attributes, open_image
from dseeds.io.affine import affine_attributes, with_spacing
from dseeds.io.formats.nifti import NIFTI_ENDINGS, is_nifti
from dseeds.io.label_listing import label_format
from dseeds.io.ome_metadata import MILLIMETRES
from dseeds.io.pyramid import count_region_levels, cut_regions
from dseeds.io.pyramid_levels import PyramidLevel, compute_resolutions
from dseeds.seeds.cell_size import Step
from dseeds.seeds.in_memory import CutSettings
from dseeds.seeds.schedule import OWN_MAP
from dseeds.storage.label_group import ATTRIBUTE, LabelGroup, ZarrFormat, level_name
from dseeds.storage.location import LocalLocation, Location, open_location
from dseeds.storage.slabs import slab_layout
from dseeds.storage.zarr_arrays import ZSTD_CODEC, Layout, region_units

SUFFIX = ".dseeds"
# The format of the specification as it is stored.
FORMAT = 6
# The mask that a threshold of the image yields.
AUTO_MASK = "auto"
# The options that the labels do not depend on.
LAYOUT_OPTIONS = {"pyramid", "features", "region", "chunks", "shards", "scratch"}
# Entries of a stored specification that neither the labels nor the scratch depend on.
UNHASHED_KEYS = ("asked", "scratch", "overwrite", "given", "given_mask", "given_boundaries", "memory")
# Entries that are chosen for the memory of a machine.
CHOSEN_KEYS = ("region", "labels")


@dataclass(frozen=True)
class RunOptions:
    """The options of a run as the user gives them; see `dseeds.segment`. None is an option that is not given."""

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
    boundaries: Any = None
    min_size: int | None = None
    levels: int | None = None
    level: int | None = None
    pyramid: str | None = None
    features: bool | None = None
    region: int | Sequence[int] | None = None
    chunks: int | Sequence[int] | None = None
    shards: int | Sequence[int] | None = None
    scratch: str | Path | None = None

    def given(self) -> dict[str, Any]:
        """Return the options that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the options that are given as plain values, without a mask and a boundary map that have no name."""
        options = self.given()
        for name in ("mask", "boundaries"):
            if not isinstance(options.get(name), str | Path):
                options.pop(name, None)
        return {name: _plain(value) for name, value in options.items()}


@dataclass(frozen=True)
class LabelParameters:
    """The checked parameters of the labels, except for the step."""

    # The intensity window of each channel; None where it is found from the percentiles.
    windows: tuple[tuple[float, float] | None, ...]
    percentiles: tuple[int, int]
    bins: str
    weights: tuple[int, ...]
    # The mask's identity, "auto" or None.
    mask: Any
    # The identity of a boundary map of its own, the kind of another, or None.
    boundaries: Any
    compactness: float
    min_size: int
    levels: int

    @property
    def boundary_kind(self) -> str | None:
        """The kind of the boundary map, a key of `dseeds.seeds.flood.KINDS`; None without one."""
        return self.boundaries if self.boundaries is None or isinstance(self.boundaries, str) else OWN_MAP

    def image_query(self, dtypes: Sequence[np.dtype[Any]]) -> ImageQuery:
        """Return what has to be determined from an image with channels of these dtypes."""
        return ImageQuery(
            mask=self.mask not in (None, AUTO_MASK),
            foreground=self.mask == AUTO_MASK,
            equalised=self.bins == "equalised",
            may_be_masked=self.mask is not None or any(dtype.kind == "f" for dtype in dtypes),
        )

    @property
    def settings(self) -> CutSettings:
        """The parameters of a run in memory, to which the mask is given as an array."""
        return CutSettings(
            windows=self.windows,
            percentiles=self.percentiles,
            bins=self.bins,
            auto_mask=self.mask == AUTO_MASK,
            weights=self.weights,
            compactness=self.compactness,
            min_size=self.min_size,
            levels=self.levels,
            boundaries=self.boundary_kind,
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> LabelParameters:
        """Restore the parameters from a stored specification."""
        return cls(**{field.name: _frozen(document[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class RunSpec:
    """The specification of a run: everything that identifies it, and what is needed to open it again."""

    # The identity of the image.
    source: Any
    dtypes: tuple[str, ...]
    # The volume and a cell in voxels, a region in cells, shards and chunks of the labels in voxels, (z, y, x).
    shape: Triple
    step: Triple
    parameters: LabelParameters
    region: Triple
    label_shard: Triple
    label_chunk: Triple
    pyramid_method: str
    pyramid: tuple[PyramidLevel, ...]
    # Whether the labels are written into the image that they belong to.
    into_image: bool
    options: RunOptions
    # The address of the user's scratch folder.
    scratch: str | None
    # The addresses of the sources, the mask and the boundary map; None for what is in the memory of a process.
    sources: list[str] | None
    mask_address: str | None
    boundaries_address: str | None
    overwrite: bool
    # The memory of a worker or job, in bytes.
    memory: int

    def to_document(self) -> dict[str, Any]:
        """Return the specification as plain values, as it is stored."""
        return {
            "format": FORMAT,
            "dseeds": __version__,
            "source": self.source,
            "dtypes": self.dtypes,
            "shape": self.shape,
            "step": self.step,
            **vars(self.parameters),
            "region": self.region,
            "labels": {"shard": self.label_shard, "chunk": self.label_chunk},
            "pyramid": {
                "method": self.pyramid_method,
                "levels": [(level.shape, level.factors) for level in self.pyramid],
            },
            "into_image": self.into_image,
            "asked": self.options.to_dict(),
            "scratch": self.scratch,
            "given": self.sources,
            "given_mask": self.mask_address,
            "given_boundaries": self.boundaries_address,
            "overwrite": self.overwrite,
            "memory": self.memory,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RunSpec:
        """Restore a specification from `to_document`, or from what JSON makes of that."""
        labels, pyramid = document["labels"], document["pyramid"]
        return cls(
            source=document["source"],
            dtypes=tuple(document["dtypes"]),
            shape=triple(document["shape"]),
            step=triple(document["step"]),
            parameters=LabelParameters.from_document(document),
            region=triple(document["region"]),
            label_shard=triple(labels["shard"]),
            label_chunk=triple(labels["chunk"]),
            pyramid_method=pyramid["method"],
            pyramid=tuple(PyramidLevel(triple(shape), triple(factors)) for shape, factors in pyramid["levels"]),
            into_image=document["into_image"],
            options=RunOptions(**document["asked"]),
            scratch=document["scratch"],
            sources=document["given"],
            mask_address=document["given_mask"],
            boundaries_address=document["given_boundaries"],
            overwrite=document["overwrite"],
            memory=document["memory"],
        )

    @cached_property
    def identity(self) -> str:
        """A hash of everything that the labels and the scratch depend on."""
        return run_identity(self.to_document())

    @cached_property
    def product(self) -> str:
        """A hash of everything that the finished labels depend on, however the run is cut for the memory of a machine.

        Unlike the identity, it includes what the user says about their metadata and layout.
        """
        document, options = self.to_document(), self.options
        layout = {name: read_extents(name, getattr(options, name)) for name in ("chunks", "shards")}
        spacing = None if options.spacing is None else list(map(float, options.spacing))
        parts = {key: value for key, value in document.items() if key not in CHOSEN_KEYS}
        return run_identity({**parts, **layout, "spacing": spacing})

    @cached_property
    def lattice(self) -> Lattice:
        """The lattice."""
        return Lattice(self.shape, self.step)


@dataclass(frozen=True)
class ResolvedTarget:
    """The target of a run, a Zarr group or a NIfTI file, its address resolved once."""

    location: Location
    is_nifti: bool
    is_remote: bool

    @classmethod
    def at(cls, address: str | Path) -> ResolvedTarget:
        """Resolve the path or URL of a target; `ValueError` if it is neither."""
        location = open_location(address)
        return cls(location, is_nifti(location.address), not isinstance(location, LocalLocation))

    @property
    def address(self) -> str:
        """An absolute path, or a URL without a trailing slash."""
        return self.location.address

    @property
    def path(self) -> Path:
        """The path of a target that is not remote."""
        return Path(self.address)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]

    @cached_property
    def run_folder(self) -> Location:
        """The folder of the run of this target."""
        return open_location(self.address + SUFFIX)


@dataclass(frozen=True)
class Run:
    """A run that has been checked, with its inputs open. It may or may not have been started."""

    spec: RunSpec
    target: ResolvedTarget
    image: Image
    mask: Mask | None = None
    # A boundary map of its own.
    boundaries: Image | None = None
    # The source as it was given, or the first of several: NIfTI labels take its header.
    template: Any = None

    @cached_property
    def volume(self) -> Image:
        """What is cut; see `join_boundaries`."""
        return join_boundaries(self.image, self.boundaries)

    @property
    def folder(self) -> Location:
        """The folder of the run."""
        return self.target.run_folder

    @property
    def identity(self) -> str:
        """A hash of everything that the labels and the scratch depend on."""
        return self.spec.identity

    @property
    def is_reopenable(self) -> bool:
        """Whether other processes can open all inputs by their addresses."""
        spec = self.spec
        inputs = (self.image, spec.sources), (self.mask, spec.mask_address), (self.boundaries, spec.boundaries_address)
        return all(one is None or address is not None for one, address in inputs)

    @property
    def features(self) -> str | None:
        """The address of the table and the graph of the supervoxels, beside the labels; None if they are not wanted."""
        return folder_beside(self.target.address, ".features") if self.spec.options.features else None

    @property
    def spacing(self) -> Spacing | None:
        """The size of a voxel along (z, y, x) in millimetres, as the user or else the image says; None if unknown."""
        z, y, x = self.spec.options.spacing or self.image.spacing or (None, None, None)
        return None if z is None or y is None or x is None else (float(z), float(y), float(x))

    @cached_property
    def zarr_format(self) -> ZarrFormat:
        """The version of Zarr that the labels are in."""
        return label_format(self.target.address) if self.spec.into_image else 3

    @cached_property
    def scratch(self) -> str:
        """The address of the arrays through which tasks exchange data."""
        elsewhere = self.spec.scratch
        location = self.folder if elsewhere is None else scratch_elsewhere(elsewhere, self.folder)
        return location.at(self.identity).at("scratch").address

    def initial_state(self) -> RunState:
        """Return the state of the run before its first phase."""
        parameters, dtypes = self.spec.parameters, [np.dtype(name) for name in self.spec.dtypes]
        search = parameters.settings.begin_search(dtypes)
        return RunState(self.job(), search, parameters.image_query(dtypes))

    def state(self) -> RunState:
        """Return how far the run is, from its journal."""
        state = self.initial_state()
        state.replay()
        return state

    def job(self) -> Job:
        """Return the description of the run that travels with its tasks."""
        spec, parameters = self.spec, self.spec.parameters
        volume: Image | ImportedImage = self.volume
        mask: Mask | ResampledMask | None = self.mask
        if not self.volume.readable_by_workers:
            volume = ImportedImage(self.scratch, self.volume.channels)
        if self.mask is not None and not self.mask.readable_by_workers:
            mask = self.mask.through(ImportedMask(self.scratch))
        return Job(
            volume,
            spec.shape,
            spec.step,
            spec.region,
            self.scratch,
            Journal(self.folder.address, self.identity),
            tuple(self._label_group(level) for level in range(parameters.levels + 1)),
            compactness=parameters.compactness,
            weights=parameters.weights,
            mask=mask,
            min_size=parameters.min_size,
            boundaries=parameters.boundary_kind,
            pyramid=spec.pyramid[: self.region_levels],
            pyramid_method=spec.pyramid_method,
        )

    def _label_group(self, level: int) -> LabelGroup:
        if self.target.is_nifti:
            return LabelGroup(open_location(self.scratch), "labels")
        return LabelGroup(self.target.location, level_name(level), self.identity, self.zarr_format)

    def attributes(self, state: RunState) -> dict[str, Any]:
        """Return the attributes of the labels: their provenance, and their place in space for readers of OME-Zarr."""
        job, options = state.job, self.spec.options
        return {
            ATTRIBUTE: {
                "supervoxels": state.supervoxels,
                "run": self.identity,
                "product": self.spec.product,
                "parameters": {
                    "asked": {name: value for name, value in options.to_dict().items() if name not in LAYOUT_OPTIONS},
                    "step": job.step,
                    "cells": job.lattice.cells,
                    "windows": job.image_windows,
                    "bins": self.spec.parameters.bins,
                    "knees": job.image_knees,
                    "weights": job.weights,
                    "thresholds": job.thresholds,
                    "compactness": job.compactness,
                    "min_size": job.min_size,
                    "boundaries": self.spec.parameters.boundaries,
                    "rounds": len(job.schedule),
                },
                "source": self.image.identity,
                **self._position_attributes(),
                "versions": {
                    "dseeds": __version__,
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("numpy", "numba", "zarr", "dask", "distributed")},
                },
            },
            "ome": self.ome_attributes(),
        }

    def _position_attributes(self) -> dict[str, Any]:
        """Return what the labels' attributes keep of the image's position in space, beside their place in OME-Zarr."""
        spacing, forms = self.spec.options.spacing, self.image.forms
        forms = forms and forms.mapped(lambda form: with_spacing(form, spacing))
        return affine_attributes(with_spacing(self.image.affine, spacing), forms)

    def ome_attributes(self, level: int = 0) -> dict[str, Any]:
        """Return the OME-Zarr attributes of a level of supervoxels: the labels lie where the image does."""
        spec = self.spec
        # Viewers overlay labels inside an image on it, whatever voxel size the user gave.
        spacing = None if spec.into_image else spec.options.spacing
        frame = self.image.frame
        if spacing is not None:
            z, y, x = spacing
            frame = Frame((z, y, x), units=MILLIMETRES)
        return ome_label_attributes(
            **vars(frame),
            source=self.image.name,
            levels=compute_resolutions(spec.pyramid, spec.pyramid_method),
            # Coarser supervoxels lie in a group within that of the others.
            image="../" * (3 if level else 2) if spec.into_image else None,
        )

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays in scratch that the source and the target of this run need, by name."""
        layouts = {}
        if not self.volume.readable_by_workers:
            layouts = {
                source_name(channel): slab_layout(self.volume.shape, dtype)
                for channel, dtype in enumerate(self.volume.dtypes)
            }
        if self.mask is not None and not self.mask.readable_by_workers:
            layouts["mask"] = slab_layout(self.mask.own, np.dtype(np.uint8))
        if self.target.is_nifti:
            layouts["labels"] = self.labels_layout
        return layouts

    def create_scratch(self, state: RunState) -> None:
        """Create all arrays in scratch, empty."""
        state.job.store.create({**state.layouts, **self.layouts})

    @cached_property
    def region_levels(self) -> int:
        """How many levels of the labels' pyramid regions write themselves."""
        spec, shards = self.spec, [layout.shard for layout in self.pyramid_layouts]
        region = region_units(Regions(spec.lattice, spec.region), spec.lattice.grids[-1])
        return count_region_levels(spec.shape, spec.pyramid, shards, region)

    @cached_property
    def pyramid_layouts(self) -> tuple[Layout, ...]:
        """The layouts of the coarser levels of the labels' pyramid."""
        finer, layouts = self.labels_layout, []
        for level in self.spec.pyramid:
            chunk, shard = cut_regions(level.shape, finer.chunk, finer.shard, level.factors)
            finer = replace(finer, shape=level.shape, shard=shard, chunk=chunk)
            layouts.append(finer)
        return tuple(layouts)

    @property
    def labels_layout(self) -> Layout:
        """The layout of the labels."""
        spec = self.spec
        dtype = spec.lattice.label_dtype
        return Layout(spec.shape, dtype, spec.label_shard, spec.label_chunk, ZSTD_CODEC, checked=self.target.is_nifti)


def open_run_image(source: Any, options: RunOptions) -> Image:
    """Open the image of a run as its options say."""
    return open_image(source, volume=options.volume, channel_axis=options.channel_axis, level=options.level or 0)


def join_boundaries(image: Image, boundaries: Image | None) -> Image:
    """Return what is cut: an image and, as the last channel, a boundary map of its own."""
    return image if boundaries is None else Image((*image.parts, *boundaries.parts))


def folder_beside(labels: str, suffix: str) -> str:
    """Return the address of a folder of tables next to the labels at a path or URL.

    >>> folder_beside("/data/labels.nii.gz", ".features"), folder_beside("s3://lab/labels.zarr", ".vote")
    ('/data/labels.features', 's3://lab/labels.vote')
    """
    for ending in (*NIFTI_ENDINGS, ".ome.zarr", ".zarr"):
        labels = labels.removesuffix(ending)
    return f"{labels}{suffix}"


def run_identity(document: Mapping[str, Any]) -> str:
    """Hash everything in a stored specification that the labels and the scratch depend on."""
    hashed = {key: value for key, value in document.items() if key not in UNHASHED_KEYS}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def scratch_elsewhere(address: str, folder: Location) -> Location:
    """Return the place of a run's scratch in a scratch folder, distinct even for targets of the same name."""
    suffix = hashlib.sha256(folder.address.encode()).hexdigest()[:8]
    return open_location(address).at(f"{folder.address.rpartition('/')[2]}-{suffix}")


def chunk_shapes(image: Image, label_chunks: Triple | None) -> ChunkShapes:
    """Return the chunks and shards of the arrays that tasks read, and the chunks of the labels."""
    if image.readable_by_workers:
        return ChunkShapes(image.chunks, image.shards, label_chunks)
    layout = slab_layout(image.shape, max(image.dtypes, key=lambda dtype: dtype.itemsize))
    return ChunkShapes(triple(layout.chunk), triple(layout.shard), label_chunks)


def _frozen(value: Any) -> Any:
    """Turn lists, and the lists in them, into tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [None if item is None else _plain(item) for item in value]
    return np.asarray(value).tolist()
