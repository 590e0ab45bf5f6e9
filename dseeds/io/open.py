"""TODO."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dseeds.core.duck_arrays import is_dask_array, is_data_array
from dseeds.io.source import Source, SourceQuery, is_zarr, open_array, resolve_address


def open_source(source: object, *, volume: int | None = None, level: int = 0) -> Source:
    """Open an image as one 3D volume. Its voxels stay where they are.

    Parameters
    ----------
    source : str, path, ndarray, dask.array.Array, xarray.DataArray, zarr.Array, zarr.Group or nibabel image
        A path to a NIfTI file (``.nii``, ``.nii.gz``, ``.hdr`` with ``.img``); a path or URL of a Zarr array
        (v2 or v3) or of an OME-Zarr image; or such an image, open; or a folder with a series of DICOM, or one file of
        DICOM, whose frames are the planes. An array inside an OME-Zarr image, as ``image.zarr/1``, is that level of it.
        Or a TIFF, or a folder of them with a plane in each; a file of NRRD (``.nrrd``, ``.nhdr``), MetaImage (``.mha``,
        ``.mhd``) or NumPy (``.npy``); or one of HDF5 (``.h5``, ``.hdf5``), where ``FILE.h5:/path/to/dataset`` says
        which of several.
        URLs are ``s3://``, ``gs://`` and ``az://``, see `dseeds.storage.location`, and those that fsspec knows.
        Other formats that nibabel knows are loaded whole. A Dask array is computed once, block by block, into Dask's
        ``temporary-directory``.
        Axes are (x, y, z, ...) in NIfTI, NRRD and MetaImage, those of its metadata in OME-Zarr, in any order, and in
        TIFF, and (..., z, y, x) elsewhere. An OME-Zarr image without z is a volume of one slice.
        Further axes of size 1, leading or trailing, are dropped.
    volume : int, optional
        Which volume to take, from 0, where one further axis is longer than 1: the fourth of a NIfTI file,
        ``t`` or ``c`` of an OME-Zarr image, the first of any other array.
    level : int, default 0
        Which level of an OME-Zarr image to take, 0 being the full resolution.

    Returns
    -------
    Source

    Raises
    ------
    FileNotFoundError
        If the path leads nowhere.
    PermissionError, ConnectionError
        If it may not be read, or its store cannot be reached.
    ValueError
        If the image cannot be read, is not a 3D volume of real numbers, or holds several volumes and `volume`
        does not say which.
    TypeError
        If `source` is none of the above.

    Examples
    --------
    >>> series = np.zeros((2, 30, 40, 50), "uint8")
    >>> open_source(series, volume=1).shape
    (30, 40, 50)
    >>> open_source(series)
    Traceback (most recent call last):
    ValueError: the array holds 2 volumes: pass volume= (--volume on the command line), 0 to 1, to say which
    """
    [found] = open_voxels(source, SourceQuery(volume, level=level))
    return found


def open_voxels(source: object, wanted: SourceQuery) -> tuple[Source, ...]:
    """Open what `open_source` takes: one source or, of an image, one for all channels that are stored together."""
    found = _opened(source, wanted)
    if wanted.level and found[0].kind != "zarr":
        raise ValueError(
            f"{found[0].path or found[0].name} is no OME-Zarr image with levels: leave out level (--level)"
        )
    return found


def _opened(source: object, wanted: SourceQuery) -> tuple[Source, ...]:
    # Here, not above: the formats build on this module.
    import zarr
    from nibabel.spatialimages import SpatialImage

    from dseeds.io.formats.nifti import open_nifti_image
    from dseeds.io.formats.ome_zarr import open_zarr, open_zarr_node

    if isinstance(source, np.ndarray):
        return open_array(source, wanted)
    if is_dask_array(source):
        from dseeds.io.formats.dask_array import open_dask_array

        return open_dask_array(source, wanted)
    if is_data_array(source):
        from dseeds.io.formats.data_array import open_data_array

        return open_data_array(source, wanted)
    if isinstance(source, zarr.Array | zarr.Group):
        return (open_zarr_node(source, wanted),)
    if isinstance(source, SpatialImage):
        return open_nifti_image(source, wanted)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"a source is a path or URL, an array of numpy, dask or xarray, a zarr array or group, or a nibabel image, "
            f"not {type(source).__module__}.{type(source).__qualname__}"
        )
    address = resolve_address(str(os.fspath(source)))
    if isinstance(address, str):
        return (open_zarr(address, wanted),)
    return _opened_path(address, wanted)


def _opened_path(path: Path, wanted: SourceQuery) -> tuple[Source, ...]:
    from dseeds.io.formats.dicom import dicom_files, open_dicom
    from dseeds.io.formats.hdf5 import hdf5_dataset, open_hdf5
    from dseeds.io.formats.nifti import open_nifti_file
    from dseeds.io.formats.npy import is_npy, open_npy
    from dseeds.io.formats.nrrd import is_nrrd, open_nrrd
    from dseeds.io.formats.ome_zarr import open_zarr
    from dseeds.io.formats.tiff import open_tiff, tiff_files

    file, dataset = hdf5_dataset(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if is_zarr(path):
        return (open_zarr(path, wanted),)
    if dataset is not None:
        return (open_hdf5(file, dataset, wanted),)
    if is_nrrd(path):
        return (open_nrrd(path, wanted),)
    if is_npy(path):
        return (open_npy(path, wanted),)
    if files := dicom_files(path):
        return (open_dicom(path, files, wanted),)
    if files := tiff_files(path):
        return (open_tiff(path, files, wanted),)
    return (open_zarr(path, wanted),) if path.is_dir() else open_nifti_file(path, wanted)
