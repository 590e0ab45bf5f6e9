"""What an output or an image is, read back from its metadata; no voxel is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import zarr

from dseeds import phantom, store
from dseeds.io import Source, ZarrSource, open_source
from dseeds.io.nifti import is_written_by_us
from dseeds.store import ATTRIBUTE

Description = dict[str, Any]


def describe(target: str | os.PathLike[str], *, volume: int | None = None) -> Description:
    """Describe a label volume or a phantom that this program wrote, or any other image that it can read.

    Parameters
    ----------
    target : path or URL
        What `dseeds.io.open_source` takes.
    volume : int, optional
        Which volume of a 4D image, from 0.

    Returns
    -------
    dict
        Plain values, ready for JSON. ``kind`` is ``"labels"``, ``"phantom"`` or ``"image"``, the first two only for
        what this program wrote; ``path``, ``format``, ``shape``, ``dtype`` and ``spacing`` are always there,
        ``chunks`` and ``shards`` for Zarr; ``supervoxels``, ``step``, ``cells``, ``window``, ``rounds``, ``asked``,
        ``source`` and ``versions`` for labels in Zarr; ``noise``, ``organs`` and ``seed`` for a phantom.

    Raises
    ------
    FileNotFoundError
        If the path leads nowhere.
    ValueError
        If it is unfinished, damaged or no image.

    Examples
    --------
    >>> import tempfile
    >>> from dseeds.phantom import write_phantom
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_phantom(f"{folder}/body.zarr", shape=(24, 32, 32), spacing=(2.0, 1.5, 1.5), seed=3)
    ...     description = describe(f"{folder}/body.zarr")
    >>> description["kind"], description["spacing"], description["seed"]
    ('phantom', [2.0, 1.5, 1.5], 3)
    """
    _refuse_unfinished(Path(target))
    source = open_source(target, volume=volume)
    return {
        "kind": "image",
        "path": os.fspath(target),
        "format": source.kind,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "spacing": None if source.spacing is None else list(source.spacing),
        **_storage(source),
        **(_of_group(target) if source.kind == "zarr" else _of_nifti(Path(target))),
    }


def _refuse_unfinished(path: Path) -> None:
    for marker in (store.MARKER, phantom.MARKER):
        if (path / marker).is_file():
            raise ValueError(
                f"{path} is unfinished: its run is still at work or was killed; in the latter case, "
                "run it again with --overwrite."
            )


def _storage(source: Source) -> Description:
    if not isinstance(source, ZarrSource):
        return {}
    shards = source.array.shards
    return {"chunks": list(source.array.chunks), "shards": None if shards is None else list(shards)}


def _of_group(target: str | os.PathLike[str]) -> Description:
    """Read what this program noted in a group's attributes."""
    node = zarr.open(target, mode="r")
    noted: Any = node.attrs.get(ATTRIBUTE) if isinstance(node, zarr.Group) else None
    if not isinstance(noted, Mapping):
        return {}
    if "phantom" in noted:
        recipe = noted["phantom"]
        return {"kind": "phantom", **{key: recipe.get(key) for key in ("noise", "organs", "seed")}}
    parameters = noted.get("parameters", {})
    return {
        "kind": "labels",
        "supervoxels": noted.get("supervoxels"),
        **{key: parameters.get(key) for key in ("step", "cells", "window", "rounds", "asked")},
        **{key: noted.get(key) for key in ("source", "versions")},
    }


def _of_nifti(path: Path) -> Description:
    """Recognise labels by the header's intent: there is room for nothing more."""
    return {"kind": "labels"} if is_written_by_us(nibabel.load(path)) else {}
