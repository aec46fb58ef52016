"""One tolerance for every attention test, with its reason.

Rule: ``|ours - ref| <= 2 * max|naive - ref| + 4 * eps(dtype) * max|ref|`` element by element, where ``ref`` is the
masked formula in float64 and ``naive`` the same formula evaluated step by step in the tested dtype. The first term says
"no worse than twice what the plain formula loses", the second leaves room where the plain formula happens to be exact.
"""

from __future__ import annotations

import numpy as np

# eps(dtype): distance from 1 to the next value, as the IEEE formats (and bfloat16's 7 fraction bits) define it.
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Room beside twice the naive error, in eps: one rounding of the output, one of the weights, two spare.
FLOOR_EPS = 4.0
# LSE is float32 for every input dtype: products of low-precision inputs are exact, only float32 rounding counts.
LSE_ABSOLUTE = 2e-4


def to_float64(array: np.ndarray) -> np.ndarray:
    """float64 copy of any array, torch tensors and ml_dtypes' bfloat16 included."""
    if hasattr(array, "detach"):
        array = array.detach().to("cpu").double().numpy()
    return np.asarray(array).astype(np.float64)


def dtype_name(array: object) -> str:
    """``float32``, ``float16`` or ``bfloat16`` of a NumPy array or torch tensor."""
    return str(array.dtype).removeprefix("torch.")  # type: ignore[attr-defined]


def allowed_error(ref: np.ndarray, naive: np.ndarray, dtype: str) -> float:
    """The bound of this module's rule, one number for the whole output."""
    ref, naive = to_float64(ref), to_float64(naive)
    scale = float(np.max(np.abs(ref), initial=0.0))
    return 2.0 * float(np.max(np.abs(naive - ref), initial=0.0)) + FLOOR_EPS * EPS[dtype] * max(scale, 1e-30)


def assert_close_to_reference(
    ours: np.ndarray, ref: np.ndarray, naive: np.ndarray, dtype: str | None = None
) -> None:
    """Fails with the worst element and its coordinates; NaN anywhere in ``ours`` fails.

    Args:
        ours: Result under test, any float dtype; NumPy or torch.
        ref: The same in float64.
        naive: The same formula in the tested dtype (see ``naive_attention``).
        dtype: Name of the tested dtype; default: the dtype of ``ours``.
    """
    dtype = dtype or dtype_name(ours)
    mine, ref = to_float64(ours), to_float64(ref)
    assert mine.shape == ref.shape, f"shape is {mine.shape}, expected {ref.shape}"
    wrong = ~np.isfinite(mine) & np.isfinite(ref)
    assert not wrong.any(), f"{int(wrong.sum())} non-finite values, first at {tuple(np.argwhere(wrong)[0])}"
    bound = allowed_error(ref, naive, dtype)
    error = np.abs(mine - ref)
    if error.size and float(error.max()) > bound:
        at = np.unravel_index(int(error.argmax()), error.shape)
        raise AssertionError(
            f"{dtype}: worst error {error[at]:.3e} at {tuple(int(i) for i in at)} "
            f"(ours {mine[at]:.6g}, reference {ref[at]:.6g}), allowed {bound:.3e}"
        )


def assert_lse_close(ours: np.ndarray, ref: np.ndarray) -> None:
    """LSE: -inf in the same places, else within ``LSE_ABSOLUTE`` times the size of the value."""
    mine, ref = to_float64(ours), to_float64(ref)
    assert mine.shape == ref.shape, f"LSE shape is {mine.shape}, expected {ref.shape}"
    assert (np.isneginf(mine) == np.isneginf(ref)).all(), "LSE is -inf in other places than the reference"
    finite = np.isfinite(ref)
    error = np.abs(mine[finite] - ref[finite]) / np.maximum(1.0, np.abs(ref[finite]))
    assert error.size == 0 or float(error.max()) <= LSE_ABSOLUTE, (
        f"LSE: worst relative error {float(error.max()):.3e}"
    )


def round_to(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 array rounded through ``dtype`` and back (bfloat16: nearest even by bits)."""
    array = np.asarray(array, np.float32)
    if dtype == "float16":
        return array.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = array.view(np.uint32)
        rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
        return rounded.view(np.float32)
    return array


def naive_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float, dtype: str
) -> np.ndarray:
    """The masked formula in the tested dtype: float32 sums, weights and result rounded to ``dtype``.

    Args:
        q: ``[B, H, N, D]`` values of the tested dtype (any float dtype).
        k: Same shape.
        v: Same shape.
        mask: bool, broadcastable to ``[B, H, N, N]``: may query i attend to key j.
        scale: Factor of the logits.
        dtype: Name of the tested dtype.

    Returns:
        float32 ``[B, H, N, D]``; rows without keys are zero.
    """
    q32, k32, v32 = (to_float64(x).astype(np.float32) for x in (q, k, v))
    keep = np.broadcast_to(mask, (*q32.shape[:3], k32.shape[2]))
    logits = np.where(keep, np.einsum("bhid,bhjd->bhij", q32, k32) * np.float32(scale), np.float32(-np.inf))
    top = np.max(logits, axis=-1, keepdims=True, initial=-np.inf)
    weights = round_to(np.exp(logits - np.where(np.isfinite(top), top, 0)), dtype)
    total = weights.sum(-1, keepdims=True)
    values = np.where(keep.any(-2)[..., None], v32, 0)  # a value that nobody reads must not spread by 0 * NaN
    out = np.einsum("bhij,bhjd->bhid", weights, values) / np.where(total > 0, total, 1)
    return round_to(out, dtype)
