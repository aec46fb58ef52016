"""What was built and what is live in this process."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from . import _C

__all__ = ["build_info"]


def build_info() -> dict[str, Any]:
    """Tells what was built, what this CPU can do and which engines and doors are in use.

    Nothing is imported for it: torch is described only as far as it is loaded already.

    Returns:
        dict: the C module's part (`version`, `compiler`, `isa`, `isa_best`, `isa_env`, `pool`, `threads`, `with_cuda`,
        `cuda_archs`, `without_cuda_because`, `engines`, `api_version`), and `torch` (version of the
        loaded torch or None); `torch_extension` (whether `sparse_vdit._torch` was built); `torch_door` ("_torch" or
        "python": who runs `torch.ops.sparse_vdit.attention`; None while `sparse_vdit.ops` is not loaded).

    Raises:
        ValueError: SPARSE_VDIT_ISA holds a word that is not a level.

    Example:
        >>> import sparse_vdit
        >>> sparse_vdit.build_info()["with_cuda"]
        False
    """
    torch = sys.modules.get("torch")
    ops = sys.modules.get(f"{__package__}.ops")
    info: dict[str, Any] = dict(_C.build_info())
    info["torch"] = str(torch.__version__) if torch is not None else None
    info["torch_extension"] = importlib.util.find_spec(f"{__package__}._torch") is not None
    info["torch_door"] = ops.DOOR if ops is not None else None
    return info
