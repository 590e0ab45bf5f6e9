"""3D SEEDS supervoxels for volumes of any size: in memory with `supervoxels`, out of core on Dask with `segment`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dseeds.engine import segment
    from dseeds.memory import supervoxels
    from dseeds.metrics import evaluate
    from dseeds.planning import Plan, plan
    from dseeds.report import Report

__version__ = "0.1.0"

__all__ = ["Plan", "Report", "__version__", "evaluate", "plan", "segment", "supervoxels"]

# Numba and Dask take a second to import, which the command line's help need not wait for.
_HOMES = {
    "Plan": "planning",
    "Report": "report",
    "evaluate": "metrics",
    "plan": "planning",
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
