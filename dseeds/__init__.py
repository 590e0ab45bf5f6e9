"""3D SEEDS supervoxels for volumes of any size: in memory with `supervoxels`, out of core on Dask with `segment`."""

from importlib import import_module
from typing import TYPE_CHECKING

from dseeds._version import __version__

# Forks wait for imports from the beginning.
from dseeds.core import forks as forks

if TYPE_CHECKING:
    from dseeds.api.edit import Edits, edit
    from dseeds.api.segment import segment
    from dseeds.api.segment_many import VolumeResult, segment_many
    from dseeds.api.supervoxels import supervoxels
    from dseeds.convert.export_volume import export_volume
    from dseeds.convert.import_volume import import_volume
    from dseeds.engine.planning import Plan, plan
    from dseeds.engine.report import Report
    from dseeds.measure.agglomeration import MergeTree, agglomerate
    from dseeds.measure.crops import Crops, SupervoxelCrop, crops
    from dseeds.measure.explanations import feature_mask, fill_features, perturb
    from dseeds.measure.features import Features, features
    from dseeds.measure.painting import Painted, paint
    from dseeds.measure.pooling import Pooled, pool
    from dseeds.measure.propagation import Propagated, RandomWalker, propagate
    from dseeds.measure.region_graph import AdjacencyGraph, load_graph
    from dseeds.measure.textures import Textures, textures
    from dseeds.measure.tokens import Tokens, tokens
    from dseeds.measure.votes import Votes, vote
    from dseeds.quality.evaluation import evaluate
    from dseeds.storage.edit_log import EditRecord
    from dseeds.viz.html_report import html_report
    from dseeds.viz.preview import preview

__all__ = [
    "AdjacencyGraph",
    "Crops",
    "EditRecord",
    "Edits",
    "Features",
    "MergeTree",
    "Painted",
    "Plan",
    "Pooled",
    "Propagated",
    "RandomWalker",
    "Report",
    "SupervoxelCrop",
    "Textures",
    "Tokens",
    "VolumeResult",
    "Votes",
    "__version__",
    "agglomerate",
    "crops",
    "edit",
    "evaluate",
    "export_volume",
    "feature_mask",
    "features",
    "fill_features",
    "html_report",
    "import_volume",
    "load_graph",
    "paint",
    "perturb",
    "plan",
    "pool",
    "preview",
    "propagate",
    "segment",
    "segment_many",
    "supervoxels",
    "textures",
    "tokens",
    "vote",
]

# Numba and Dask take a second to import, which the command line's help need not wait for.
_HOMES = {
    "AdjacencyGraph": "measure.region_graph",
    "Crops": "measure.crops",
    "EditRecord": "storage.edit_log",
    "Edits": "api.edit",
    "Features": "measure.features",
    "MergeTree": "measure.agglomeration",
    "Painted": "measure.painting",
    "Plan": "engine.planning",
    "Pooled": "measure.pooling",
    "Propagated": "measure.propagation",
    "RandomWalker": "measure.propagation",
    "Report": "engine.report",
    "SupervoxelCrop": "measure.crops",
    "Textures": "measure.textures",
    "Tokens": "measure.tokens",
    "VolumeResult": "api.segment_many",
    "Votes": "measure.votes",
    "agglomerate": "measure.agglomeration",
    "crops": "measure.crops",
    "edit": "api.edit",
    "evaluate": "quality.evaluation",
    "export_volume": "convert.export_volume",
    "feature_mask": "measure.explanations",
    "features": "measure.features",
    "fill_features": "measure.explanations",
    "html_report": "viz.html_report",
    "import_volume": "convert.import_volume",
    "load_graph": "measure.region_graph",
    "paint": "measure.painting",
    "perturb": "measure.explanations",
    "plan": "engine.planning",
    "pool": "measure.pooling",
    "preview": "viz.preview",
    "propagate": "measure.propagation",
    "segment": "api.segment",
    "segment_many": "api.segment_many",
    "supervoxels": "api.supervoxels",
    "textures": "measure.textures",
    "tokens": "measure.tokens",
    "vote": "measure.votes",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
