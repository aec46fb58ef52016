"""The torch door: `torch.ops.sparse_vdit.attention`, its schema, fakes and bodies.

Importing this imports torch. The bodies are those of `sparse_vdit._torch` where it was built (`DOOR == "_torch"`),
else Python over raw pointers to `_C` (`DOOR == "python"`): same core, same bits. Inference only: an input that requires
grad is refused.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _C
from .errors import UnsupportedError

__all__ = ["DOOR", "PackedLayer", "attention_layer"]

SCHEMA = (
    "attention(Tensor q, Tensor k, Tensor v, Tensor items, Tensor codes, Tensor heads, Tensor betas, Tensor tokens, "
    "Tensor bin, int[] geometry, float scale, Tensor? kv_len, bool return_lse) -> (Tensor, Tensor)"
)
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class PackedLayer(NamedTuple):
    """The lists of one layer for all bins, as tensors on the device of q (layouts: `csrc/pattern/visits.h`).

    items int32 `[bins, n, 4]` (rows behind a bin's own are -1), codes int32 `[n_codes]`, heads int32 `[bins, H, 2]`
    (row of `tokens` or -1, flags), betas float32 `[bins, H]`, tokens int32 `[n_orders, N]`.
    """

    items: Tensor
    codes: Tensor
    heads: Tensor
    betas: Tensor
    tokens: Tensor
    geometry: tuple[int, ...]

    @classmethod
    def from_arrays(cls, arrays: Any, device: torch.device | str = "cpu") -> PackedLayer:
        """From the arrays of `LayerPlan.packed()` or `SparsePlan.packed(layer)`; on the CPU nothing is copied."""
        return cls(
            items=_share(arrays.items).to(device),
            codes=_share(arrays.codes).to(device),
            heads=_share(arrays.heads).to(device),
            betas=_share(arrays.betas).to(device),
            tokens=_share(arrays.tokens).to(device),
            geometry=tuple(int(number) for number in arrays.geometry),
        )


def _share(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over the array's memory, also where it is read-only: the operator never writes it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(np.ascontiguousarray(array))


def attention_layer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: PackedLayer,
    bin: Tensor | None,
    scale: float,
    kv_len: Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention of all heads of a layer; traceable by `torch.compile` without a graph break.

    Args:
        q, k, v (`torch.Tensor` of shape `[B, H, N, D]`): Any strides with a contiguous last dim.
        packed (`PackedLayer`): The lists of the layer.
        bin (`torch.Tensor` int64 of shape `[1]`, *optional*): Which bin; a tensor, so that traced code reads no number.
        scale (`float`): Factor of the logits.
        kv_len (`torch.Tensor` int64 of shape `[B]`, *optional*): Keys at or beyond it take no part.
        return_lse (`bool`, defaults to `False`): Also return the logarithm of the softmax's denominator.

    Returns:
        The output, in the memory order of q, or `(output, lse)` with lse float32 `[B, H, N]`.

    Raises:
        UnsupportedError: "attention: q requires grad, expected inputs without (there is no backward)"; tensors that
            are not on the CPU.
        ValueError, TypeError: As `sparse_vdit.attention`.
    """
    if bin is None:
        bin = torch.zeros(1, dtype=torch.int64, device=q.device)
    lists = (packed.items, packed.codes, packed.heads, packed.betas, packed.tokens)
    rest = (list(packed.geometry), scale, kv_len, return_lse)
    if torch.compiler.is_compiling():
        out, lse = torch.ops.sparse_vdit.attention.default(q, k, v, *lists, bin, *rest)
        return (out, lse) if return_lse else out
    _refuse_grad(q, k, v)
    _check(q, k, v, packed, scale)
    out, lse = _call(q, k, v, *lists, bin, *rest)
    return (out, lse) if return_lse else out


def _call(*arguments: Any) -> Any:
    """The operator; what a signal handler raised while it ran comes out in place of its RuntimeError."""
    try:
        return torch.ops.sparse_vdit.attention.default(*arguments)
    except RuntimeError:
        _C.raise_interrupt()
        raise


def _refuse_grad(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not torch.is_grad_enabled():
        return
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.requires_grad:
            raise UnsupportedError(
                f"attention: {name} requires grad, expected inputs without (there is no backward)"
            )


def _check(q: Tensor, k: Tensor, v: Tensor, packed: PackedLayer, scale: float) -> None:
    """The rules of the C door on metadata alone, so that the promised class is raised whichever body runs."""
    for name, tensor in (("k", k), ("v", v)):
        if tensor.device != q.device:
            raise ValueError(f"attention: {name} is on {tensor.device}, expected {q.device} like q")
    of_q, of_k, of_v = ((tuple(t.shape), t.stride(), _dtype_name(t)) for t in (q, k, v))
    _C.attention_check(of_q, of_k, of_v, packed.geometry, packed.heads.shape[1], scale, q.device.type)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# ---- the operator ----


def _is_transposed(q: Tensor) -> bool:
    """Whether q's heads lie inside its tokens: a [B, N, H, D] tensor seen as [B, H, N, D]."""
    return bool(q.stride(1) < q.stride(2))


def _new_outputs(q: Tensor, return_lse: bool) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, head_dim = q.shape
    if _is_transposed(q):
        out = q.new_empty((batch, tokens, heads, head_dim)).transpose(1, 2)
    else:
        out = q.new_empty((batch, heads, tokens, head_dim))
    return out, q.new_empty((batch, heads, tokens) if return_lse else (0,), dtype=torch.float32)


def _attention_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    items: Tensor,
    codes: Tensor,
    heads: Tensor,
    betas: Tensor,
    tokens: Tensor,
    bin: Tensor,
    geometry: list[int],
    scale: float,
    kv_len: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(f"attention: {name} has {tensor.dim()} dimensions, expected 4")
        if tensor.dtype not in DTYPE_NAMES:
            got = _dtype_name(tensor)
            raise TypeError(f"attention: {name} is {got}, expected float32, float16 or bfloat16")
        if tensor.device != q.device:
            raise ValueError(f"attention: {name} is on {tensor.device}, expected {q.device} like q")
    return _new_outputs(q, return_lse)


def _attention_grad(*arguments: Any) -> Any:
    """Stands before the bodies: refuses what requires grad instead of losing it quietly."""
    _refuse_grad(*arguments[:3])
    with torch._C._AutoDispatchBelowAutograd():
        return _call(*arguments)


def _attention_cuda(*arguments: Any) -> Any:
    raise UnsupportedError(
        f"attention: q is on cuda, expected cpu: {_C.build_info()['without_cuda_because']}"
    )


def _view(
    tensor: Tensor, name: str, dtype: torch.dtype | None = None
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    if dtype is not None and tensor.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        raise ValueError(f"attention: {name} is of another dtype, expected {wanted}")
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _attention_python(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    items: Tensor,
    codes: Tensor,
    heads: Tensor,
    betas: Tensor,
    tokens: Tensor,
    bin: Tensor,
    geometry: list[int],
    scale: float,
    kv_len: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """The body over raw pointers, where _torch was not built."""
    if q.dim() != 4:
        raise ValueError("attention: q has another number of dimensions, expected 4")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dtype not in DTYPE_NAMES or tensor.dtype != q.dtype:
            wanted = (
                "float32, float16 or bfloat16"
                if tensor.dtype not in DTYPE_NAMES
                else f"{DTYPE_NAMES[q.dtype]} like q"
            )
            raise ValueError(f"attention: {name} is {_dtype_name(tensor)}, expected {wanted}")
    out, lse = _new_outputs(q, return_lse)
    _C.attention_pointers(
        DTYPE_NAMES[q.dtype],
        _view(q, "q"),
        _view(k, "k"),
        _view(v, "v"),
        _view(out, "out"),
        _view(lse, "lse") if return_lse else None,
        _view(items, "items", torch.int32),
        _view(codes, "codes", torch.int32),
        _view(heads, "heads", torch.int32),
        _view(betas, "betas", torch.float32),
        _view(tokens, "tokens", torch.int32),
        int(bin.item()),
        list(geometry),
        scale,
        None if kv_len is None else _view(kv_len, "kv_len", torch.int64),
    )
    return out, lse


def _load_extension() -> bool:
    """Registers the bodies of _torch; False where it was not built. One that cannot be loaded is said aloud."""
    if importlib.util.find_spec(f"{__package__}._torch") is None:
        return False
    try:
        importlib.import_module(f"{__package__}._torch")
    except ImportError as error:
        warnings.warn(
            f"ops: sparse_vdit._torch does not load under torch {torch.__version__} ({error}), expected the torch it "
            "was built with or a later one; the slower Python bodies serve",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


def _register() -> tuple[torch.library.Library, str]:
    library = torch.library.Library("sparse_vdit", "FRAGMENT")
    library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    door = "_torch" if _load_extension() else "python"
    if door == "python":
        library.impl("attention", _attention_python, "CPU")
    if not _C.build_info()["with_cuda"]:
        library.impl("attention", _attention_cuda, "CUDA")
    library.impl("attention", _attention_grad, "Autograd")
    torch.library.register_fake("sparse_vdit::attention", _attention_fake, lib=library)
    _C._bind_torch()
    return library, door


_LIBRARY, DOOR = _register()
