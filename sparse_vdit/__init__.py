"""Sparse attention for diffusers' video transformers: a pattern per head, kernels in C.

Importing this loads NumPy and the C module, nothing heavier; what needs torch or diffusers comes with its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CudaError, SparseVDiTError, UnsupportedError, absent
from .info import build_info
from .pattern import Geometry, Order, Pattern
from .plan import LayerPlan, SparsePlan

from .attention import attention  # isort: skip  (last: the function hides the module of the same name)

if TYPE_CHECKING:
    from .models import applied, apply, observe, remove
    from .models.explain import explain

__version__ = "0.1.0"
_LAZY = {"apply": "models", "applied": "models", "explain": "models", "observe": "models", "remove": "models"}
# fmt: off
__all__ = [
    "CudaError", "Geometry", "LayerPlan", "Order", "Pattern", "SparsePlan", "SparseVDiTError", "UnsupportedError",
    "applied", "apply", "attention", "build_info", "explain", "observe", "remove",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sparse_vdit' has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "diffusers"):
            raise
        return absent(name, error.name)
