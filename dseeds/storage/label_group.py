"""Zarr groups of labels: writing and reading labels, and beginning, publishing and removing an output.

The metadata that turns a folder into an image is written last. Files that this program did not write are never touched.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AXES, Box
from dseeds.storage import zarr_arrays
from dseeds.storage.location import LocalLocation, Location
from dseeds.storage.ownership import MARKER, SCRATCH, check_folder, check_overwrite
from dseeds.storage.zarr_arrays import Layout, ScratchCorrupted

# Endings that a Zarr folder must not have, because other programs would take it for a file of that format.
FILE_ENDINGS = (
    *(".nii", ".nii.gz", ".tif", ".tiff", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5", ".hdf5", ".npy"),
    *(".mgh", ".mgz", ".hdr", ".img", ".mnc", ".dcm", ".npz", ".hdf", ".nc", ".btf", ".ims", ".czi", ".lif", ".nd2"),
    *(
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".bmp",
        ".svg",
        ".pdf",
        ".html",
        ".txt",
        ".md",
        ".log",
        ".xml",
        ".json",
        ".yaml",
    ),
    *(".csv", ".tsv", ".xlsx", ".parquet", ".feather", ".pkl", ".mat", ".vtk", ".vti", ".stl", ".obj", ".ply"),
    *(".zip", ".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z"),
)
ATTRIBUTE = "dseeds"
# Levels of a pyramid, including the full resolution: each halves at least one axis.
MAX_PYRAMID_LEVELS = 64
# The version of Zarr that a group is in: 3, or 2 for labels inside images that are.
ZarrFormat: TypeAlias = Literal[2, 3]
_GROUP_NAMES = ("zarr.json", ".zattrs", ".zgroup")
_ARRAY_NAMES = ("zarr.json", ".zarray", ".zattrs")
_COPY = re.compile(r"labels-[0-9a-f]{32}")
_LEVEL = re.compile("|".join(f"{1 << level}x" for level in range(1, 17)))
# A file that zarr was writing when it was killed.
_PARTIAL = re.compile(r"(?:zarr|\d+)\.[0-9a-f]{32}\.partial")
# The folder for the records of edits. Among this program's attributes, `EDITS` is the number of edits so far, of which
# each undoing is one, and `EDITING` the number of one that is unfinished: some of its voxels may be changed.
EDITS, EDITING = "edits", "editing"
# What all edits together have moved, see `dseeds.storage.edit_log.EditRecord`.
MOVED = "moved"
# A file of our own that was being written when the process was killed.
_UNRENAMED = re.compile(r"\.[0-9a-f]{32}\.partial")
_EDIT_FILE = re.compile(rf"\d{{6,}}(?:/(?:edit\.json|\d+|{_UNRENAMED.pattern}))?")


@dataclass(frozen=True)
class LabelGroup:
    """An array of labels in a group: in the target, or in scratch if the target is a NIfTI file.

    `run` has to own the unfinished group before labels are written: otherwise, a late task of a run that was replaced
    would write into the output of another.

    With a `zarr_format` of 2, chunks lie where Zarr v2 looks for them, and are encoded alike in both versions. Until
    `publish_labels` describes them in that version, they are an array of Zarr v3.
    """

    location: Location
    name: str = "0"
    run: str = ""
    zarr_format: ZarrFormat = 3

    def coarser(self, number: int) -> LabelGroup:
        """Return the array of a coarser level of the pyramid of these labels, or this one for 0."""
        return replace(self, name=self.name.removesuffix("0") + str(number)) if number else self

    def create(self, layout: Layout) -> None:
        """Create the array, empty, unless it exists."""
        if self.zarr_format == 2:
            # Of a run that was killed while it published.
            self.location.delete([f"{self.name}/.zarray"])
            layout.create(self.location.zarr(self.name), chunk_key_encoding={"name": "v2", "separator": "/"})
        else:
            layout.create(self.location.zarr(self.name), dimension_names=AXES)

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write labels in a box of whole shards; raise a RuntimeError if the group is not this run's to write to."""
        if self.run:
            check_written_by(self.location, self.run)
        zarr_arrays.write_array(self.location, self.name, box, values, self.run)
        # Damage to scratch shows when it is read, but labels are not read before they are published.
        zarr_arrays.sync_shards(self.location, self.name, box.slices, self.run)

    def read(self, box: Box) -> NDArray[Any]:
        """Read the labels in a box; raise ScratchCorrupted if some are missing."""
        return zarr_arrays.read_array(self.location, self.name, box, self.run)

    def is_complete(self, box: Box) -> bool:
        """Return whether all labels in a box exist and can be read."""
        try:
            self.read(box)
        except (ScratchCorrupted, FileNotFoundError):
            return False
        return True


def level_name(level: int) -> str:
    """Return the name of a level's label array: 0 for the supervoxels, 1 for those of twice the step.

    >>> level_name(0), level_name(2)
    ('0', '4x/0')
    """
    return f"{1 << level}x/0" if level else "0"


def parents_name(level: int) -> str:
    """Return the name of the table that maps the supervoxels of the previous level to their parents in this one.

    >>> parents_name(1)
    '2x/parents'
    """
    return f"{1 << level}x/parents"


def is_our_group(target: Location) -> bool:
    """Return whether this program wrote a group of labels, or of values painted from them, or of an imported image."""
    if target.read(MARKER) is not None:
        return True
    try:
        attributes = _metadata(target)[ATTRIBUTE]
        origin = attributes.get("painted", attributes.get("imported"))
        return isinstance(attributes.get("supervoxels"), int) or isinstance(origin, str)
    except (AttributeError, OSError, ValueError, LookupError, TypeError):
        return False


def has_metadata(target: Location) -> bool:
    """Return whether a target is a group of Zarr."""
    return any(target.read(name) is not None for name in _GROUP_NAMES)


def _metadata(target: Location) -> Any:
    """Read the attributes of a group; those of OME-Zarr as ``ome``, in either version of Zarr."""
    text = target.read("zarr.json")
    if text is not None:
        return json.loads(text)["attributes"]
    attributes = json.loads(target.read(".zattrs") or b"")
    return {**attributes, "ome": attributes}


def _is_our_name(name: str, levels: int) -> bool:
    """Return whether this program writes a file of this name into a group with this many pyramid levels."""
    first, *rest = name.split("/")
    if not rest:
        return first in {*_GROUP_NAMES, MARKER} or _UNRENAMED.fullmatch(first) is not None
    if first == EDITS:
        return _EDIT_FILE.fullmatch("/".join(rest)) is not None
    if _PARTIAL.fullmatch(rest[-1]):
        rest[-1] = rest[-1].partition(".")[0]
    pyramid = {str(level) for level in range(levels)}
    arrays = pyramid
    if first == SCRATCH or _LEVEL.fullmatch(first):
        scratch = first == SCRATCH
        first, *rest = rest
        if not rest:
            return first in {*_GROUP_NAMES, "zarr"}
        arrays = {*pyramid, "parents"} if not scratch else {first} if _COPY.fullmatch(first) else set()
    is_chunk = all(part.isdecimal() for part in (rest[1:] if rest[0] == "c" else rest))
    is_metadata = len(rest) == 1 and rest[0] in (*_ARRAY_NAMES, "zarr")
    return first in arrays and (is_metadata or is_chunk)


def _is_our_folder(name: str, levels: int) -> bool:
    return name == EDITS or _is_our_name(f"{name}/zarr.json", levels)


def _pyramid_levels(target: Location) -> int:
    """Return the number of pyramid levels of a group, or the largest possible number while it is unfinished."""
    if target.read(MARKER) is not None:
        return MAX_PYRAMID_LEVELS
    try:
        return min(MAX_PYRAMID_LEVELS, len(_metadata(target)["ome"]["multiscales"][0]["datasets"]))
    except (ValueError, LookupError, TypeError):
        return 1


def _find_stranger(target: Location) -> str | None:
    """Return the name of a file in a group that this program does not write, if there is one."""
    levels = _pyramid_levels(target)
    if not isinstance(target, LocalLocation):
        return next((name for name in target.names() if not _is_our_name(name, levels)), None)
    for path in target.path.rglob("*"):
        name = path.relative_to(target.path).as_posix()
        # A folder is ours if it is named like one of our arrays; otherwise its contents decide.
        is_ours = _is_our_name(name, levels) or (path.is_dir() and _is_our_folder(name, levels))
        if path.is_symlink() or not is_ours:
            return name
    return None


def check_target(target: Location, overwrite: bool) -> None:
    """Raise an OSError or ValueError unless a group of labels may be written to a target."""
    name = target.address.rpartition("/")[2]
    if name.lower().endswith(FILE_ENDINGS):
        raise ValueError(
            f"{name} would be a file, but the output is a Zarr folder: name a target such as labels.zarr, and "
            "convert it with dseeds export."
        )
    check_folder(target)
    if isinstance(target, LocalLocation):
        exists = target.path.exists()
    else:
        exists = has_metadata(target) or next(target.names(), None) is not None
    if exists:
        is_ours = is_our_group(target)
        stranger = _find_stranger(target) if is_ours else None
        if is_ours and not stranger and not overwrite and is_edited(target):
            raise FileExistsError(
                f"{target.address} exists and was edited after it was made: choose another target, or lose the edits "
                f"with overwrite=True (--overwrite)."
            )
        check_overwrite(target.address, overwrite, is_ours=is_ours, stranger=stranger)


def begin_target(target: Location, run: str, overwrite: bool = False) -> None:
    """Replace an older output by an unfinished one of a run, unless the run has begun it already.

    The target is checked again, because something may have been written there after the run started.
    """
    if written_by(target) == run:
        return
    check_target(target, overwrite)
    remove_target(target)
    _mark(target, run)


@contextmanager
def unfinished_target(target: Location, overwrite: bool) -> Iterator[str]:
    """Begin an output for a new run, which is yielded, and remove it again if the block fails."""
    run = uuid.uuid4().hex[:16]
    begin_target(target, run, overwrite)
    try:
        yield run
    except BaseException:
        # Another run may have taken the target over.
        if written_by(target) == run:
            remove_target(target)
        raise


def written_by(target: Location) -> str | None:
    """Return the run that an unfinished output belongs to."""
    try:
        return str(json.loads(target.read(MARKER) or b"")["run"])
    except (ValueError, KeyError, TypeError):
        return None


def check_written_by(target: Location, run: str) -> None:
    """Raise RuntimeError unless a target is the unfinished output of a run."""
    if written_by(target) != run:
        raise RuntimeError(
            f"{target.address} is no longer this run's to write to: another run replaced it, or it was removed."
        )


def published_by(target: Location) -> str | None:
    """Return the run that wrote a finished output; None if it was edited since."""
    return _published(target, "run")


def published_product(target: Location) -> str | None:
    """Return the hash of what a finished output depends on; None if it was edited since."""
    return _published(target, "product")


def is_edited(target: Location) -> bool:
    """Return whether a finished output was edited since a run wrote it, even if the edits were undone."""
    attribute = own_attribute(target)
    return bool(attribute.get(EDITS) or attribute.get(EDITING))


def own_attribute(target: Location) -> dict[str, Any]:
    """Return this program's attribute of a finished group; empty if there is none."""
    try:
        return dict(_metadata(target)[ATTRIBUTE])
    except (ValueError, LookupError, TypeError):
        return {}


def update_own_attribute(target: Location, entries: Mapping[str, Any]) -> None:
    """Replace entries of this program's attribute of a finished group, at once; those that are None are removed."""
    name = "zarr.json" if target.read("zarr.json") is not None else ".zattrs"
    document = json.loads(target.read(name) or b"")
    attributes = document["attributes"] if name == "zarr.json" else document
    merged = {**attributes[ATTRIBUTE], **entries}
    attributes[ATTRIBUTE] = {key: value for key, value in merged.items() if value is not None or key not in entries}
    target.write(name, _as_json(document))


def _published(target: Location, key: str) -> str | None:
    """Return an entry of this program's attribute of a finished output; None if there is none."""
    if target.read(MARKER) is not None:
        return None
    try:
        return None if is_edited(target) else str(_metadata(target)[ATTRIBUTE][key])
    except (ValueError, KeyError, TypeError):
        return None


def _mark(target: Location, run: str) -> None:
    text = {"dseeds": "voxels are being written here; this is no finished output", "run": run}
    target.write(MARKER, json.dumps(text).encode())


def remove_target(target: Location) -> None:
    """Remove what this program wrote to a target, and nothing else."""
    if next(target.names(), None) is None:
        return
    # The metadata goes first and the marker last: an interrupted removal leaves an unfinished output of ours. A full
    # disk has no space for the marker, but can still be emptied.
    with suppress(OSError):
        _mark(target, "")
    target.delete(_GROUP_NAMES)
    for name in {name.partition("/")[0] for name in target.names()}:
        if name.isdecimal() or name in (SCRATCH, EDITS) or _LEVEL.fullmatch(name):
            target.clear(name)
    target.delete([MARKER])
    if isinstance(target, LocalLocation):
        with suppress(OSError):
            target.delete(path.name for path in target.path.iterdir() if _UNRENAMED.fullmatch(path.name))
            target.path.rmdir()


def publish_labels(
    target: Location,
    attributes: Mapping[str, Any],
    levels: Sequence[Mapping[str, Any]] = (),
    zarr_format: ZarrFormat = 3,
) -> None:
    """Write the metadata that makes a target a finished group, as the last step.

    `levels` are the attributes of each coarser level; their groups are written first.
    """
    groups = {**{f"{1 << level}x/": named for level, named in enumerate(levels, 1)}, "": attributes}
    if zarr_format == 2:
        _publish_v2(target, groups)
    else:
        for prefix, named in groups.items():
            document = {"zarr_format": 3, "node_type": "group", "attributes": dict(named)}
            target.write(f"{prefix}zarr.json", _as_json(document))
    target.delete([MARKER])


def _publish_v2(target: Location, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Describe groups, and the levels that their attributes list, in Zarr v2, and no longer in v3."""
    arrays = [
        f"{prefix}{dataset['path']}"
        for prefix, attributes in groups.items()
        for dataset in attributes["multiscales"][0]["datasets"]
    ]
    for name in arrays:
        # None if an earlier attempt was killed after it had described this array.
        text = target.read(f"{name}/zarr.json")
        if text is not None:
            target.write(f"{name}/.zarray", _as_json(_array_v2(json.loads(text))))
    for prefix, attributes in groups.items():
        target.write(f"{prefix}.zattrs", _as_json(attributes))
        target.write(f"{prefix}.zgroup", _as_json({"zarr_format": 2}))
    target.delete(f"{name}/zarr.json" for name in arrays)


def _array_v2(array: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description in Zarr v2 of an array of Zarr v3 that `LabelGroup` created."""
    [blosc] = (codec["configuration"] for codec in array["codecs"] if codec["name"] == "blosc")
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[blosc["shuffle"]]
    return {
        "zarr_format": 2,
        "shape": array["shape"],
        "chunks": array["chunk_grid"]["configuration"]["chunk_shape"],
        "dtype": np.dtype(array["data_type"]).newbyteorder("<").str,
        "compressor": {
            "id": "blosc",
            **{key: blosc[key] for key in ("cname", "clevel", "blocksize")},
            "shuffle": shuffle,
        },
        "fill_value": array["fill_value"],
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }


def _as_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(document), indent=2).encode()
