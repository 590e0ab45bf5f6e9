"""Files of known formats that are not read, and what to do with them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NoReturn

from dseeds.io.source import SourceQuery, shorten

_MICROSCOPES = (".czi", ".lif", ".lof", ".nd2", ".oib", ".oif", ".oir", ".vsi", ".zvi", ".ets", ".mrxs")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_NUMPY_ARCHIVE = ".npz"


def is_unreadable(path: Path) -> bool:
    """Return whether a path is a file of a known format that is not read, by its ending."""
    return path.name.lower().endswith((*_MICROSCOPES, *_ARCHIVES, _NUMPY_ARCHIVE)) and path.is_file()


def refuse_unreadable(path: Path, query: SourceQuery) -> NoReturn:
    """Raise a ValueError that says what a file is, and what to do."""
    name = path.name.lower()
    if name.endswith(_NUMPY_ARCHIVE):
        what = f"an archive of NumPy's arrays{_list_arrays(path)}"
        advice = "load it with numpy.load, and save the array that you want as .npy"
    elif name.endswith(_ARCHIVES):
        what, advice = "an archive", "unpack it, and pass what it holds"
    else:
        what, advice = "in a microscope's own format", "convert it to OME-Zarr, for example with bioformats2raw"
    raise ValueError(f"{path} is {what}, which is not read: {advice}")


def _list_arrays(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile):
        return ""
    return f" ({shorten(', '.join(names), 200)})"
