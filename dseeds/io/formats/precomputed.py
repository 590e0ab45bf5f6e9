"""Neuroglancer's precomputed format out, written by tensorstore, shard by shard.

A volume is a folder with a file ``info`` and a folder for each resolution; axes are (x, y, z, channel), lengths are in
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

# A chunk is what a viewer asks for, a shard is a file: voxels of one along x and y, chunks of the other along an axis,
# which are numbered with so many bits.
CHUNK, PER_SHARD, _BITS = 64, 4, 6
MARKER_FILE = "dseeds.json"
_NM_PER_MM = 1e6


def check_precomputed_target(path: Path, overwrite: bool) -> None:
    """Raise unless a volume may be written to a folder.

    Raises
    ------
    FileExistsError
        If the folder exists, and was not written by this program or `overwrite` is not set.
    FileNotFoundError
        If the parent folder does not exist.
    """
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
    """Lend a folder beside the target, which takes the target's name when it is complete."""
    partial = partial_name(path)
    partial.mkdir()
    try:
        yield partial
        (partial / MARKER_FILE).write_text(json.dumps({"written": "by dseeds"}))
        # Again, for something may have come to be there meanwhile.
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
    """Write one resolution.

    Parameters
    ----------
    folder : Path
        Where the resolutions before it are.
    number : int
        0 for the full resolution.
    content : Content
        What is written.
    depth : int
        Planes in a shard.
    boxes : callable
        Gives boxes along z, y, x, best of the extent that it is given, which is that of a shard, and their voxels.
    """
    z, y, x = content.shape
    spacing = content.spacing or (1 / _NM_PER_MM,) * 3
    coded: dict[str, Any] = {"encoding": "raw"}
    if content.labelled:
        coded = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    chunk = [CHUNK, CHUNK, max(1, depth // PER_SHARD)]
    grid = [-(-n // c) for n, c in zip((x, y, z), chunk, strict=True)]
    bits = sum(max(0, (n - 1).bit_length()) for n in grid)
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "multiscale_metadata": {
            "type": "segmentation" if content.labelled else "image",
            "data_type": content.dtype.name,
            "num_channels": content.channels or 1,
        },
        "scale_metadata": {
            "key": str(number),
            "size": [x, y, z],
            "resolution": [size * _NM_PER_MM for size in spacing[::-1]],
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
            **coded,
        },
        "create": True,
    }
    array = import_tensorstore().open(spec).result()
    shard = array.chunk_layout.write_chunk.shape
    for box, values in boxes((int(shard[2]), int(shard[1]), int(shard[0]))):
        found = np.asarray(values, content.dtype)
        stored = found[None] if content.channels is None else found
        array[box[2], box[1], box[0], :].write(stored.transpose(3, 2, 1, 0)).result()


def import_tensorstore() -> Any:
    """Import the package that writes the format.

    Raises
    ------
    MissingDependency
        If it is not installed.
    """
    return import_optional("tensorstore", "neuroglancer's precomputed format", "dseeds[neuroglancer]")
