"""3D SEEDS supervoxels for volumes of any size: in memory with `supervoxels`, out of core on Dask with `segment`."""

from dseeds.engine import segment
from dseeds.memory import supervoxels
from dseeds.metrics import evaluate
from dseeds.report import Report

__version__ = "0.1.0"

__all__ = ["Report", "__version__", "evaluate", "segment", "supervoxels"]
