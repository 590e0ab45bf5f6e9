"""The dispatcher: which module opens a file, an array or an image that is already open.

A new format needs a row in `_FILE_FORMATS`; `dseeds.io.source` explains how to write one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from nibabel.spatialimages import SpatialImage

from dseeds.core.dtypes import unmask
from dseeds.core.duck_arrays import is_dask_array, is_data_array, is_itk_image
from dseeds.core.lazy_module import LazyModule
from dseeds.io.formats.dicom import is_dicom, open_dicom
from dseeds.io.formats.hdf5 import is_hdf5, open_hdf5, split_source
from dseeds.io.formats.imaris import is_imaris, open_imaris
from dseeds.io.formats.itk import open_itk_image
from dseeds.io.formats.nifti import open_nifti_file, open_nifti_image
from dseeds.io.formats.npy import is_npy, open_npy
from dseeds.io.formats.nrrd import is_nrrd, open_nrrd
from dseeds.io.formats.ome_zarr import is_zarr_image, open_zarr, open_zarr_node
from dseeds.io.formats.tiff import is_tiff, open_tiff, split_image
from dseeds.io.formats.unreadable import is_unreadable, refuse_unreadable
from dseeds.io.source import ArraySource, Source, SourceQuery, resolve_address, split_channels

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

# How deep, and in how many folders, an image is looked for.
_DEPTH, _MOST_FOLDERS = 3, 1000

_Opener: TypeAlias = Callable[[Path, SourceQuery], Source | tuple[Source, ...]]


def _open_folder(path: Path, query: SourceQuery) -> Source:
    """Open a folder as Zarr, which explains what it has to hold; raise a ValueError that names an image inside it."""
    with suppress(OSError):
        for depth in range(1, _DEPTH + 1):
            folders = islice((entry for entry in path.glob("*/" * depth) if entry.is_dir()), _MOST_FOLDERS)
            for folder in sorted(folders):
                if any(is_format(folder) for is_format in (is_zarr_image, is_dicom, is_tiff)):
                    raise ValueError(f"{path} is no image itself, but holds {folder.relative_to(path)}: pass {folder}")
    return open_zarr(path, query)


# The formats of files and folders: how to recognise one, and how to open it. The first that fits is taken.
_FILE_FORMATS: tuple[tuple[Callable[[Path], bool], _Opener], ...] = (
    (is_zarr_image, open_zarr),
    (is_imaris, open_imaris),
    (is_hdf5, open_hdf5),
    (is_nrrd, open_nrrd),
    (is_npy, open_npy),
    (is_dicom, open_dicom),
    (is_tiff, open_tiff),
    (is_unreadable, refuse_unreadable),
    (Path.is_dir, _open_folder),
    # NIfTI, and everything else that nibabel reads.
    (Path.exists, open_nifti_file),
)


def open_source(source: object, *, volume: int | None = None, level: int = 0) -> Source:
    """Open an image as one 3D volume. Voxels are loaded only from formats that must be read whole.

    Parameters
    ----------
    source : str, path, ndarray, dask.array.Array, xarray.DataArray, zarr.Array, zarr.Group, nibabel or SimpleITK image
        An array or an open image, or the path of one of

        - NIfTI: ``.nii``, ``.nii.gz``, ``.hdr`` with ``.img``; other formats that nibabel reads are loaded whole;
        - a Zarr array (v2 or v3) or an OME-Zarr image; an array inside an image, as ``image.zarr/1``, is its level 1;
          ``image.zarr:1`` chooses the second of several images in a group;
        - DICOM: a folder with a series, or a file of many frames that say where they lie;
        - TIFF: a file, or a folder with a file for each plane; ``FILE.ome.tif:1`` chooses the second of several images
          in a file, which may also be chosen by its name, as ``FILE.ome.tif:NAME``;
        - NRRD (``.nrrd``, ``.nhdr``), MetaImage (``.mha``, ``.mhd``) or NumPy (``.npy``);
        - HDF5 (``.h5``, ``.hdf5``); ``FILE.h5:/path/to/dataset`` chooses one of several datasets;
        - Imaris (``.ims``).

        Zarr may also be at a URL: ``s3://``, ``gs://`` and ``az://``, see `dseeds.storage.location`, or another that
        fsspec knows. A Dask array is computed once, block by block, into Dask's ``temporary-directory``.

        Axes are (x, y, z, ...) in NIfTI and MetaImage, and those that the file names, in any order, in OME-Zarr, TIFF,
        NRRD (kinds), HDF5 (axistags, labels of dimensions) and Zarr (dimension names); they are (..., z, y, x)
        elsewhere. A file with two axes of space is a volume of one plane; arrays in memory need three. Further axes of
        size 1, leading or trailing, are dropped. What is masked in a masked array is NaN.
    volume : int, optional
        The number of the volume, from 0, where one further axis is longer than 1: the fourth of a NIfTI file,
        ``t`` or ``c`` of an OME-Zarr image, the first of any other array; in DICOM, one of the volumes that differ in
        stack, moment, echo, b-value and so on, sorted by these.
    level : int, default 0
        The level of an OME-Zarr image; 0 is the full resolution.

    Returns
    -------
    Source

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    PermissionError, ConnectionError
        If it may not be read, or its store cannot be reached.
    ValueError
        If the image cannot be read, is not a 3D volume of real numbers, or holds several volumes and `volume`
        is missing.
    TypeError
        If `source` is none of the above.

    Examples
    --------
    >>> series = np.zeros((2, 30, 40, 50), "uint8")
    >>> open_source(series, volume=1).shape
    (30, 40, 50)
    >>> open_source(series)
    Traceback (most recent call last):
    dseeds.io.source.SeveralVolumes: the array holds 2 volumes: pass volume= (--volume on the command line), ...
    """
    [opened] = open_voxels(source, SourceQuery(volume, level=level))
    return opened


def open_voxels(source: object, query: SourceQuery) -> tuple[Source, ...]:
    """Open what `open_source` takes: one source or, for an image, one for all channels that are stored together."""
    opened = _open(source, query)
    sources = opened if isinstance(opened, tuple) else (opened,)
    first = sources[0]
    if query.level and first.kind != "zarr":
        raise ValueError(f"{first.path or first.name} is not an OME-Zarr image with levels: leave out level (--level)")
    return sources


def _open(source: object, query: SourceQuery) -> Source | tuple[Source, ...]:
    match source:
        case np.ndarray():
            # As plain arrays: those of np.matrix have always two axes.
            values = np.asarray(unmask(source, is_image=query.is_image))
            return tuple(map(ArraySource, split_channels(values, query)))
        case str() | os.PathLike():
            address = resolve_address(str(os.fspath(source)))
            return open_zarr(address, query) if isinstance(address, str) else _open_path(address, query)
        case SpatialImage():
            return open_nifti_image(source, query)
        case _ if is_itk_image(source):
            return open_itk_image(source, query)
        # Dask and xarray are imported only for their own arrays.
        case _ if is_dask_array(source):
            from dseeds.io.formats.dask_array import open_dask_array

            return open_dask_array(source, query)
        case _ if is_data_array(source):
            from dseeds.io.formats.data_array import open_data_array

            return open_data_array(source, query)
        case zarr.Array() | zarr.Group():
            return open_zarr_node(source, query)
        case _ if isinstance(source, list | tuple) or hasattr(source, "__array__"):
            return _open(_to_array(source), query)
    raise TypeError(
        f"a source is a path or URL, an array of numpy, dask or xarray or one that NumPy converts, a zarr array or "
        f"group, or an image of nibabel or SimpleITK, not {type(source).__module__}.{type(source).__qualname__}"
    )


def _to_array(source: Any) -> np.ndarray:
    """Convert lists and arrays of other libraries, which may refuse it in words of their own."""
    try:
        return np.asarray(source)
    except ValueError as error:
        raise ValueError("the lists are not of equal length, so that they are no volume.") from error


def _open_path(path: Path, query: SourceQuery) -> Source | tuple[Source, ...]:
    file = split_image(split_source(path)[0])[0]
    if not file.exists() and not is_zarr_image(path):
        address, _, chosen = str(path).rpartition(":")
        if address and chosen and Path(address).exists():
            raise ValueError(
                f"{address} is none of TIFF, HDF5 and OME-Zarr, which may hold several images: "
                f"leave out :{chosen} (--image)"
            )
        raise FileNotFoundError(f"{file} does not exist")
    open_file = next(open_file for is_format, open_file in _FILE_FORMATS if is_format(path))
    return open_file(path, query)
