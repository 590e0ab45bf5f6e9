"""Ownership: whether an output may be written at an address, or would replace something that is not ours.

The decision is made here and nowhere else. A format brings only its own test of what it recognises as its output, and
removes an older output itself. Call a check before any work starts, and again before an output is moved into place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dseeds.storage.location import LocalLocation, Location, is_remote, open_parent

# An unfinished output contains this file; it is removed last of all.
MARKER = "dseeds-incomplete.json"
# The folder in an unfinished output for intermediate data.
SCRATCH = "scratch"


def remove_marker(location: Location) -> None:
    """Remove the marker of an unfinished output, the last of its files, and its folder if nothing else is left."""
    location.delete([MARKER])
    if isinstance(location, LocalLocation):
        with suppress(OSError):
            location.path.rmdir()


def check_overwrite(
    address: str | os.PathLike[str], overwrite: bool, *, is_ours: bool, stranger: str | None = None, kind: str = ""
) -> None:
    """Raise a FileExistsError unless what exists at an address may be replaced.

    `stranger` is a file inside it that this program did not write. `kind`, such as ``"a phantom"``, is what it has to
    be, where not every output of this program may be replaced.
    """
    if not is_ours:
        kind = f" as {kind}" if kind else ""
        raise FileExistsError(
            f"{address} exists and was not written by dseeds{kind}, so it is not overwritten: name another target."
        )
    if stranger:
        raise FileExistsError(
            f"{address} holds {stranger}, which dseeds did not write, so it is not overwritten: name another target."
        )
    if not overwrite:
        raise FileExistsError(
            f"{address} exists; choose another target, or overwrite it with overwrite=True (--overwrite)."
        )


def check_parent(path: Path, purpose: str = "target") -> None:
    """Raise FileNotFoundError unless the folder that is to hold a local file or folder exists."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} for the {purpose} does not exist.")


def check_folder(location: Location, purpose: str = "target") -> None:
    """Raise an OSError unless a folder exists at a location, or can be created there. In a bucket it always can."""
    if not isinstance(location, LocalLocation):
        return
    path = location.path
    check_parent(path, purpose)
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link: name the path that it leads to.")
    if path.exists() and not path.is_dir():
        check_overwrite(path, overwrite=False, is_ours=False)


def check_file(
    address: str | os.PathLike[str],
    overwrite: bool,
    is_ours: Callable[[Location, str], bool],
    purpose: str = "target",
) -> None:
    """Raise a FileExistsError or FileNotFoundError unless a single file may be written at an address.

    `is_ours` returns whether this program wrote the file of a name at a location. It may raise FileNotFoundError if
    there is none, and ValueError or IsADirectoryError if it is something else. `purpose` is what the message calls the
    file.
    """
    location, name = open_parent(address)
    if isinstance(location, LocalLocation):
        check_parent(location.path / name, purpose)
    try:
        ours = is_ours(location, name)
    except FileNotFoundError:
        return
    except (IsADirectoryError, ValueError):
        ours = False
    check_overwrite(address, overwrite, is_ours=ours)


def check_apart(target: str, *sources: str | None) -> None:
    """Raise FileExistsError if a target is one of its sources, contains one, or lies in the Zarr array of one."""
    for source in sources:
        if source is None or is_remote(target) != is_remote(source):
            continue
        if _contains(target, source):
            raise FileExistsError(f"{target} is the source, or holds it: name another target.")
        if _contains(source, target) and (is_remote(source) or _is_zarr_array(Path(source))):
            raise FileExistsError(f"{target} lies in the source, the Zarr array {source}: name another target.")


def _is_zarr_array(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zarray"))


def _contains(target: str, source: str) -> bool:
    if is_remote(target):
        return f"{source}/".startswith(f"{target}/")
    path = Path(source).resolve()
    return Path(target).resolve() in {path, *path.parents}
