"""Types of the C module. `Ints` are wire formats of csrc/pattern/*.h; arrays are C-contiguous."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = tuple[int, ...] | list[int]
View = tuple[int, tuple[int, ...], tuple[int, ...]]
Metadata = tuple[tuple[int, ...], tuple[int, ...], str]
Masks = NDArray[np.bool_]

_api: Any

class SparseVDiTError(Exception): ...
class UnsupportedError(SparseVDiTError, NotImplementedError): ...
class CudaError(SparseVDiTError, RuntimeError): ...

def geometry_check(geometry: Ints) -> None: ...
def pattern_check(geometry: Ints, pattern: NDArray[np.int64], who: str = "pattern") -> None: ...
def places(geometry: Ints, order: Ints) -> NDArray[np.int64]: ...
def tokens(geometry: Ints, order: Ints) -> NDArray[np.int32]: ...
def visits(
    geometry: Ints, patterns: Sequence[NDArray[np.int64]], remainder: Masks
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]: ...
def visits_from_masks(
    geometry: Ints, masks: Sequence[Masks], remainder: Masks
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]: ...
def block_mask(geometry: Ints, rows: NDArray[np.uint32], codes: NDArray[np.uint32]) -> Masks: ...
def visited_pairs(geometry: Ints, rows: NDArray[np.uint32], codes: NDArray[np.uint32]) -> float: ...
def items(
    geometry: Ints, rows: NDArray[np.uint32], choice: NDArray[np.int32], remainder: Masks
) -> NDArray[np.uint32]: ...
def attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    items: NDArray[np.uint32],
    codes: NDArray[np.uint32],
    heads: NDArray[np.int32],
    betas: NDArray[np.float32],
    tokens: NDArray[np.int32],
    geometry: Ints,
    scale: float,
    kv_len: NDArray[np.int64] | None,
    return_lse: bool,
) -> Any: ...
def attention_pointers(
    dtype: str,
    q: View,
    k: View,
    v: View,
    out: View,
    lse: View | None,
    items: View,
    codes: View,
    heads: View,
    betas: View,
    tokens: View,
    bin: int,
    geometry: Ints,
    scale: float,
    kv_len: View | None,
) -> None: ...
def attention_check(
    q: Metadata, k: Metadata, v: Metadata, geometry: Ints, n_heads: int, scale: float, device: str = "cpu"
) -> None: ...
def attention_reference(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    mask: NDArray[Any] | None,
    kv_len: NDArray[np.int64] | None,
    scale: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def cost_layers(
    hardware: NDArray[np.float64],
    geometry: Ints,
    visit_rows: NDArray[np.uint32],
    codes: NDArray[np.uint32],
    choice: NDArray[np.int32],
    remainder: Masks,
    orders: NDArray[np.int32],
    batch: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def cost_heads(
    hardware: NDArray[np.float64],
    geometry: Ints,
    visit_rows: NDArray[np.uint32],
    codes: NDArray[np.uint32],
    orders: NDArray[np.int32],
    batch: int,
    heads: int,
) -> NDArray[np.float64]: ...
def hardware_names() -> tuple[str, ...]: ...
def hardware_engine(dtype: str, head_dim: int) -> NDArray[np.float64]: ...
def attention_engine(dtype: str, head_dim: int) -> str: ...
def fma_peak(dtype: str = "float32", seconds: float = 0.2) -> float: ...
def select_paper(
    mse: NDArray[np.float64], sparsity: NDArray[np.float64], lambda_: float, epsilon: float, full: int
) -> NDArray[np.int32]: ...
def select_budget(
    errors: NDArray[np.float32],
    times: NDArray[np.float64],
    time_group: NDArray[np.int32],
    weights: NDArray[np.float64],
    repeats: NDArray[np.float64],
    budget: float,
    objective: str = "time",
    layer: NDArray[np.int32] | None = None,
    layer_caps: NDArray[np.float64] | None = None,
) -> dict[str, Any]: ...
def probe(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    rows: NDArray[np.int32],
    geometry: Ints,
    scale: float,
    visit_rows: NDArray[np.uint32],
    codes: NDArray[np.uint32],
    orders: NDArray[np.int32],
    tokens: NDArray[np.int32],
    kv_len: NDArray[np.int64] | None,
    betas: NDArray[np.float64],
    stripes: NDArray[np.int32] | None,
    stripe_counts: NDArray[np.int32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def build_info() -> dict[str, Any]: ...
def set_threads(n: int) -> None: ...
def scratch_live() -> int: ...
def scratch_fail_at(n: int) -> None: ...
def raise_interrupt() -> None: ...
def _bind_torch() -> bool: ...
def _fail(status: int, sentence: str) -> None: ...
