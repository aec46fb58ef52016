"""The exceptions of sparse_vdit, as the C module made them.

`ValueError`, `TypeError` and `MemoryError` are raised as Python knows them; the classes here are for the rest.
"""

from collections.abc import Callable
from typing import Any

from ._C import CudaError, SparseVDiTError, UnsupportedError

__all__ = ["CudaError", "SparseVDiTError", "UnsupportedError", "absent"]


def absent(name: str, library: str) -> Callable[..., Any]:
    """Stands for a function whose library is not installed, and says so when it is called."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(
            f"{name}: {library} is not installed, expected it (pip install 'sparse-vdit[diffusers]')",
            name=library,
        )

    return refuse
