"""Files and folders of known formats that are not read, and what to do with them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NoReturn

from dseeds.io.source import SourceQuery, shorten

_MICROSCOPES = (".czi", ".lif", ".lof", ".nd2", ".oib", ".oif", ".oir", ".vsi", ".zvi", ".ets", ".mrxs")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_NUMPY_ARCHIVE = ".npz"
_TO_OME_ZARR = "convert it to OME-Zarr"


def is_unreadable(path: Path) -> bool:
    """Return whether a path is a file or a folder of a known format that is not read."""
    return _describe(path) is not None


def refuse_unreadable(path: Path, query: SourceQuery) -> NoReturn:
    """Raise a ValueError that says what a file or a folder is, and what to do."""
    what, advice = _describe(path) or ("of an unknown format", _TO_OME_ZARR)
    raise ValueError(f"{path} is {what}, which is not read: {advice}")


def _describe(path: Path) -> tuple[str, str] | None:
    """Return what is at a path, and what to do; None for anything else."""
    name = path.name.lower()
    if path.is_dir():
        return _describe_folder(path)
    if name.endswith(_NUMPY_ARCHIVE):
        advice = "load it with numpy.load, and save the array that you want as .npy"
        return f"an archive of NumPy's arrays{_list_arrays(path)}", advice
    if name.endswith(_ARCHIVES):
        return "an archive", "unpack it, and pass what it holds"
    if name.endswith(_MICROSCOPES):
        return "in a microscope's own format", f"{_TO_OME_ZARR}, for example with bioformats2raw"
    if name.endswith(_PICTURES):
        return "a picture", "save the planes as TIFF, and pass their folder"
    return None


def _describe_folder(path: Path) -> tuple[str, str] | None:
    names = [file.name.lower() for file in path.iterdir()]
    if "attributes.json" in names:
        return "a folder of N5", _TO_OME_ZARR
    if "info" in names:
        return "a folder of neuroglancer's precomputed format", _TO_OME_ZARR
    if any(name.endswith(_PICTURES) for name in names):
        return "a folder of pictures", "save them as TIFF"
    return None


def _list_arrays(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile):
        return ""
    return f" ({shorten(', '.join(names), 200)})"
