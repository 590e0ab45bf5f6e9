"""Files of this program's own that it makes whole: pictures and pages, which bear a mark that they are known by."""

from __future__ import annotations

from pathlib import Path

from dseeds.storage.location import Location, is_remote, open_location

# It stands near the beginning of each.
MARK = "made by dseeds"
_HEAD = 4096


def check_own_file(address: str | Path, overwrite: bool) -> None:
    """Refuse a file to write that would lose something.

    Parameters
    ----------
    address : path or URL
        Of the file.
    overwrite : bool
        Whether to replace an older one that this program made.

    Raises
    ------
    FileExistsError
        If there is a file that is not to be, or must not be, overwritten.
    FileNotFoundError
        If the folder that it is to lie in does not exist.
    """
    place, name = _split(address)
    if not is_remote(address) and not Path(place.address).is_dir():
        raise FileNotFoundError(f"the folder {place.address} for {name} does not exist.")
    try:
        head = place.read_part(name, 0, _HEAD)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise FileExistsError(f"{address} is a folder: name a file.") from None
    if MARK.encode() not in head:
        raise FileExistsError(f"{address} exists and was not made by dseeds; it is not overwritten.")
    if not overwrite:
        raise FileExistsError(
            f"{address} exists; choose another name, or overwrite it with overwrite=True (--overwrite)."
        )


def write_own_file(address: str | Path, content: bytes) -> None:
    """Write a file whole, or not at all."""
    place, name = _split(address)
    place.write(name, content)


def _split(address: str | Path) -> tuple[Location, str]:
    folder, _, name = open_location(address).address.rpartition("/")
    return open_location(folder or "/"), name
