"""Supervoxels and their image in a viewer: Neuroglancer in a browser, or napari if it is installed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dseeds.io import Source, ZarrSource, open_image
from dseeds.io.alignment import TurnedSource
from dseeds.io.labels import align_image
from dseeds.io.resolution_levels import ResolutionLevel, read_resolution_levels
from dseeds.viz.preview import open_recorded_image, open_supervoxels, recorded_window

NEUROGLANCER = "https://neuroglancer-demo.appspot.com/"
NEUROGLANCER_DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "f4")
QT = ("PyQt6", "PySide6", "PyQt5", "PySide2")
# Of labels over the image.
OPACITY = 0.3


@dataclass(frozen=True)
class Layer:
    """A layer of a viewer; `window` gives the intensities drawn as black and as white."""

    name: str
    source: Source
    labels: bool = False
    window: tuple[float, float] | None = None


def open_layers(labels: Any, image: Any = None) -> tuple[list[Layer], str | None]:
    """Open a layer for each source of the image, then the labels.

    Returns the layers, and None or the reason why there is no image.
    """
    supervoxels = open_supervoxels(labels)
    reason = None
    try:
        opened = open_recorded_image(supervoxels) if image is None else align_image(open_image(image), supervoxels)
    except ValueError as error:
        if image is not None:
            raise
        opened, reason = None, str(error)
    layers = []
    for number, source in enumerate(opened.parts if opened is not None else ()):
        window = recorded_window(supervoxels, number) if image is None and source.channels is None else None
        layers.append(Layer(source.name, source, window=window))
    return [*layers, Layer(supervoxels.name, supervoxels, labels=True)], reason


# Neuroglancer


def select_viewable(layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """Return the layers that Neuroglancer can show, and why it cannot show others; raise ValueError for labels."""
    viewable, reasons = [], []
    for layer in layers:
        try:
            served_path(layer)
        except ValueError as error:
            if layer.labels:
                raise
            reasons.append(str(error))
        else:
            viewable.append(layer)
    return viewable, reasons


def served_path(layer: Layer) -> Path | None:
    """Return the folder or file to serve for a layer, or None if a browser can read its URL itself.

    A ValueError is raised if Neuroglancer cannot show it.
    """
    source = layer.source
    if isinstance(source, TurnedSource):
        raise ValueError(f"Neuroglancer shows {layer.name} by its stored axes, which run otherwise than the labels'.")
    if source.path is None or source.kind not in ("zarr", "nifti"):
        raise ValueError(f"Neuroglancer reads only Zarr and NIfTI: convert {layer.name} to OME-Zarr.")
    if source.dtype.newbyteorder("=").str[1:] not in NEUROGLANCER_DTYPES:
        raise ValueError(f"Neuroglancer does not show voxels of type {source.dtype}, as in {layer.name}.")
    address = _group_address(source)
    return None if "://" in address else Path(address)


def _group_address(source: Source) -> str:
    """Return the path or URL of a source's OME-Zarr group, where a viewer finds all levels, or else of the source."""
    assert source.path is not None
    if isinstance(source, ZarrSource) and source.multiscale is not None and source.level == 0:
        return source.multiscale.where
    return source.path


def neuroglancer_link(layers: Sequence[Layer], urls: Mapping[int, str]) -> str:
    """Return the link that opens layers in Neuroglancer, given the URLs of those that are served, by index.

    The state of the viewer is JSON behind ``#!``, see Neuroglancer's documentation.
    """
    labels = layers[-1].source
    z, y, x = labels.spacing or (1.0, 1.0, 1.0)
    unit, metre = ("m", 1e-3) if labels.spacing else ("", 1.0)
    depth, height, width = labels.shape
    state: dict[str, Any] = {
        "dimensions": {axis: [size * metre, unit] for axis, size in zip("xyz", (x, y, z), strict=True)},
        "layers": [_layer_state(layer, urls.get(number)) for number, layer in enumerate(layers)],
        "layout": "4panel",
    }
    # The affine of NIfTI moves the middle of the volume.
    if all(layer.source.kind == "zarr" for layer in layers):
        state["position"] = [width / 2, height / 2, depth / 2]
    return f"{NEUROGLANCER}#!{quote(json.dumps(state, separators=(',', ':')), safe='')}"


def _layer_state(layer: Layer, url: str | None) -> dict[str, Any]:
    address = url or _group_address(layer.source)
    if layer.source.kind == "zarr":
        source = f"{address}/|zarr{layer.source.array.metadata.zarr_format}:"  # type: ignore[attr-defined]
    else:
        source = f"{address}|gzip:|nifti:" if address.endswith(".gz") else f"{address}|nifti:"
    state: dict[str, Any] = {"type": "segmentation" if layer.labels else "image", "source": source, "name": layer.name}
    if layer.labels:
        state["selectedAlpha"] = OPACITY
    elif layer.window is not None:
        state["shaderControls"] = {"normalized": {"range": list(layer.window)}}
    return state


def serve_layers(layers: Sequence[Layer], ready: Callable[[str], None], port: int = 0) -> None:
    """Serve layers to a browser on this machine until the process receives SIGINT or SIGTERM.

    `ready` is called with the link to Neuroglancer when the server accepts requests. Port 0 is any free one.
    """
    from dseeds.viz.http_server import serve_files

    paths = {number: path for number, layer in enumerate(layers) if (path := served_path(layer)) is not None}
    names = {number: f"{number}-{'labels' if layers[number].labels else 'image'}" for number in paths}
    for number, path in paths.items():
        names[number] += "".join(path.suffixes[-2:]) if path.is_file() else ".zarr"
    serve_files(
        {names[number]: path for number, path in paths.items()},
        lambda urls: ready(neuroglancer_link(layers, {number: urls[name] for number, name in names.items()})),
        port,
    )


# Napari


def has_napari() -> bool:
    """Return whether napari can open a window here, without importing it."""
    has_display = sys.platform in ("win32", "darwin") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}
    return bool(has_display) and find_spec("napari") is not None and any(map(find_spec, QT))


def add_to_napari(viewer: Any, layers: Sequence[Layer]) -> None:
    """Add layers to a napari viewer or its model; voxels are read only when they are shown."""
    for layer in layers:
        arrays = level_arrays(layer.source)
        # All layers share one grid, even if some have no spacing.
        options: dict[str, Any] = {"name": layer.name, "scale": layers[-1].source.spacing or (1.0, 1.0, 1.0)}
        data: Any = arrays if len(arrays) > 1 else arrays[0]
        if layer.labels:
            viewer.add_labels(data, opacity=OPACITY, multiscale=len(arrays) > 1, **options)
        else:
            channels = {} if layer.source.channels is None else {"channel_axis": 0}
            limits = {} if layer.window is None or channels else {"contrast_limits": layer.window}
            viewer.add_image(data, multiscale=len(arrays) > 1, **options, **channels, **limits)


def level_arrays(source: Source) -> list[Any]:
    """Return the resolution levels of a volume as Dask arrays, the finest first; slices read only their own chunks."""
    return [_to_dask(level) for level in read_resolution_levels(source)]


def _to_dask(level: ResolutionLevel) -> Any:
    """Return a level as a Dask array with the chunks in which it is stored."""
    import dask.array
    from dask.delayed import delayed

    source = level.source
    shape = source.shape if source.channels is None else (source.channels, *source.shape)
    if not isinstance(source, ZarrSource):
        whole = delayed(source.read, pure=True)((slice(None),) * 3)
        return dask.array.from_delayed(whole, shape, source.dtype)
    return dask.array.from_array(_ArrayView(source, shape), chunks=(1,) * (len(shape) - 3) + source.chunks)


@dataclass(frozen=True)
class _ArrayView:
    """A source with the interface of an array that Dask expects."""

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
