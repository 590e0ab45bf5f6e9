"""Neuroglancer's precomputed format out, written by tensorstore, shard by shard.

A volume is a folder with a file ``info`` and a folder for each resolution. Axes are (x, y, z, channel), lengths are in
nanometres; see https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dseeds.core.optional import import_optional
from dseeds.io.formats.file_writer import Content, partial_name
from dseeds.io.source import IndexBox, Shape
from dseeds.storage.location import LocalLocation
from dseeds.storage.ownership import check_folder, check_overwrite

# A viewer fetches a chunk, of so many voxels along x and y; a shard is a file, of so many chunks along an axis, which
# it numbers with so many bits.
CHUNK, PER_SHARD, _BITS = 64, 4, 6
MARKER_FILE = "dseeds.json"
_NM_PER_MM = 1e6


def check_precomputed_target(path: Path, overwrite: bool) -> None:
    """Raise unless a volume may be written to a folder; see `dseeds.storage.ownership`."""
    check_folder(LocalLocation(path))
    if path.exists():
        expected, names = _written_names(path), {entry.name for entry in path.iterdir()}
        is_ours = expected is not None and expected <= names
        stranger = min(names - (expected or set()), default=None)
        check_overwrite(path, overwrite, is_ours=is_ours, stranger=stranger)


def _written_names(path: Path) -> set[str] | None:
    """Return the names that this program wrote into a folder, or None if it is not one of its outputs."""
    try:
        json.loads((path / MARKER_FILE).read_text())
        return {MARKER_FILE, "info", *(scale["key"] for scale in json.loads((path / "info").read_text())["scales"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def partial_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Provide a new folder beside the target, which replaces the target once it is complete."""
    partial = partial_name(path)
    partial.mkdir()
    try:
        yield partial
        (partial / MARKER_FILE).write_text(json.dumps({"written": "by dseeds"}))
        # Again, since something may have appeared under the name in the meantime.
        check_precomputed_target(path, overwrite)
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def add_scale(
    folder: Path,
    number: int,
    content: Content,
    depth: int,
    boxes: Callable[[Shape], Iterable[tuple[IndexBox, np.ndarray]]],
) -> None:
    """Write one resolution, 0 being the full one, of a volume in a folder that holds those before it.

    A shard has `depth` planes. `boxes` takes the shape of a shard along z, y, x; it returns boxes, best of this shape,
    and their voxels.
    """
    array = import_tensorstore().open(_describe_scale(folder, number, content, depth)).result()
    shard = array.chunk_layout.write_chunk.shape
    for box, values in boxes((int(shard[2]), int(shard[1]), int(shard[0]))):
        voxels = np.asarray(values, content.dtype)
        czyx = voxels[None] if content.channels is None else voxels
        array[box[2], box[1], box[0], :].write(czyx.transpose(3, 2, 1, 0)).result()


def _describe_scale(folder: Path, number: int, content: Content, depth: int) -> dict[str, Any]:
    """Return tensorstore's specification of a resolution."""
    size = content.shape[::-1]
    spacing = content.spacing or (1 / _NM_PER_MM,) * 3
    encoding: dict[str, Any] = {"encoding": "raw"}
    if content.labelled:
        encoding = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    chunk = [CHUNK, CHUNK, max(1, depth // PER_SHARD)]
    grid = [-(-n // c) for n, c in zip(size, chunk, strict=True)]
    bits = sum(max(0, (n - 1).bit_length()) for n in grid)
    return {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "multiscale_metadata": {
            "type": "segmentation" if content.labelled else "image",
            "data_type": content.dtype.name,
            "num_channels": content.channels or 1,
        },
        "scale_metadata": {
            "key": str(number),
            "size": list(size),
            "resolution": [length * _NM_PER_MM for length in spacing[::-1]],
            "chunk_size": chunk,
            "sharding": {
                "@type": "neuroglancer_uint64_sharded_v1",
                "hash": "identity",
                "preshift_bits": 0,
                "minishard_bits": min(_BITS, bits),
                "shard_bits": max(0, bits - _BITS),
                "minishard_index_encoding": "gzip",
                "data_encoding": "gzip",
            },
            **encoding,
        },
        "create": True,
    }


def import_tensorstore() -> Any:
    """Import the package that writes the format; raise a MissingDependency if it is not installed."""
    return import_optional("tensorstore", "neuroglancer's precomputed format", "dseeds[neuroglancer]")
