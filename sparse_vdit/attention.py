"""The one door to attention: NumPy arrays go straight to the C module, torch tensors through the operator."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from . import _C
from .plan import LayerPlan

__all__ = ["attention"]


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    layer: LayerPlan,
    scale: float | None = None,
    kv_len: Any = None,
    return_lse: bool = False,
) -> Any:
    """Attention of all heads of a layer, each over the key blocks that its pattern visits.

    For a query i of a head, with j over the keys of the visited blocks and j < kv_len:
    `out_i = sum_j softmax_j(scale * q_i . k_j) v_j`. A remainder adds the means of unvisited blocks as pseudo keys.

    Args:
        q (`numpy.ndarray` or `torch.Tensor` of shape `[B, H, N, D]`): Queries: float32, float16 or bfloat16. Any
            strides with a contiguous last dim; a `[B, N, H, D]` tensor comes as its transposed view.
        k, v: Keys and values, of the shape and dtype of `q`.
        layer (`LayerPlan`): Geometry and a pattern per head.
        scale (`float`, defaults to `1 / sqrt(D)`): Factor of the logits.
        kv_len (`int` or integer array or tensor of shape `[B]`, *optional*): Keys at or beyond this index take no
            part. At least prefix + video tokens, at most N.
        return_lse (`bool`, defaults to `False`): Also return the logarithm of the softmax's denominator.

    Returns:
        The output of the shape and dtype of `q` (a tensor also in its memory order), or `(output, lse)` with `lse`
        float32 `[B, H, N]`. A query without keys gives zeros and -inf.

    Raises:
        ValueError: "attention: k.shape[2] is 4095, expected 4096 (= q.shape[2])".
        TypeError: "attention: q is float64, expected float32, float16 or bfloat16"; mixed kinds of arrays.
        UnsupportedError: Inputs that require grad, tensors that are not on the CPU.

    Example:
        >>> import numpy as np
        >>> from sparse_vdit import Geometry, LayerPlan, Pattern, attention
        >>> geometry = Geometry(frames=4, height=8, width=8, block_q=32, block_k=32)
        >>> layer = LayerPlan(geometry, [Pattern.full(), Pattern.diagonal(half_width=31)])
        >>> q = np.ones((1, 2, 256, 64), np.float32)
        >>> attention(q, q, q, layer=layer).shape
        (1, 2, 256, 64)
    """
    if not isinstance(layer, LayerPlan):
        raise TypeError(f"attention: layer is {type(layer).__name__}, expected a LayerPlan")
    arrays = {"q": q, "k": k, "v": v}
    if all(isinstance(array, np.ndarray) for array in arrays.values()):
        return _attend_numpy(q, k, v, layer, scale, kv_len, return_lse)
    torch = sys.modules.get("torch")
    if torch is not None and all(isinstance(array, torch.Tensor) for array in arrays.values()):
        return _attend_torch(q, k, v, layer, scale, kv_len, return_lse)
    kinds = ", ".join(
        f"{name} is {type(array).__module__}.{type(array).__name__}" for name, array in arrays.items()
    )
    raise TypeError(f"attention: {kinds}, expected three numpy.ndarray or three torch.Tensor")


def _default_scale(q: Any, scale: Any) -> float:
    if scale is None:
        return 1.0 / math.sqrt(max(int(q.shape[-1]), 1) if q.ndim else 1)
    if not isinstance(scale, (bool, str, bytes)):
        try:
            return float(scale)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"attention: scale is {type(scale).__name__}, expected a number")


def _attend_numpy(
    q: Any, k: Any, v: Any, layer: LayerPlan, scale: float | None, kv_len: Any, return_lse: bool
) -> Any:
    return _C.attention(
        q,
        k,
        v,
        layer.items(),
        layer.codes,
        layer.head_table,
        layer.betas,
        layer.tokens,
        layer.geometry.to_ints(),
        _default_scale(q, scale),
        _read_kv_len(kv_len, q.shape[0] if q.ndim else 1, layer),
        bool(return_lse),
    )


def _read_kv_len(kv_len: Any, n_batch: int, layer: LayerPlan) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """int64 `[B]`, or None; the range is checked here for all doors."""
    if kv_len is None:
        return None
    try:
        values = np.asarray(kv_len)
        found = str(values.dtype)
    except ValueError:
        values, found = np.empty(0, dtype=object), "uneven"
    if values.dtype.kind not in "iu":
        raise TypeError(f"attention: kv_len is {found}, expected an int or an integer array of shape [B]")
    if values.ndim == 0:
        values = np.broadcast_to(values, (n_batch,))
    if values.shape != (n_batch,):
        raise ValueError(f"attention: kv_len.shape is {values.shape}, expected ({n_batch},) (= [q.shape[0]])")
    least, most = layer.geometry.prefix + layer.geometry.video_tokens, layer.geometry.tokens
    for sample, value in enumerate(values.tolist()):
        if not least <= value <= most:
            raise ValueError(f"attention: kv_len[{sample}] is {value}, expected {least}..{most}")
    return np.array(values, dtype=np.int64)  # a copy: whatever came may be unaligned


def _attend_torch(
    q: Any, k: Any, v: Any, layer: LayerPlan, scale: float | None, kv_len: Any, return_lse: bool
) -> Any:
    from . import ops

    torch = sys.modules["torch"]
    if isinstance(kv_len, torch.Tensor):
        kv_len = kv_len.detach().cpu().numpy()
    lengths = _read_kv_len(kv_len, q.shape[0] if q.ndim else 1, layer)
    packed = layer.on_device(str(q.device), lambda: ops.PackedLayer.from_arrays(layer.packed(), q.device))
    kv_tensor = None if lengths is None else torch.from_numpy(lengths).to(q.device)
    return ops.attention_layer(
        q, k, v, packed, None, _default_scale(q, scale), kv_len=kv_tensor, return_lse=bool(return_lse)
    )
