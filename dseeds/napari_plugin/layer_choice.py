"""The layers that the user has chosen to cut: their volumes (z, y, x), and where these lie; knows no napari."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Lattice, Triple, triple
from dseeds.seeds.cell_size import choose_step

# What napari or a reader may call an axis of channels.
CHANNEL_AXES = ("c", "channel", "channels")


@dataclass(frozen=True, eq=False)
class LayerChoice:
    """Image layers to cut together, each a channel or several, with a layer for the mask and one for boundaries.

    Raises a ValueError if any of them is no volume of three axes, or lies elsewhere than the first one.
    """

    layers: Sequence[Any]
    mask: Any = None
    boundaries: Any = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("Select an image layer, or several of one shape, which are its channels.")
        for layer in (*self.layers[1:], self.mask, self.boundaries):
            if layer is not None:
                _check_same_grid(self.layers[0], layer)

    @property
    def first(self) -> Any:
        """The layer that says where the volume lies and what is in view."""
        return self.layers[0]

    @property
    def name(self) -> str:
        """The names of the layers."""
        return " and ".join(layer.name for layer in self.layers)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells this choice of images from others, whatever the mask is."""
        return tuple(layer.unique_id for layer in self.layers)

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""
        return triple(self.first_level(self.first).shape[-3:])

    @property
    def channels(self) -> list[list[Any]]:
        """The resolution levels of each channel, each level (z, y, x), the finest first."""
        return [levels for layer in self.layers for levels in volumes_of(layer)]

    @property
    def channel_names(self) -> list[str]:
        """The layer of each channel."""
        return [layer.name for layer in self.layers for _ in volumes_of(layer)]

    @property
    def has_one_dtype(self) -> bool:
        """Whether all channels are of one type, so that none of them is converted in a preview."""
        return len({np.dtype(levels[0].dtype) for levels in self.channels}) == 1

    @staticmethod
    def first_level(layer: Any) -> Any:
        """Return the finest level of a layer."""
        return layer.data[0] if layer.multiscale else layer.data

    def further(self) -> dict[str, Any]:
        """Return the arrays (z, y, x) of mask and boundary map, those that there are."""
        chosen = {"mask": self.mask, "boundaries": self.boundaries}
        return {name: single_volume(layer)[0] for name, layer in chosen.items() if layer is not None}

    def lattice(self, step: int) -> Lattice:
        """Return the lattice of the volume with cells of a step in voxels."""
        return Lattice(self.shape, choose_step(self.shape, step=step, spacing=spacing_of(self.first)))


def volumes_of(layer: Any) -> list[list[Any]]:
    """Return the volumes of a layer, one for each of its channels: all levels (z, y, x), the finest first.

    Leading axes of length 1 are left out. Raise a ValueError if another axis than that of channels remains.
    """
    levels = list(layer.data) if layer.multiscale else [layer.data]
    if getattr(layer, "rgb", False):
        raise ValueError(f"{layer.name} is in colours (RGB): split it into channels, and select these.")
    leading = tuple(levels[0].shape[:-3])
    long = [axis for axis, n in enumerate(leading) if n > 1]
    if layer.ndim < 3:
        raise ValueError(f"{layer.name} has {layer.ndim} axes: show a volume of three axes (z, y, x).")
    if not leading:
        return [levels]
    if not long:
        return [[_at(level, (0,) * len(leading)) for level in levels]]
    names = [str(name).lower() for name in layer.axis_labels]
    if len(long) > 1 or names[long[0]] not in CHANNEL_AXES:
        raise ValueError(
            f"{layer.name} has {layer.ndim} axes, of lengths {', '.join(map(str, levels[0].shape))}: split its stack "
            "into volumes (z, y, x), and select one or, as channels, several."
        )
    indices = [tuple(k if axis == long[0] else 0 for axis in range(len(leading))) for k in range(leading[long[0]])]
    return [[_at(level, index) for level in levels] for index in indices]


def _at(level: Any, index: tuple[int, ...]) -> Any:
    """Return a volume of a level, without reading it: an array of Zarr would read it at once."""
    if isinstance(level, np.ndarray) or hasattr(level, "dask"):
        return level[index]
    import dask.array as da

    return da.from_zarr(level)[index] if hasattr(level, "store") else da.from_array(level)[index]


def single_volume(layer: Any) -> list[Any]:
    """Return the levels of a layer of one channel; raise a ValueError if there are several."""
    volumes = volumes_of(layer)
    if len(volumes) > 1:
        raise ValueError(f"{layer.name} has {len(volumes)} channels, but only one is needed: split it, and choose one.")
    return volumes[0]


def spacing_of(layer: Any) -> tuple[float, float, float]:
    """Return the size of a voxel along (z, y, x) in the space of the viewer."""
    z, y, x = (float(np.linalg.norm(column)) for column in _linear_part(layer).T)
    return z, y, x


def placement_of(layer: Any, origin: Sequence[int] = (0, 0, 0)) -> dict[str, Any]:
    """Return the options that place a volume (z, y, x) which begins at a voxel of a layer where that voxel is."""
    scale = np.asarray(layer.scale)[-3:]
    affine = np.asarray(layer.affine.affine_matrix)
    kept = [*range(len(affine) - 4, len(affine) - 1), len(affine) - 1]
    affine = affine[np.ix_(kept, kept)]
    # The affine comes after the rest, of which the origin is a part.
    before = np.linalg.solve(affine[:3, :3], _linear_part(layer)) @ np.asarray(origin, np.float64)
    options: dict[str, Any] = {
        "scale": scale,
        "translate": np.asarray(layer.translate)[-3:] + before,
        "affine": affine,
        "units": tuple(layer.units)[-3:],
    }
    if layer.ndim == 3:
        return options | {"rotate": layer.rotate, "shear": layer.shear}
    return options


def _linear_part(layer: Any) -> NDArray[np.float64]:
    """Return the matrix (3, 3) from voxels (z, y, x) to the space of the viewer."""
    corners = np.zeros((4, layer.ndim))
    corners[1:, -3:] = np.eye(3)
    origin, *ends = (np.asarray(layer.data_to_world(corner), np.float64)[-3:] for corner in corners)
    return np.stack([end - origin for end in ends], axis=1)


def _check_same_grid(layer: Any, other: Any) -> None:
    shape, another = (tuple(single.shape[-3:]) for single in map(LayerChoice.first_level, (layer, other)))
    if shape != another:
        raise ValueError(
            f"{other.name} has {' x '.join(map(str, another))} voxels, but {layer.name} has "
            f"{' x '.join(map(str, shape))}: choose layers of one shape."
        )
    corners, other_corners = (_corners(single, shape) for single in (layer, other))
    if not np.allclose(corners, other_corners, rtol=0, atol=min(spacing_of(layer)) / 10):
        raise ValueError(f"{other.name} does not lie where {layer.name} lies: choose layers with the same voxels.")


def _corners(layer: Any, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return where the corners of a volume of a shape (z, y, x) lie, (8, 3)."""
    corners = np.zeros((8, layer.ndim))
    corners[:, -3:] = np.array(list(np.ndindex(2, 2, 2))) * shape
    return np.stack([np.asarray(layer.data_to_world(corner), np.float64)[-3:] for corner in corners])


def plane_of(viewer_dims: Any, layer: Any) -> Mapping[int, int]:
    """Return the voxel of a layer (z, y, x) along each of these axes that is not displayed."""
    shift = viewer_dims.ndim - 3
    displayed = [axis - shift for axis in viewer_dims.displayed]
    if min(displayed) < 0:
        raise ValueError("Show a plane or the space of (z, y, x): another axis is displayed.")
    point = np.asarray(layer.world_to_data(viewer_dims.point))[-3:]
    return {axis: round(float(point[axis])) for axis in range(3) if axis not in displayed}
