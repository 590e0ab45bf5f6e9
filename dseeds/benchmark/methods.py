"""dseeds and its peers with their settings, behind one interface.

All run in one thread, on the same volume, with the same intensity window and the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.api.supervoxels import supervoxels
from dseeds.benchmark.cases import Case
from dseeds.benchmark.etps import cut_etps
from dseeds.core.geometry import Triple
from dseeds.core.optional import import_optional

Cut = Callable[[Case], NDArray[Any]]

# The modules of the peers, and the packages that have them.
PACKAGES = {
    "skimage": "scikit-image",
    "SimpleITK": "SimpleITK",
    "bioimage_cpp": "bioimage-cpp",
    "python_3d_seeds": "python_3d_seeds",
}
EXTRA = "dseeds[benchmark]"


@dataclass(frozen=True)
class Method:
    """A method that cuts a case into labels from 1: dseeds, or a peer with a setting.

    The setting is the compactness of scikit-image's SLIC and watershed, the spatial proximity weight of SimpleITK's
    SLIC, the compactness of ETPS and its weight of boundaries, or the size of the 3D SEEDS reference's smallest blocks,
    in voxels, and whether it visits blocks twice. `module` is what has to be installed. A watershed grows from one seed
    at the centre of each cell.
    """

    peer: str
    setting: str
    cut: Cut
    module: str = "dseeds"
    takes_channels: bool = True
    needs_boundaries: bool = False
    is_own: bool = False

    @property
    def name(self) -> str:
        """The peer and its setting."""
        return f"{self.peer} {self.setting}".strip()

    def applies_to(self, case: Case) -> bool:
        """Return whether the method can cut the case."""
        has_boundaries = case.boundaries is not None or not self.needs_boundaries
        return has_boundaries and (self.takes_channels or case.channel_axis is None)


def all_methods() -> list[Method]:
    """List all methods, whether they are installed or not, dseeds first."""
    return [
        Method("dseeds", "", _supervoxels, is_own=True),
        Method("dseeds boundaries", "", _dseeds_boundaries, needs_boundaries=True, is_own=True),
        *(Method("SLIC", f"{c}", _slic(c), "skimage") for c in (0.03, 0.1, 0.3)),
        *(Method("SimpleITK SLIC", f"{w}", _simpleitk(w), "SimpleITK") for w in (10, 30, 60, 100)),
        *(Method("ETPS", f"{c} {b}", _etps(c, b)) for c, b in product((0.003, 0.03), (0.03, 0.1))),
        *(Method("watershed", f"{c}", _compact_watershed(c), "skimage") for c in (0.3, 1, 3, 10)),
        Method("bioimage-cpp watershed", "", _bioimage_watershed, "bioimage_cpp"),
        *(
            Method("3D SEEDS", f"{block}{' double' * double}", _reference(block, double), "python_3d_seeds", False)
            for block, double in product((1, 2), (False, True))
        ),
    ]


def choose_methods(names: Sequence[str] | None = None) -> tuple[list[Method], dict[str, str]]:
    """Return the installed methods, of certain names if there are any, and the packages of peers that are left out.

    A name is that of a method, such as ``"SLIC 0.1"``, or that of a peer, for all its settings.

    Raises
    ------
    ValueError
        If there is no method of a name, or none of them is installed.

    Examples
    --------
    >>> [method.name for method in choose_methods(["dseeds"])[0]]
    ['dseeds']
    """
    known = all_methods()
    choices = list(dict.fromkeys(word for method in known for word in (method.peer, method.name)))
    for name in names or ():
        if name not in choices:
            raise ValueError(f"there is no method {name!r}: choose from {', '.join(choices)}.")
    chosen = [method for method in known if not names or method.peer in names or method.name in names]
    missing = {method.peer: PACKAGES[method.module] for method in chosen if not find_spec(method.module)}
    installed = [method for method in chosen if method.peer not in missing]
    if not installed:
        raise ValueError(f"no method is left to compare: pip install {', '.join(sorted(set(missing.values())))}.")
    return installed, missing


def _dseeds_boundaries(case: Case) -> NDArray[Any]:
    return _supervoxels(case, boundaries=case.boundaries)


def _supervoxels(case: Case, **options: Any) -> NDArray[Any]:
    options |= {"step": case.step, "window": case.windows, "channel_axis": case.channel_axis, "threads": 1}
    labels: NDArray[Any] = supervoxels(case.image, **options)
    return labels


def _compact_watershed(compactness: float) -> Cut:
    def cut(case: Case) -> NDArray[Any]:
        segmentation = import_optional("skimage.segmentation", "scikit-image's watershed", EXTRA)
        labels: NDArray[Any] = segmentation.watershed(case.relief, case.markers, compactness=compactness)
        return labels

    return cut


def _bioimage_watershed(case: Case) -> NDArray[Any]:
    module = import_optional("bioimage_cpp", "bioimage-cpp's watershed", EXTRA)
    labels: NDArray[Any] = module.segmentation.watershed(case.relief, case.markers)
    return labels


def _slic(compactness: float) -> Cut:
    def cut(case: Case) -> NDArray[Any]:
        segmentation = import_optional("skimage.segmentation", "scikit-image's SLIC", EXTRA)
        labels: NDArray[Any] = segmentation.slic(
            case.scaled,
            n_segments=case.count,
            compactness=compactness,
            spacing=[max(case.step) / s for s in case.step],
            # Three MR sequences are not colours.
            convert2lab=False,
            channel_axis=case.channel_axis,
            start_label=1,
        )
        return labels

    return cut


def _etps(compactness: float, boundary: float) -> Cut:
    def cut(case: Case) -> NDArray[Any]:
        return cut_etps(case.scaled, case.lattice, compactness=compactness, boundary=boundary)

    return cut


def _simpleitk(weight: float) -> Cut:
    def cut(case: Case) -> NDArray[Any]:
        sitk = import_optional("SimpleITK", "SimpleITK's SLIC", EXTRA)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        vectors = case.channel_axis is not None
        values = np.moveaxis(case.scaled, 0, -1) if vectors else case.scaled
        labels = sitk.SLIC(
            sitk.GetImageFromArray(values * 255, isVector=vectors),
            superGridSize=case.step[::-1],
            spatialProximityWeight=weight,
            maximumNumberOfIterations=10,
        )
        result: NDArray[Any] = sitk.GetArrayFromImage(labels).astype(np.int64) + 1
        return result

    return cut


def _reference(block: int, double: bool) -> Cut:
    def cut(case: Case) -> NDArray[Any]:
        levels = (min(case.step) // block).bit_length()
        seeds = _grid(case.shape, *_closest_grid(case.shape, case.count, levels), double)
        seeds.iterate(case.scaled, 12)
        labels: NDArray[Any] = seeds.getLabels() + 1
        return labels

    return cut


def _grid(shape: Triple, count: int, levels: int, double: bool = False) -> Any:
    module = import_optional("python_3d_seeds", "the 3D SEEDS reference", "python_3d_seeds")
    z, y, x = shape
    return module.createSupervoxelSEEDS(
        width=x, height=y, depth=z, channels=1, num_superpixels=count, num_levels=levels, double_step=double
    )


@cache
def _closest_grid(shape: Triple, count: int, levels: int) -> tuple[int, int]:
    """Return the request, a number and levels, for which the reference makes closest to ``count`` supervoxels.

    The reference rounds down, and drops voxels beyond its last whole block.
    """
    result, smallest = (count, levels), count
    for request in product(range(count, 2 * count, 1 + count // 20), range(levels, 1, -1)):
        difference = abs(_grid(shape, *request).getNumberOfSuperpixels() - count)
        if difference < smallest:
            result, smallest = request, difference
        if smallest == 0:
            break
    return result
