"""`_torch`, the Python bodies and the NumPy door give the same bits and the same classes of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, UnsupportedError, attention, ops  # noqa: E402

GEOMETRY = Geometry(frames=4, height=6, width=8, prefix=4, suffix=3, block_q=32, block_k=16)
LAYER = LayerPlan(
    GEOMETRY,
    [
        Pattern.full(),
        Pattern.skip(),
        Pattern.diagonal(half_width=15, remainder=0.25),
        Pattern.multi_diagonal(half_width=4),
        Pattern.vertical_stripe(key_blocks=[3, 7], order=Order.tiles(1, 2, 2), remainder=-0.5),
    ],
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make(
    dtype: str = "float32", head_dim: int = 64, heads: int = 5, tokens: int = GEOMETRY.tokens
) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, heads, tokens, head_dim)
    return [torch.randn(shape, generator=generator).to(DTYPES[dtype]) for _ in range(3)]


def as_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.bfloat16:
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        return tensor.view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def run_python_body(q: Any, k: Any, v: Any, kv_len: Any, return_lse: bool) -> Any:
    packed = ops.PackedLayer.from_arrays(LAYER.packed())
    bin_ = torch.zeros(1, dtype=torch.int64)
    scale = q.shape[-1] ** -0.5
    return ops._attention_python(q, k, v, *packed[:5], bin_, list(packed.geometry), scale, kv_len, return_lse)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_len", [None, [GEOMETRY.tokens - 3, GEOMETRY.tokens]])
def test_three_doors_same_bits(dtype: str, kv_len: list[int] | None) -> None:
    q, k, v = make(dtype)
    lengths = None if kv_len is None else torch.tensor(kv_len)
    out, lse = attention(q, k, v, layer=LAYER, kv_len=lengths, return_lse=True)
    plain_out, plain_lse = run_python_body(q, k, v, lengths, True)
    array_out, array_lse = attention(*map(as_numpy, (q, k, v)), layer=LAYER, kv_len=kv_len, return_lse=True)
    assert out.dtype == q.dtype
    assert torch.equal(out.view(torch.uint8), plain_out.view(torch.uint8))
    assert torch.equal(lse, plain_lse)
    assert array_out.dtype.name == dtype
    assert np.array_equal(array_out.view(np.uint8), out.view(torch.uint8).numpy())
    assert np.array_equal(array_lse, lse.numpy())
    assert not out[:, 1].any()
    assert torch.isneginf(lse[:, 1]).all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded batch", "fused qkv"])
def test_strides_change_nothing(layout: str) -> None:
    q, k, v = make()
    expected = attention(q, k, v, layer=LAYER)
    if layout == "transposed":
        given = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    elif layout == "sliced":
        given = [torch.cat([t, t], dim=-1)[..., :64] for t in (q, k, v)]
    elif layout == "expanded batch":
        given = [t[:1].expand(2, -1, -1, -1) for t in (q, k, v)]
        expected = expected[:1].expand(2, -1, -1, -1)
    else:
        given = torch.cat([t.transpose(1, 2).flatten(2) for t in (q, k, v)], dim=-1).chunk(3, dim=-1)
        given = [t.unflatten(-1, (5, 64)).transpose(1, 2) for t in given]
    out = attention(*given, layer=LAYER)
    assert torch.equal(out, expected)
    assert torch.equal(run_python_body(*given, None, False)[0], expected)


@pytest.mark.parametrize("kv_len", [197, np.int64(197), np.array([197, 197], np.int32), [197, 197]])
def test_kv_len_comes_in_many_clothes(kv_len: Any) -> None:
    q, k, v = make()
    expected = attention(q, k, v, layer=LAYER, kv_len=torch.tensor([197, 197], dtype=torch.int32))
    assert torch.equal(attention(q, k, v, layer=LAYER, kv_len=kv_len), expected)
    arrays = [t.numpy() for t in (q, k, v)]
    assert np.array_equal(attention(*arrays, layer=LAYER, kv_len=kv_len), expected.numpy())


def spoil(name: str) -> tuple[type[Exception], str, list[Any]]:
    q, k, v = make()
    tokens = GEOMETRY.tokens
    return {
        "dtype": (
            TypeError,
            "attention: q is float64, expected float32, float16 or bfloat16",
            [q.double(), k, v],
        ),
        "mixed dtype": (TypeError, "attention: v is float16, expected float32", [q, k, v.half()]),
        "tokens": (
            ValueError,
            rf"attention: k.shape\[2\] is {tokens - 1}, expected {tokens}",
            [q, k[:, :, 1:], v],
        ),
        "heads": (ValueError, r"attention: q.shape\[1\] is 4, expected 5", [t[:, :4] for t in (q, k, v)]),
        "last dim": (ValueError, r"attention: q.stride\[3\] is .*, expected 1", [q.mT.contiguous().mT, k, v]),
        "dimensions": (ValueError, "attention: q has 3 dimensions, expected 4", [q[0], k, v]),
        "head_dim": (
            UnsupportedError,
            "attention: .*head_dim.* 20",
            [t[..., :20].contiguous() for t in (q, k, v)],
        ),
        "geometry": (
            ValueError,
            rf"attention: q.shape\[2\] is {tokens - 1}",
            [t[:, :, 1:] for t in (q, k, v)],
        ),
    }[name]


@pytest.mark.parametrize(
    "name", ["dtype", "mixed dtype", "tokens", "heads", "last dim", "dimensions", "head_dim", "geometry"]
)
def test_doors_refuse_alike(name: str) -> None:
    kind, sentence, tensors = spoil(name)
    said = []
    for given in (tensors, [t.numpy() for t in tensors]):
        with pytest.raises(kind, match=sentence) as caught:
            attention(*given, layer=LAYER)
        assert type(caught.value) is kind
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_grad_and_kinds_are_refused() -> None:
    q, k, v = make()
    with pytest.raises(UnsupportedError, match="attention: k requires grad, expected inputs without"):
        attention(q, k.requires_grad_(), v, layer=LAYER)
    with pytest.raises(
        TypeError, match=r"attention: q is torch.Tensor, .* v is numpy.ndarray, expected three"
    ):
        attention(q, q, v.numpy(), layer=LAYER)
    with pytest.raises(TypeError, match="attention: layer is list, expected a LayerPlan"):
        attention(q, q, v, layer=[])
    with pytest.raises(UnsupportedError, match="attention: q is on meta, expected cpu"):
        attention(*(t.detach().to("meta") for t in (q, k, v)), layer=LAYER)
