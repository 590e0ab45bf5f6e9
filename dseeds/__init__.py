"""3D SEEDS supervoxels for volumes of any size: in memory with `supervoxels`, out of core on Dask with `segment`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dseeds.adjacency import AdjacencyGraph, load_graph
    from dseeds.agglomeration import MergeTree, agglomerate
    from dseeds.engine import segment
    from dseeds.evaluation import evaluate
    from dseeds.exporting import export_volume
    from dseeds.importing import import_volume
    from dseeds.memory import supervoxels
    from dseeds.page import html_report
    from dseeds.painting import Painted, paint
    from dseeds.planning import Plan, plan
    from dseeds.previewing import preview
    from dseeds.report import Report
    from dseeds.tabulation import Features, features

__version__ = "0.1.0"

__all__ = [
    "AdjacencyGraph",
    "Features",
    "MergeTree",
    "Painted",
    "Plan",
    "Report",
    "__version__",
    "agglomerate",
    "evaluate",
    "export_volume",
    "features",
    "html_report",
    "import_volume",
    "load_graph",
    "paint",
    "plan",
    "preview",
    "segment",
    "supervoxels",
]

# Numba and Dask take a second to import, which the command line's help need not wait for.
_HOMES = {
    "AdjacencyGraph": "adjacency",
    "Features": "tabulation",
    "MergeTree": "agglomeration",
    "Painted": "painting",
    "Plan": "planning",
    "Report": "report",
    "agglomerate": "agglomeration",
    "evaluate": "evaluation",
    "export_volume": "exporting",
    "features": "tabulation",
    "html_report": "page",
    "import_volume": "importing",
    "load_graph": "adjacency",
    "paint": "painting",
    "plan": "planning",
    "preview": "previewing",
    "segment": "engine",
    "supervoxels": "memory",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
