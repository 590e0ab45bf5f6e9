"""NRRD and MetaImage out: a header of a few lines, and the voxels after it, slab by slab."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from dseeds.io.affine import to_lps, voxel_sizes
from dseeds.io.formats.file_writer import OURS, Content, NumberedSlabs

_NOTE = f"# written by {OURS}"
_COMMENT = f"Comment = written by {OURS}"
_META = {
    "int8": "CHAR",
    "uint8": "UCHAR",
    "int16": "SHORT",
    "uint16": "USHORT",
    "int32": "INT",
    "uint32": "UINT",
    "int64": "LONG_LONG",
    "uint64": "ULONG_LONG",
    "float32": "FLOAT",
    "float64": "DOUBLE",
}
_FLOATS = {"float32": "float", "float64": "double"}
# Fast: of images little more can be had, of labels enough.
_LEVEL = 1


def is_our_nrrd(path: Path) -> bool:
    """Tell whether a file of NRRD or MetaImage was written by this program."""
    with path.open("rb") as stream:
        lines = stream.read(1 << 10).decode("latin-1").splitlines()
    return _NOTE in lines or _COMMENT in lines


def write_nrrd(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as NRRD, deflated, with its place in space, (x, y, z) or (channel, x, y, z)."""
    extents, kinds = _extents(content), ["domain"] * 3
    none, lines = "", [_NOTE, f"type: {_FLOATS.get(content.dtype.name, content.dtype.name)}"]
    if content.channels is not None:
        kinds, none = ["vector", *kinds], "none "
    lines += [f"dimension: {len(extents)}"]
    if content.affine is not None:
        direction, origin = to_lps(content.affine)
        columns = direction.T * np.array(voxel_sizes(content.affine)[::-1])[:, None]
        lines += ["space: left-posterior-superior"]
        lines += [f"sizes: {_joined(extents)}", f"space directions: {none}{' '.join(map(_vector, columns))}"]
    elif content.spacing is not None:
        missing = "nan " if none else ""
        lines += [f"sizes: {_joined(extents)}", f"spacings: {missing}{_joined(content.spacing[::-1])}"]
    else:
        lines += [f"sizes: {_joined(extents)}"]
    lines += [f"kinds: {_joined(kinds)}", "endian: little", "encoding: gzip"]
    if content.affine is not None:
        lines += ['space units: "mm" "mm" "mm"', f"space origin: {_vector(origin)}"]
    _write(path, "\n".join(["NRRD0005", *lines, "", ""]), slabs, content, deflated=True)


def write_meta(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as MetaImage, (x, y, z), with its place in space; channels lie next to each other."""
    lines = ["ObjectType = Image", "NDims = 3", _COMMENT, "BinaryData = True", "BinaryDataByteOrderMSB = False"]
    lines += ["CompressedData = False"]
    if content.affine is not None:
        direction, origin = to_lps(content.affine)
        lines += [f"TransformMatrix = {_joined(direction.T.ravel())}", f"Offset = {_joined(origin)}"]
    spacing = content.spacing if content.affine is None else voxel_sizes(content.affine)
    if spacing is not None:
        lines += [f"ElementSpacing = {_joined(spacing[::-1])}"]
    lines += [f"DimSize = {_joined(content.shape[::-1])}"]
    if content.channels is not None:
        lines += [f"ElementNumberOfChannels = {content.channels}"]
    lines += [f"ElementType = MET_{_META[content.dtype.name]}", "ElementDataFile = LOCAL", ""]
    _write(path, "\n".join(lines), slabs, content, deflated=False)


def _write(path: Path, header: str, slabs: NumberedSlabs, content: Content, *, deflated: bool) -> None:
    with path.open("xb") as file:
        file.write(header.encode())
        # Neither name nor date: equal volumes make equal files.
        with gzip.GzipFile("", "wb", _LEVEL, file, 0) if deflated else nullcontext(file) as stream:
            for slab in content.in_order(slabs):
                voxels = slab if content.channels is None else np.moveaxis(slab, 0, -1)
                stream.write(np.ascontiguousarray(voxels, content.dtype.newbyteorder("<")).data)


def _extents(content: Content) -> tuple[int, ...]:
    return (*(() if content.channels is None else (content.channels,)), *content.shape[::-1])


def _joined(values: Iterable[object]) -> str:
    # Python writes as many digits as a number takes to come back the same.
    return " ".join(repr(float(value)) if isinstance(value, float) else str(value) for value in values)


def _vector(values: Iterable[float]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
