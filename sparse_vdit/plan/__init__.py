"""Plans: which pattern each head uses. `layer.py` one layer, `transformer.py` one model, `sparse.py` a pipeline."""

from .file import PlanError
from .identity import ModelIdentity
from .layer import NO_ITEM, LayerPlan, PackedArrays, VisitPool, pack
from .sparse import SparsePlan
from .transformer import LayeredTransformerPlan, TransformerPlan

__all__ = [
    "NO_ITEM",
    "LayerPlan",
    "LayeredTransformerPlan",
    "ModelIdentity",
    "PackedArrays",
    "PlanError",
    "SparsePlan",
    "TransformerPlan",
    "VisitPool",
    "pack",
]
