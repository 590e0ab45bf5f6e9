"""The output: how labels are written, how an output of ours is recognised, begun, published and removed.

What makes a target an image is written last, and what is not this program's is never touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dseeds.core.geometry import AXES, Box
from dseeds.storage import zarr_arrays
from dseeds.storage.location import Location, is_remote, open_location
from dseeds.storage.zarr_arrays import Layout, ScratchCorrupted

MARKER, SCRATCH = "dseeds-incomplete.json", "scratch"
# What no folder of Zarr should be called, for other programs would take it for a file of theirs.
FILE_ENDINGS = (".nii", ".nii.gz", ".tif", ".tiff", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5", ".hdf5", ".npy")
ATTRIBUTE = "dseeds"
# Levels of a pyramid, with the full resolution: each but the first is at most half as long along some axis.
MOST_LEVELS = 64
_COPY = re.compile(r"labels-[0-9a-f]{32}")
# What zarr leaves of a file that it was writing when it was killed.
_LEVEL = re.compile("|".join(f"{1 << level}x" for level in range(1, 17)))
_PARTIAL = re.compile(r"(?:zarr|\d+)\.[0-9a-f]{32}\.partial")


@dataclass(frozen=True)
class LabelGroup:
    """The array that labels are written to: in the target or, on their way to NIfTI, in scratch.

    Attributes
    ----------
    address : str
        The folder or bucket's prefix that holds it.
    name : str
        The array in it.
    run : str, optional
        The run whose unfinished output it has to be to be written to: a task that comes late finds another's there.
    """

    address: str
    name: str = "0"
    run: str = ""

    def create(self, layout: Layout) -> None:
        """Create the array, empty, unless it is there."""
        layout.create(open_location(self.address).zarr(self.name), dimension_names=AXES)

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write labels in a box (z, y, x) of whole shards.

        Raises
        ------
        RuntimeError
            If the output is not the run's, or is no longer unfinished.
        """
        if self.run and written_by(open_location(self.address)) != self.run:
            raise RuntimeError(f"{self.address} is no longer this run's to write to.")
        zarr_arrays.write_array(self.address, self.name, box, values, self.run)
        # Scratch is noticed to be damaged when it is read. Labels are read by nobody before they are published.
        zarr_arrays.settle(self.address, self.name, box.slices, self.run)

    def read(self, box: Box) -> NDArray[Any]:
        """Read labels; `ScratchCorrupted` if they are not all there."""
        return zarr_arrays.read_array(self.address, self.name, box, self.run)

    def whole(self, box: Box) -> bool:
        """Tell whether all labels in a box are there and can be read."""
        try:
            self.read(box)
        except (ScratchCorrupted, FileNotFoundError):
            return False
        return True


def level_name(level: int) -> str:
    """Name the array of a level's labels: 0 for the supervoxels, 1 for those of twice the step.

    >>> level_name(0), level_name(2)
    ('0', '4x/0')
    """
    return f"{1 << level}x/0" if level else "0"


def parents_name(level: int) -> str:
    """Name the table that tells which supervoxel of a level each one of the level before it is part of.

    >>> parents_name(1)
    '2x/parents'
    """
    return f"{1 << level}x/parents"


def is_ours(target: Location) -> bool:
    """Tell whether a group of labels, of what was painted by them or imported, was written by this program."""
    if target.read(MARKER) is not None:
        return True
    try:
        noted = json.loads(target.read("zarr.json") or b"")["attributes"][ATTRIBUTE]
        return isinstance(noted.get("supervoxels"), int) or isinstance(noted.get("painted", noted.get("imported")), str)
    except (AttributeError, OSError, ValueError, KeyError, TypeError):
        return False


def _is_our_name(name: str, levels: int) -> bool:
    """Tell whether a file is one that this program writes into a group of so many levels of a pyramid."""
    first, *rest = name.split("/")
    if not rest:
        return first in {"zarr.json", MARKER}
    if _PARTIAL.fullmatch(rest[-1]):
        rest[-1] = rest[-1].partition(".")[0]
    pyramid = {str(level) for level in range(levels)}
    arrays = pyramid
    if first == SCRATCH or _LEVEL.fullmatch(first):
        scratch = first == SCRATCH
        first, *rest = rest
        if not rest:
            return first in {"zarr.json", "zarr"}
        arrays = {*pyramid, "parents"} if not scratch else {first} if _COPY.fullmatch(first) else set()
    chunk = rest[0] == "c" and all(part.isdecimal() for part in rest[1:])
    return first in arrays and (rest in (["zarr.json"], ["zarr"]) or chunk)


def _pyramid_levels(target: Location) -> int:
    """Tell how many levels the pyramid of an output of ours has, or may have while it is unfinished."""
    if target.read(MARKER) is not None:
        return MOST_LEVELS
    try:
        datasets = json.loads(target.read("zarr.json") or b"")["attributes"]["ome"]["multiscales"][0]["datasets"]
        return min(MOST_LEVELS, len(datasets))
    except (ValueError, LookupError, TypeError):
        return 1


def _stranger(target: Location) -> str | None:
    """Find something in a group of labels that this program does not write."""
    levels = _pyramid_levels(target)
    if is_remote(target.address):
        return next((name for name in target.names() if not _is_our_name(name, levels)), None)
    folder = Path(target.address)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        # Folders are known by what lies in them, but for those whose names are enough.
        known = _is_our_name(name, levels) or (path.is_dir() and _is_our_name(f"{name}/zarr.json", levels))
        if path.is_symlink() or not known:
            return name
    return None


def check_target(target: Location, overwrite: bool) -> None:
    """Refuse a target that would lose something.

    Raises
    ------
    FileExistsError
        If the target exists and is not to be overwritten, or is not this program's output.
    FileNotFoundError
        If the folder that it is to lie in does not exist.
    ValueError
        If its name is that of a file of another format.
    """
    where = target.address
    name = where.rpartition("/")[2]
    if name.lower().endswith(FILE_ENDINGS):
        raise ValueError(
            f"{name} would be a file, but what is written here is Zarr: name a target such as labels.zarr, and make a "
            "file of it with dseeds export."
        )
    if not is_remote(where):
        _check_local(Path(where))
    elif target.read("zarr.json") is None and next(target.names(), None) is None:
        return
    if not is_remote(where) and not Path(where).exists():
        return
    if not is_ours(target):
        raise FileExistsError(f"{where} exists and was not written by dseeds; it is not overwritten.")
    stranger = _stranger(target)
    if stranger:
        raise FileExistsError(f"{where} holds {stranger}, which dseeds did not write; it is not overwritten.")
    if not overwrite:
        raise FileExistsError(
            f"{where} exists; choose another target, or overwrite it with overwrite=True (--overwrite)."
        )


def _check_local(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} for the target does not exist.")
    if target.is_symlink():
        raise FileExistsError(f"{target} is a link; name the place that it leads to.")
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} exists and was not written by dseeds; it is not overwritten.")


def check_apart(target: str, *paths: str | None) -> None:
    """Refuse a target that is or holds what is read.

    Raises
    ------
    FileExistsError
        If it does.
    """
    for path in paths:
        if path is not None and is_remote(target) == is_remote(path) and _holds(target, path):
            raise FileExistsError(f"{target} is the source, or holds it: name another target.")


def _holds(target: str, path: str) -> bool:
    if is_remote(target):
        return target in {path, *(path[:end] for end, letter in enumerate(path) if letter == "/")}
    source = Path(path).resolve()
    return Path(target).resolve() in {source, *source.parents}


def begin_target(target: Location, run: str, overwrite: bool = False) -> None:
    """Remove an older output of ours, and mark the target as incomplete and a run's; not if it is that run's already.

    Raises
    ------
    FileExistsError
        As `check_target`: something may have come to be there since the run began.
    """
    if written_by(target) == run:
        return
    check_target(target, overwrite)
    remove_target(target)
    _mark(target, run)


def written_by(target: Location) -> str | None:
    """Give the run that a target is unfinished of."""
    try:
        return str(json.loads(target.read(MARKER) or b"")["run"])
    except (ValueError, KeyError, TypeError):
        return None


def published_by(target: Location) -> str | None:
    """Give the run that a target is the finished output of."""
    if target.read(MARKER) is not None:
        return None
    try:
        return str(json.loads(target.read("zarr.json") or b"")["attributes"][ATTRIBUTE]["run"])
    except (ValueError, KeyError, TypeError):
        return None


def _mark(target: Location, run: str) -> None:
    text = {"dseeds": "voxels are being written here; this is no finished output", "run": run}
    target.write(MARKER, json.dumps(text).encode())


def remove_target(target: Location) -> None:
    """Remove what this program wrote, and nothing else."""
    if next(target.names(), None) is None:
        return
    # What makes it an image goes first and the marker last: cut short, it is unfinished, but known as ours. A full disk
    # takes no marker, but can be emptied.
    with suppress(OSError):
        _mark(target, "")
    target.delete(["zarr.json"])
    for name in {name.partition("/")[0] for name in target.names()}:
        if name.isdecimal() or name == SCRATCH or _LEVEL.fullmatch(name):
            target.clear(name)
    target.delete([MARKER])
    if not is_remote(target.address):
        with suppress(OSError):
            Path(target.address).rmdir()


def publish_labels(target: Location, attributes: Mapping[str, Any], levels: Sequence[Mapping[str, Any]] = ()) -> None:
    """Make the target a group with these attributes, the last thing that is written; before it, groups of its levels.

    Parameters
    ----------
    target : Place
        The target.
    attributes : dict
        Of the group.
    levels : sequence of dict
        What readers of OME-Zarr want to know of each coarser level.
    """
    for level, ome in enumerate(levels, 1):
        target.write(f"{1 << level}x/zarr.json", _group({"ome": ome}))
    target.write("zarr.json", _group(attributes))
    target.delete([MARKER])


def _group(attributes: Mapping[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}, indent=2).encode()
