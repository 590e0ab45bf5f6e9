"""Datasets of HDF5 in and out by h5py: read box by box, written slab by slab."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dseeds.core.optional import import_optional
from dseeds.io.formats.file_source import ArrayIndex, FileSource
from dseeds.io.formats.file_writer import OURS, Content, NumberedSlabs
from dseeds.io.source import (
    SourceQuery,
    Spacing,
    convert_to_mm,
    describe_damage,
    require_volume,
    select_volume,
    shorten,
)

_NAMED = re.compile(r"(.+\.(?:h5|hdf5)):(.+)", re.IGNORECASE)
_ENDINGS = (".h5", ".hdf5")
# Where ilastik and Fiji's plug-in for HDF5 keep the size of a voxel along z, y, x in micrometres.
SIZE = "element_size_um"
_SOFTWARE = "software"
_LONG = 512
CHUNK = 64


@dataclass(frozen=True)
class Hdf5Voxels:
    """A dataset of HDF5; see `dseeds.io.formats.file_source.Voxels`."""

    file: str
    dataset: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None

    @property
    def at_random(self) -> bool:
        """See `Voxels.at_random`. Not where chunks are long: each box would decode all that it touches."""
        return self.chunks is None or max(self.chunks) <= _LONG

    @contextmanager
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        """See `Voxels.opened`."""
        with _h5py().File(self.file, "r") as file:
            dataset = file[self.dataset]
            if (dataset.shape, dataset.dtype) != (self.shape, self.dtype):
                raise ValueError("it has changed since it was opened")
            yield lambda index: np.asarray(dataset[index])


def hdf5_dataset(path: Path) -> tuple[Path, str | None]:
    """Take a path apart into the file and the dataset in it: "" for the only one, None if it is no HDF5.

    >>> hdf5_dataset(Path("brain.h5:/volumes/raw"))
    (PosixPath('brain.h5'), '/volumes/raw')
    >>> hdf5_dataset(Path("brain.h5"))[1], hdf5_dataset(Path("brain.nii"))[1]
    ('', None)
    """
    named = None if path.exists() else _NAMED.fullmatch(str(path))
    if named:
        return Path(named[1]), named[2]
    return path, "" if path.suffix.lower() in _ENDINGS and not path.is_dir() else None


def open_hdf5(path: Path, dataset: str, wanted: SourceQuery) -> FileSource:
    """Open a dataset in a file of HDF5; errors as `dseeds.io.open_source` words them."""
    h5py = _h5py()
    with describe_damage(str(path)):
        file = h5py.File(path, "r")
    with file:
        with describe_damage(str(path)):
            names = _volumes(file)
        name = dataset or _only(path, names)
        where = f"{path}:{name}"
        with describe_damage(where):
            found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise ValueError(f"{path} has no dataset {shorten(name, 80)!r}: it holds {_listed(names)}")
        require_volume(found.shape or (), found.dtype, where, wanted)
        with describe_damage(where):
            voxels = Hdf5Voxels(str(path), found.name, found.shape, found.dtype, found.chunks)
            spacing = _spacing(found.attrs)
    return FileSource.of(
        path, "hdf5", voxels, select_volume(voxels.shape, wanted, where), spacing=spacing, dataset=voxels.dataset
    )


def is_our_hdf5(path: Path) -> bool:
    """Tell whether a file of HDF5 was written by this program, and nobody has added a dataset."""
    found: list[str] = []
    h5py = _h5py()

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found.append(name)

    with describe_damage(str(path)), h5py.File(path, "r") as file:
        file.visititems(visit)
        return len(found) == 1 and bool(file.attrs.get(_SOFTWARE) == OURS)


def write_hdf5(path: Path, slabs: NumberedSlabs, content: Content, dataset: str = "") -> None:
    """Write a volume as a dataset, (z, y, x) or (c, z, y, x), of a new file of HDF5; the default name is ``volume``."""
    channels = () if content.channels is None else (content.channels,)
    found, depth = None, 0
    with _h5py().File(path, "x") as file:
        file.attrs[_SOFTWARE] = OURS
        for slab in content.in_order(slabs):
            if found is None:
                # Chunks as deep as slabs, so that each is written once.
                sides = (slab.shape[-3], *content.shape[1:])
                found = file.create_dataset(
                    dataset or "volume",
                    (*channels, *content.shape),
                    content.dtype,
                    chunks=(*(1 for _ in channels), *(min(CHUNK, n) for n in sides)),
                    compression="gzip",
                    compression_opts=1,
                    shuffle=True,
                )
            found[..., depth : depth + slab.shape[-3], :, :] = slab
            depth += slab.shape[-3]
        if found is not None and content.spacing is not None:
            found.attrs[SIZE] = [1e3 * size for size in content.spacing]


def _volumes(file: Any) -> list[str]:
    """List the datasets that may be volumes, by their paths."""
    found: list[str] = []

    def visit(name: str, node: Any) -> None:
        # Groups have no shape, and a dataset without values has None.
        shape = getattr(node, "shape", None)
        if shape is not None and len(shape) >= 3 and node.dtype.kind in "iufb":
            found.append(f"/{name}")

    file.visititems(visit)
    return found


def _only(path: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise ValueError(f"{path} holds no dataset of numbers with three axes or more: supervoxels need z, y and x")
    raise ValueError(f"{path} holds {_listed(names)}: pass {path.name}:{names[0]} for the first of them")


def _listed(names: list[str]) -> str:
    return f"{len(names)} datasets ({shorten(', '.join(names), 500)})"


def _spacing(attributes: Any) -> Spacing | None:
    try:
        sizes = [float(size) for size in attributes[SIZE]]
    except (KeyError, TypeError, ValueError):
        return None
    return convert_to_mm(sizes, [1e3] * len(sizes))


def _h5py() -> Any:
    return import_optional("h5py", "HDF5", "dseeds[formats]")
