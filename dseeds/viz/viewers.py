"""Supervoxels and their image in a viewer: neuroglancer in a browser, or napari where it is installed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dseeds.io import Source, ZarrSource, open_image
from dseeds.io.labels import check_same_shape
from dseeds.io.resolution_levels import ResolutionLevel, read_resolution_levels
from dseeds.storage.location import is_remote
from dseeds.viz.preview import noted_image, noted_window, open_supervoxels

NEUROGLANCER = "https://neuroglancer-demo.appspot.com/"
# What it can show.
SHOWN = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "f4")
QT = ("PyQt6", "PySide6", "PyQt5", "PySide2")
# How much labels cover of the image.
OPACITY = 0.3


@dataclass(frozen=True)
class Layer:
    """What a viewer is to show.

    Attributes
    ----------
    name : str
        What it is called.
    source : Source
        Its voxels.
    labels : bool
        Whether it is labels.
    window : tuple of float or None
        Intensities that are black and white.
    """

    name: str
    source: Source
    labels: bool = False
    window: tuple[float, float] | None = None


def layers(labels: Any, image: Any = None) -> tuple[list[Layer], str | None]:
    """Open supervoxels and their image.

    Parameters
    ----------
    labels, image
        As for `preview`.

    Returns
    -------
    list of Layer
        The labels last; those of an image are its channels' files.
    str or None
        Why there is no image.

    Raises
    ------
    FileNotFoundError, ValueError
        As `preview`.
    """
    found = open_supervoxels(labels)
    missing = None
    try:
        picture = noted_image(found) if image is None else open_image(image)
        check_same_shape(labels=found, image=picture)
    except ValueError as error:
        if image is not None:
            raise
        picture, missing = None, str(error)
    below = []
    for number, part in enumerate(picture.parts if picture is not None else ()):
        window = noted_window(found, number) if image is None and part.channels is None else None
        below.append(Layer(part.name, part, window=window))
    return [*below, Layer(found.name, found, labels=True)], missing


# Neuroglancer


def showable(shown: list[Layer]) -> tuple[list[Layer], list[str]]:
    """Leave images out that neuroglancer cannot show, and tell why; `ValueError` where it is the labels."""
    kept, reasons = [], []
    for layer in shown:
        try:
            lent_path(layer)
        except ValueError as error:
            if layer.labels:
                raise
            reasons.append(str(error))
        else:
            kept.append(layer)
    return kept, reasons


def lent_path(layer: Layer) -> Path | None:
    """Give the folder or file to lend for a layer; None where its URL is one that a browser can read itself.

    Raises
    ------
    ValueError
        If neuroglancer cannot show it.
    """
    source = layer.source
    kind = source.dtype.newbyteorder("=").str[1:]
    if source.path is None or source.kind not in ("zarr", "nifti"):
        raise ValueError(f"neuroglancer reads Zarr and NIfTI, and {layer.name} is neither: convert it to OME-Zarr.")
    if kind not in SHOWN:
        raise ValueError(f"neuroglancer shows no voxels of type {source.dtype}, such as those of {layer.name}.")
    address = _group(source)
    if is_remote(address) or "://" in address:
        return None
    return Path(address)


def _group(source: Source) -> str:
    """Give the path or URL of an image's group, where it has one: there a viewer finds all levels."""
    assert source.path is not None
    if isinstance(source, ZarrSource) and source.multiscale is not None and source.level == 0:
        return source.multiscale.where
    return source.path


def link(shown: list[Layer], urls: Mapping[int, str]) -> str:
    """Give the link that opens neuroglancer with some layers.

    Parameters
    ----------
    shown : list of Layer
        The layers.
    urls : dict of int to str
        Where those are served that are lent, by their number.

    Returns
    -------
    str
        The state of the viewer is JSON behind ``#!``, see neuroglancer's documentation.
    """
    first = shown[-1].source
    z, y, x = first.spacing or (1.0, 1.0, 1.0)
    unit, metre = ("m", 1e-3) if first.spacing else ("", 1.0)
    depth, height, width = first.shape
    state: dict[str, Any] = {
        "dimensions": {axis: [size * metre, unit] for axis, size in zip("xyz", (x, y, z), strict=True)},
        "layers": [_layer(layer, urls.get(number)) for number, layer in enumerate(shown)],
        "layout": "4panel",
    }
    # The affine of NIfTI puts voxels elsewhere.
    if all(layer.source.kind == "zarr" for layer in shown):
        state["position"] = [width / 2, height / 2, depth / 2]
    return f"{NEUROGLANCER}#!{quote(json.dumps(state, separators=(',', ':')), safe='')}"


def _layer(layer: Layer, url: str | None) -> dict[str, Any]:
    address = url or _group(layer.source)
    if layer.source.kind == "zarr":
        place = f"{address}/|zarr{layer.source.array.metadata.zarr_format}:"  # type: ignore[attr-defined]
    else:
        place = f"{address}|gzip:|nifti:" if address.endswith(".gz") else f"{address}|nifti:"
    found: dict[str, Any] = {"type": "segmentation" if layer.labels else "image", "source": place, "name": layer.name}
    if layer.labels:
        found["selectedAlpha"] = OPACITY
    elif layer.window is not None:
        found["shaderControls"] = {"normalized": {"range": list(layer.window)}}
    return found


def serve(shown: list[Layer], ready: Callable[[str], None], port: int = 0) -> None:
    """Lend layers to a browser on this machine until the process is told to stop.

    Parameters
    ----------
    shown : list of Layer
        The layers.
    ready : callable
        Is told neuroglancer's link when the server answers.
    port : int
        See `dseeds.viz.http_server.serve_files`.
    """
    from dseeds.viz.http_server import serve_files

    paths = {number: path for number, layer in enumerate(shown) if (path := lent_path(layer)) is not None}
    names = {number: f"{number}-{'labels' if shown[number].labels else 'image'}" for number in paths}
    for number, path in paths.items():
        names[number] += "".join(path.suffixes[-2:]) if path.is_file() else ".zarr"
    serve_files(
        {names[number]: path for number, path in paths.items()},
        lambda urls: ready(link(shown, {number: urls[name] for number, name in names.items()})),
        port,
    )


# Napari


def has_napari() -> bool:
    """Tell whether napari can open a window here; it is not imported."""
    windows = sys.platform in ("win32", "darwin") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}
    return bool(windows) and find_spec("napari") is not None and any(map(find_spec, QT))


def add_to(viewer: Any, shown: list[Layer]) -> None:
    """Add layers to a napari viewer or its model; no voxel is read before it is looked at."""
    for layer in shown:
        arrays = [_lazy(level) for level in read_resolution_levels(layer.source)]
        # All lie on one grid, whether they say so or not.
        options: dict[str, Any] = {"name": layer.name, "scale": shown[-1].source.spacing or (1.0, 1.0, 1.0)}
        data: Any = arrays if len(arrays) > 1 else arrays[0]
        if layer.labels:
            viewer.add_labels(data, opacity=OPACITY, multiscale=len(arrays) > 1, **options)
        else:
            channels = {} if layer.source.channels is None else {"channel_axis": 0}
            limits = {} if layer.window is None or channels else {"contrast_limits": layer.window}
            viewer.add_image(data, multiscale=len(arrays) > 1, **options, **channels, **limits)


def _lazy(level: ResolutionLevel) -> Any:
    """Give a level as a Dask array, cut as it is stored."""
    import dask.array
    from dask.delayed import delayed

    source = level.source
    shape = source.shape if source.channels is None else (source.channels, *source.shape)
    if not isinstance(source, ZarrSource):
        whole = delayed(source.read, pure=True)((slice(None),) * 3)
        return dask.array.from_delayed(whole, shape, source.dtype)
    return dask.array.from_array(_Sliced(source, shape), chunks=(1,) * (len(shape) - 3) + source.chunks)


@dataclass(frozen=True)
class _Sliced:
    """A source as Dask takes it."""

    source: ZarrSource
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        return self.source.read((index[-3], index[-2], index[-1]))[index[:-3]]
