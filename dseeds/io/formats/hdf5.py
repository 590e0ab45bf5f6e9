"""Datasets of HDF5 in and out with h5py: read box by box, written slab by slab."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from dseeds.core.formatting import format_shape
from dseeds.core.optional import import_optional
from dseeds.io.axes import select_axes
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.file_writer import OURS, Content, NumberedSlabs
from dseeds.io.source import (
    SourceQuery,
    Spacing,
    convert_to_mm,
    describe_damage,
    hash_files,
    require_volume,
    shorten,
)

_FILE_AND_DATASET = re.compile(r"(.+\.(?:h5|hdf5?)):(.+)", re.IGNORECASE)
# Those of programs that keep HDF5 under a name of their own: Imaris, netCDF and MATLAB.
_FOREIGN_FILE_AND_DATASET = re.compile(r"(.+\.(?:ims|nc4?|mat)):(.+)", re.IGNORECASE)
_ENDINGS = (".h5", ".hdf5", ".hdf")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Where a file may begin with something else, as those of MATLAB do.
_USER_BLOCK = 512
# The attribute in which ilastik and Fiji's HDF5 plug-in keep the size of a voxel along z, y, x in micrometres.
_SIZE = "element_size_um"
# The attribute in which ilastik and vigra name the axes.
_AXISTAGS = "axistags"
# Where HDF5 itself keeps labels and scales of dimensions.
_DIMENSIONS = ("DIMENSION_LABELS", "DIMENSION_LIST")
_SCRIPT = Path(__file__).with_name("hdf5_axis_names.py")
# In seconds; reading the names of axes takes less than one.
_PATIENCE = 60
# Python's exit code for a program that cannot start.
_NO_PROGRAM = 1
_SOFTWARE = "software"
# With longer chunks, each box would decode far more than it needs.
_LONGEST_CHUNK = 512
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Hdf5Voxels(Voxels):
    """A dataset of HDF5."""

    file: str
    dataset: str

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        with _h5py().File(self.file, "r") as file:
            dataset = file[self.dataset]
            self.check_unchanged(dataset)
            yield lambda index: np.asarray(dataset[index])


def split_dataset(path: Path) -> tuple[Path, str | None]:
    """Split a path into the file and the dataset in it: "" for the only one, None if the file is not HDF5.

    >>> split_dataset(Path("brain.h5:/volumes/raw"))
    (PosixPath('brain.h5'), '/volumes/raw')
    >>> split_dataset(Path("brain.h5"))[1], split_dataset(Path("brain.nii"))[1]
    ('', None)
    """
    match = None if path.exists() else _FILE_AND_DATASET.fullmatch(str(path))
    if match:
        return Path(match[1]), match[2]
    return path, "" if path.suffix.lower() in _ENDINGS and not path.is_dir() else None


def split_source(path: Path) -> tuple[Path, str | None]:
    """Split the path of a source as `split_dataset` does, also if its file has the ending of another program."""
    match = None if path.exists() else _FOREIGN_FILE_AND_DATASET.fullmatch(str(path))
    if match and has_signature(Path(match[1])):
        return Path(match[1]), match[2]
    path, name = split_dataset(path)
    # Those of MINC are images of nibabel's.
    is_other = name is None and path.suffix.lower() != ".mnc" and has_signature(path)
    return path, "" if is_other else name


def has_signature(path: Path) -> bool:
    """Return whether a path is a file that begins as HDF5 does."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        start = stream.read(_USER_BLOCK + len(_SIGNATURE))
    return start.startswith(_SIGNATURE) or start[_USER_BLOCK:] == _SIGNATURE


def is_hdf5(path: Path) -> bool:
    """Return whether a path names a file of HDF5, or a dataset in one, by the file's ending or its first bytes."""
    return split_source(path)[1] is not None


def open_hdf5(path: Path, query: SourceQuery) -> FileSource:
    """Open a dataset in a file of HDF5; raises as `dseeds.io.open_source`."""
    h5py = _h5py()
    path, name = split_source(path)
    with describe_damage(str(path)):
        file = h5py.File(path, "r")
    with file:
        with describe_damage(str(path)):
            shapes = _list_volumes(file)
        name = name or _only(path, shapes)
        where = f"{path}:{name}"
        with describe_damage(where):
            dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{path} has no dataset {shorten(name, 80)!r}: it holds {_listed(shapes)}")
        require_volume(dataset.shape or (), dataset.dtype, where, query, planes=True)
        with describe_damage(where):
            chunks = dataset.chunks
            voxels = Hdf5Voxels(
                file=str(path),
                dataset=dataset.name,
                shape=dataset.shape,
                dtype=dataset.dtype,
                chunks=chunks,
                at_random=chunks is None or max(chunks) <= _LONGEST_CHUNK,
            )
            spacing, names = _read_spacing(dataset.attrs), _read_names(dataset)
    axes = _choose_names(names, len(voxels.shape), where)
    selection = select_axes(axes, voxels.shape, query, where)
    return FileSource.from_voxels(path, "hdf5", voxels, selection, spacing=spacing, dataset=voxels.dataset)


def is_our_hdf5(path: Path) -> bool:
    """Return whether this program wrote a file of HDF5, and no dataset has been added since.

    Raises a FileExistsError for one that an older version may have written, whose mark cannot be read safely.
    """
    h5py = _h5py()
    with describe_damage(str(path)), h5py.File(path, "r") as file:
        datasets = [node for _, node in _list_nodes(file) if isinstance(node, h5py.Dataset)]
        if len(datasets) != 1 or _SOFTWARE not in file.attrs:
            return False
        # Read only in the length that this program writes, as in `_read_spacing`.
        if file.attrs.get_id(_SOFTWARE).dtype.kind == "S":
            return bytes(file.attrs[_SOFTWARE]) == OURS.encode()
    raise FileExistsError(
        f"{path} exists, and may be of an older version of dseeds or of another program, so it is not overwritten: "
        f"remove it, or name another target."
    )


def write_hdf5(path: Path, slabs: NumberedSlabs, content: Content, dataset: str = "") -> None:
    """Write a volume as a dataset, (z, y, x) or (c, z, y, x), of a new file of HDF5; by default ``volume``."""
    array, depth = None, 0
    with _h5py().File(path, "x") as file:
        file.attrs[_SOFTWARE] = np.bytes_(OURS)
        for slab in content.in_order(slabs):
            if array is None:
                # Chunks are as deep as the slabs, so that each is written once.
                chunk = tuple(min(_CHUNK, n) for n in (slab.shape[-3], *content.shape[1:]))
                array = file.create_dataset(
                    dataset or "volume",
                    content.array_shape,
                    content.dtype,
                    chunks=chunk if content.channels is None else (1, *chunk),
                    compression="gzip",
                    compression_opts=1,
                    shuffle=True,
                )
            array[..., depth : depth + slab.shape[-3], :, :] = slab
            depth += slab.shape[-3]
        if array is not None and content.spacing is not None:
            array.attrs[_SIZE] = [1e3 * size for size in content.spacing]


def _list_nodes(file: Any) -> list[tuple[str, Any]]:
    """List the groups and datasets of a file with their paths."""
    nodes: list[tuple[str, Any]] = []
    # h5py goes on for as long as the callback returns None.
    file.visititems(lambda name, node: nodes.append((f"/{name}", node)))
    return nodes


def _list_volumes(file: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the datasets that may be volumes, by their paths; those of planes if there are no others."""
    # Groups have no shape, and a dataset without values has None.
    shapes = {
        name: node.shape
        for name, node in _list_nodes(file)
        if len(getattr(node, "shape", None) or ()) >= 2 and node.dtype.kind in "iufb"
    }
    return {name: shape for name, shape in shapes.items() if len(shape) > 2} or shapes


def _only(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if not shapes:
        raise ValueError(f"{path} holds no dataset of numbers with two axes or more: supervoxels need y and x")
    first, *more = shapes
    if more:
        raise ValueError(f"{path} holds {_listed(shapes)}; pass {path}:{first} for the first of them, and so on")
    return first


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    listed = ", ".join(f"{name} ({format_shape(shape)})" for name, shape in shapes.items())
    return f"{len(shapes)} dataset{'s' * (len(shapes) != 1)}: {shorten(listed, 800)}"


def _read_names(dataset: Any) -> Mapping[str, Any]:
    """Return the names of a dataset's axes as `read_axis_names` does; none if it has none."""
    if _AXISTAGS in dataset.attrs and dataset.attrs.get_id(_AXISTAGS).dtype.kind == "S":
        return {"tags": bytes(dataset.attrs[_AXISTAGS]).decode(errors="replace")}
    if not any(name in dataset.attrs for name in (_AXISTAGS, *_DIMENSIONS)):
        return {}
    file = dataset.file.filename
    names = _read_apart(file, dataset.name, hash_files([file]))
    if names is None:
        from dseeds.io.formats.hdf5_axis_names import read_axis_names

        return read_axis_names(dataset)
    return names


@lru_cache(maxsize=64)
def _read_apart(file: str, dataset: str, _state: str) -> Mapping[str, Any] | None:
    """Read names of any length in a process of their own: libhdf5 may crash or hang where their address is damaged.

    Return None if such a process cannot be started here.
    """
    command = [sys.executable, "-P", str(_SCRIPT), file, dataset]
    imports = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        result = subprocess.run(
            command, env=imports, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=True
        )
        names: dict[str, Any] = json.loads(result.stdout)
    except subprocess.CalledProcessError as error:
        if error.returncode == _NO_PROGRAM:
            return None
        raise ValueError("the names of its axes are damaged") from error
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise ValueError("the names of its axes are damaged") from error
    return names


def _choose_names(names: Mapping[str, Any], count: int, where: str) -> list[str] | None:
    """Return the names in ``axistags``, or else labels or scales of dimensions; None without any."""
    tags, labels, scales = names.get("tags"), names.get("labels", ()), names.get("scales", ())
    if tags is None:
        return labels if any(labels) else scales if any(scales) else None
    try:
        keys = [str(axis["key"]) for axis in json.loads(tags)["axes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} has axistags that cannot be read: correct or remove this attribute") from error
    if len(keys) != count:
        raise ValueError(
            f"{where} names {len(keys)} axes in axistags for an array of {count}: correct or remove this attribute"
        )
    return keys


def _read_spacing(attributes: Any) -> Spacing | None:
    # Values of any length, which these are not, have addresses: libhdf5 itself crashes where one is damaged.
    if _SIZE not in attributes or attributes.get_id(_SIZE).dtype.kind not in "iuf":
        return None
    try:
        sizes = [float(size) for size in attributes[_SIZE]]
    except (TypeError, ValueError):
        return None
    return convert_to_mm(sizes, [1e3] * len(sizes))


def _h5py() -> Any:
    return import_optional("h5py", "HDF5", "dseeds[formats]")
