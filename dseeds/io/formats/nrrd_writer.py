"""NRRD and MetaImage out: a header of a few lines, then the voxels, slab by slab."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from dseeds.io.affine import to_lps, voxel_sizes
from dseeds.io.formats.file_writer import OURS, Content, NumberedSlabs, compress

_NRRD_COMMENT = f"# written by {OURS}"
_META_COMMENT = f"Comment = written by {OURS}"
_META_TYPES = {
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
_NRRD_FLOATS = {"float32": "float", "float64": "double"}
# The fastest: higher levels gain little on images, and this one is enough for labels.
_GZIP_LEVEL = 1


def is_our_nrrd(path: Path) -> bool:
    """Return whether this program wrote a file of NRRD or MetaImage."""
    with path.open("rb") as stream:
        lines = stream.read(1 << 10).decode("latin-1").splitlines()
    return _NRRD_COMMENT in lines or _META_COMMENT in lines


def write_nrrd(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as NRRD, deflated, with its position in space, (x, y, z) or (channel, x, y, z)."""
    sizes: tuple[int, ...] = content.shape[::-1]
    kinds = ["domain"] * 3
    # What NRRD writes for the axis of channels, which is none of space.
    no_direction = no_spacing = ""
    if content.channels is not None:
        sizes, kinds = (content.channels, *sizes), ["vector", *kinds]
        no_direction, no_spacing = "none ", "nan "
    lines = [_NRRD_COMMENT, f"type: {_NRRD_FLOATS.get(content.dtype.name, content.dtype.name)}"]
    lines += [f"dimension: {len(sizes)}"]
    if content.affine is not None:
        direction, origin = to_lps(content.affine)
        columns = direction.T * np.array(voxel_sizes(content.affine)[::-1])[:, None]
        lines += ["space: left-posterior-superior", f"sizes: {_joined(sizes)}"]
        lines += [f"space directions: {no_direction}{' '.join(map(_vector, columns))}"]
    else:
        lines += [f"sizes: {_joined(sizes)}"]
        if content.spacing is not None:
            lines += [f"spacings: {no_spacing}{_joined(content.spacing[::-1])}"]
    lines += [f"kinds: {_joined(kinds)}", "endian: little", "encoding: gzip"]
    if content.affine is not None:
        lines += ['space units: "mm" "mm" "mm"', f"space origin: {_vector(origin)}"]
    _write(path, "\n".join(["NRRD0005", *lines, "", ""]), slabs, content, deflated=True)


def write_meta(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as MetaImage, (x, y, z), with its position in space; channels are interleaved."""
    lines = ["ObjectType = Image", "NDims = 3", _META_COMMENT, "BinaryData = True", "BinaryDataByteOrderMSB = False"]
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
    lines += [f"ElementType = MET_{_META_TYPES[content.dtype.name]}", "ElementDataFile = LOCAL", ""]
    _write(path, "\n".join(lines), slabs, content, deflated=False)


def _write(path: Path, header: str, slabs: NumberedSlabs, content: Content, *, deflated: bool) -> None:
    with path.open("xb") as file:
        file.write(header.encode())
        with compress(file, _GZIP_LEVEL) if deflated else nullcontext(file) as stream:
            for slab in content.in_order(slabs):
                voxels = slab if content.channels is None else np.moveaxis(slab, 0, -1)
                stream.write(np.ascontiguousarray(voxels, content.dtype.newbyteorder("<")).data)


def _joined(values: Iterable[object]) -> str:
    # repr writes as many digits as it takes to read back the same number.
    return " ".join(repr(float(value)) if isinstance(value, float) else str(value) for value in values)


def _vector(values: Iterable[float]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
