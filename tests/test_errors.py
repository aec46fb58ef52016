"""Every failure arrives as the promised class with one sentence: who, what is got, what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparse_vdit import (
    _C,
    CudaError,
    Geometry,
    LayerPlan,
    Order,
    Pattern,
    SparseVDiTError,
    UnsupportedError,
    attention,
)

GEOMETRY = Geometry(frames=4, height=6, width=8, prefix=4, suffix=3, block_q=32, block_k=16)
INTS = GEOMETRY.to_ints()
LAYER = LayerPlan(GEOMETRY, [Pattern.full(), Pattern.diagonal(half_width=15, remainder=0.5)])
LAYER.items()  # made once, here: its pool of codes stays alive
TOKENS = GEOMETRY.tokens
DIAGONAL = Pattern.diagonal(half_width=15).to_ints()
PLAIN = np.zeros(1, bool)


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


def one_call(**changed: Any) -> Any:
    """_C.attention with one argument replaced."""
    qkv = ones(1, 2, TOKENS, 64)
    arguments = {
        "q": qkv,
        "k": qkv,
        "v": qkv,
        "items": LAYER.items(),
        "codes": LAYER.codes,
        "heads": LAYER.head_table,
        "betas": LAYER.betas,
        "tokens": LAYER.tokens,
        "geometry": INTS,
        "scale": 0.125,
        "kv_len": None,
        "return_lse": False,
    }
    return _C.attention(**(arguments | changed))


# ---- statuses ----

STATUSES = {
    1: ValueError,
    2: TypeError,
    3: MemoryError,
    4: UnsupportedError,
    5: CudaError,
    6: KeyboardInterrupt,
    7: SparseVDiTError,
}


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_has_its_class_and_keeps_its_sentence(status: int) -> None:
    with pytest.raises(STATUSES[status]) as caught:
        _C._fail(status, "attention: k is short, expected 4096 °")
    assert type(caught.value) is STATUSES[status]
    assert str(caught.value) == "attention: k is short, expected 4096 °"


def test_ok_is_no_failure_and_long_sentences_are_cut() -> None:
    assert _C._fail(0, "nothing") is None
    with pytest.raises(ValueError) as caught:
        _C._fail(1, "é" * 600)
    assert 250 <= len(str(caught.value)) <= 256


def test_classes_are_what_callers_catch() -> None:
    assert issubclass(UnsupportedError, NotImplementedError)
    assert issubclass(CudaError, RuntimeError)
    assert issubclass(UnsupportedError, SparseVDiTError)
    assert issubclass(CudaError, SparseVDiTError)
    assert (_C.SparseVDiTError, _C.UnsupportedError, _C.CudaError) == (
        SparseVDiTError,
        UnsupportedError,
        CudaError,
    )


# ---- the NumPy door ----

QKV = ("q", "k", "v")


@pytest.mark.parametrize("name", QKV)
@pytest.mark.parametrize("dtype", ["float64", "int32", ">f4", "complex64", "bool", "V4", "O"])
def test_other_dtypes_are_type_errors(name: str, dtype: str) -> None:
    array = np.zeros((1, 2, TOKENS, 64), np.dtype(dtype))
    with pytest.raises(TypeError) as caught:
        one_call(**{name: array})
    got = str(np.dtype(dtype))
    assert str(caught.value) == f"attention: {name} is {got}, expected float32, float16 or bfloat16"


def misaligned() -> np.ndarray[Any, Any]:
    raw = np.zeros(2 * TOKENS * 64 * 4 + 1, np.uint8)
    return raw[1:].view(np.float32).reshape(1, 2, TOKENS, 64)


def odd_stride() -> np.ndarray[Any, Any]:
    raw = np.zeros((1, 2, TOKENS, 64 * 4 + 2), np.uint8)
    return np.lib.stride_tricks.as_strided(
        raw.view(np.uint8)[..., :256].view(np.uint8), raw.shape, raw.strides
    )[..., :256].view(np.float32)


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "list": (TypeError, "attention: q is list, expected numpy.ndarray", lambda: one_call(q=[1.0])),
    "three dims": (
        ValueError,
        r"attention: q has 3 dimensions, expected 4 \(batch, head, token, channel\)",
        lambda: one_call(q=ones(2, TOKENS, 64)),
    ),
    "tokens": (
        ValueError,
        rf"attention: k.shape\[2\] is {TOKENS + 1}, expected {TOKENS} .*",
        lambda: one_call(k=ones(1, 2, TOKENS + 1, 64)),
    ),
    "batch": (
        ValueError,
        r"attention: v.shape\[0\] is 3, expected 1 .*",
        lambda: one_call(v=ones(3, 2, TOKENS, 64)),
    ),
    "mixed dtype": (
        TypeError,
        "attention: v is float16, expected float32 .*",
        lambda: one_call(v=ones(1, 2, TOKENS, 64, dtype=np.float16)),
    ),
    "last dim": (
        ValueError,
        r"attention: q.stride\[3\] is 2, expected 1 .*",
        lambda: one_call(q=ones(1, 2, TOKENS, 128)[..., ::2]),
    ),
    "backwards": (
        ValueError,
        r"attention: q.stride\[3\] is -1, expected 1 .*",
        lambda: one_call(q=ones(1, 2, TOKENS, 64)[..., ::-1]),
    ),
    "misaligned": (
        ValueError,
        "attention: k is not aligned, expected an address and strides that are multiples of 4 bytes",
        lambda: one_call(k=misaligned()),
    ),
    "odd stride": (
        ValueError,
        "attention: k is not aligned, expected an address and strides that are multiples of 4 bytes",
        lambda: one_call(k=odd_stride()),
    ),
    "head_dim 20": (
        UnsupportedError,
        "attention: .*20.*",
        lambda: one_call(**dict.fromkeys(QKV, ones(1, 2, TOKENS, 20))),
    ),
    "head_dim 264": (
        UnsupportedError,
        "attention: .*264.*",
        lambda: one_call(**dict.fromkeys(QKV, ones(1, 2, TOKENS, 264))),
    ),
    "head_dim 0": (
        (ValueError, UnsupportedError),  # type: ignore[dict-item]
        "attention: .*0.*",
        lambda: one_call(**dict.fromkeys(QKV, ones(1, 2, TOKENS, 0))),
    ),
    "heads": (
        ValueError,
        r"attention: q.shape\[1\] is 3, expected 2 \(= heads of the layer plan\)",
        lambda: one_call(**dict.fromkeys(QKV, ones(1, 3, TOKENS, 64))),
    ),
    "scale": (ValueError, "attention: scale is nan, expected .*", lambda: one_call(scale=float("nan"))),
    "kv_len type": (
        TypeError,
        "attention: kv_len is int32, expected int64",
        lambda: one_call(kv_len=np.array([TOKENS], np.int32)),
    ),
    "kv_len shape": (
        ValueError,
        r"attention: kv_len.shape\[0\] is 2, expected 1",
        lambda: one_call(kv_len=np.array([TOKENS, TOKENS])),
    ),
    "kv_len high": (
        ValueError,
        rf"attention: kv_len\[0\] is {TOKENS + 1}, .*",
        lambda: one_call(kv_len=np.array([TOKENS + 1])),
    ),
    "kv_len low": (
        ValueError,
        r"attention: kv_len\[0\] is 195, .*",
        lambda: one_call(kv_len=np.array([195])),
    ),
    "items dtype": (
        TypeError,
        "attention: items is int64, expected uint32",
        lambda: one_call(items=LAYER.items().astype(np.int64)),
    ),
    "items head": (
        ValueError,
        "attention: .*",
        lambda: one_call(items=np.array([[(1 << 24) + 5, 0, 0, 1]], np.uint32)),
    ),
    "items query block": (
        ValueError,
        "attention: .*",
        lambda: one_call(items=np.array([[1 << 24, 99, 0, 1]], np.uint32)),
    ),
    "items key range": (
        ValueError,
        "attention: .*",
        lambda: one_call(items=np.array([[1 << 24, 0, 0, 99]], np.uint32)),
    ),
    "items codes": (
        ValueError,
        "attention: .*",
        lambda: one_call(items=np.array([[1, 0, 9999, 5]], np.uint32)),
    ),
    "codes word": (
        ValueError,
        "attention: .*",
        lambda: one_call(items=np.array([[0, 0, 0, 1]], np.uint32), codes=np.array([0x7FFFFFFF], np.uint32)),
    ),
    "tokens entry": (
        ValueError,
        "attention: .*",
        lambda: one_call(
            heads=np.array([[0, 0], [0, 0]], np.int32), tokens=np.full((1, TOKENS), TOKENS, np.int32)
        ),
    ),
    "order row": (
        ValueError,
        "attention: .*",
        lambda: one_call(heads=np.array([[0, 0], [3, 0]], np.int32)),
    ),
    "geometry": (
        ValueError,
        "attention: geometry has 6 integers, expected 7",
        lambda: one_call(geometry=INTS[:6]),
    ),
    "betas": (
        ValueError,
        r"attention: betas.shape\[0\] is 3, expected 2",
        lambda: one_call(betas=np.zeros(3, np.float32)),
    ),
    "beta nan": (
        ValueError,
        "attention: .*",
        lambda: one_call(betas=np.full(2, np.nan, np.float32)),
    ),
    # geometry, orders, patterns, visits
    "block": (
        ValueError,
        "geometry: block_k is 17, expected a multiple of 16 in 16..1024",
        lambda: _C.geometry_check((4, 6, 8, 0, 0, 32, 17)),
    ),
    "float": (
        TypeError,
        r"geometry: geometry\[0\] is float, expected an integer",
        lambda: _C.geometry_check((4.0, 6, 8, 0, 0, 32, 16)),
    ),
    "huge": (
        ValueError,
        r"geometry: geometry\[0\] has more than 64 bits, expected an int64",
        lambda: _C.geometry_check((2**70, 6, 8, 0, 0, 32, 16)),
    ),
    "overflow": (ValueError, "geometry: .*", lambda: _C.geometry_check((2**31, 2**31, 2**31, 0, 0, 32, 16))),
    "order kind": (ValueError, "order: .*", lambda: _C.tokens(INTS, (7, 0, 0, 0))),
    "order length": (
        ValueError,
        "places: order has 3 integers, expected 4",
        lambda: _C.places(INTS, (0, 0, 0)),
    ),
    "pattern dtype": (
        TypeError,
        "mine: pattern is float64, expected int64",
        lambda: _C.pattern_check(INTS, np.zeros(7), "mine"),
    ),
    "pattern short": (ValueError, "mine: .*", lambda: _C.pattern_check(INTS, np.zeros(3, np.int64), "mine")),
    "pattern kind": (ValueError, "pattern: .*", lambda: _C.pattern_check(INTS, np.full(7, 9))),
    "visits list": (
        TypeError,
        "visits: there is no list of arrays, expected one",
        lambda: _C.visits(INTS, 3, PLAIN),
    ),
    "visits entry": (
        TypeError,
        r"visits: patterns\[0\] is str, expected numpy.ndarray",
        lambda: _C.visits(INTS, ["x"], PLAIN),
    ),
    "visits remainder": (
        ValueError,
        r"visits: remainder.shape\[0\] is 2, expected 1",
        lambda: _C.visits(INTS, [DIAGONAL], np.zeros(2, bool)),
    ),
    "visits payload": (
        ValueError,
        r"visits: patterns\[0\]: half_width is -1, expected .*",
        lambda: _C.visits(INTS, [np.array([2, 0, 0, 0, 0, 0, 1, -1])], PLAIN),
    ),
    "mask shape": (
        ValueError,
        r"visits_from_masks: masks\[0\].shape\[1\] is 4, expected 13",
        lambda: _C.visits_from_masks(INTS, [np.ones((7, 4), bool)], PLAIN),
    ),
    "mask dtype": (
        TypeError,
        r"visits_from_masks: masks\[0\] is uint8, expected bool",
        lambda: _C.visits_from_masks(INTS, [np.ones((7, 13), np.uint8)], PLAIN),
    ),
    "rows": (
        ValueError,
        r"block_mask: rows.shape\[0\] is 3, expected 7",
        lambda: _C.block_mask(INTS, np.zeros((3, 4), np.uint32), LAYER.codes),
    ),
    "row content": (
        ValueError,
        ".*: .*",
        lambda: _C.block_mask(INTS, np.full((7, 4), 9, np.uint32), np.zeros(0, np.uint32)),
    ),
    "pairs content": (
        ValueError,
        ".*: .*",
        lambda: _C.visited_pairs(INTS, np.full((7, 4), 9, np.uint32), np.zeros(0, np.uint32)),
    ),
    "choice": (
        ValueError,
        "items: .*",
        lambda: _C.items(INTS, LAYER.rows, np.array([7], np.int32), PLAIN),
    ),
    "not contiguous": (
        ValueError,
        "block_mask: codes is not C-contiguous and aligned, expected it to be",
        lambda: _C.block_mask(INTS, np.zeros((7, 4), np.uint32), np.zeros(8, np.uint32)[::2]),
    ),
    # the rest
    "engine": (
        TypeError,
        "attention_engine: dtype is int8, expected float32, float16 or bfloat16",
        lambda: _C.attention_engine("int8", 64),
    ),
    "peak dtype": (
        TypeError,
        "fma_peak: dtype is int8, expected float32, float16 or bfloat16",
        lambda: _C.fma_peak("int8"),
    ),
    "peak seconds": (
        ValueError,
        "fma_peak: seconds is 0, expected more than 0, at most 60",
        lambda: _C.fma_peak(seconds=0.0),
    ),
    "threads": (
        ValueError,
        r"set_threads: n is -1, expected 0 \(automatic\) or 1..256",
        lambda: _C.set_threads(-1),
    ),
    "check device": (
        UnsupportedError,
        "attention: q is on cuda, expected cpu: CUDA kernels are not part of this version",
        lambda: _C.attention_check(
            *[((1, 2, TOKENS, 64), (1, 1, 1, 1), "float32")] * 3, INTS, 2, 0.1, "cuda"
        ),
    ),
    "check metadata": (
        TypeError,
        r"attention_check: q is not \(shape, strides, dtype name\), expected it to be",
        lambda: _C.attention_check(1, 2, 3, INTS, 2, 0.1),
    ),
    "reference mask": (
        ValueError,
        rf"attention_reference: mask.shape\[1\] is 5, expected {TOKENS}",
        lambda: _C.attention_reference(*[ones(1, 2, TOKENS, 8)] * 3, np.ones((2, 5, 5), bool), None, 1.0),
    ),
    "reference shape": (
        ValueError,
        r".*: k.shape\[3\] is 16, expected 8.*",
        lambda: _C.attention_reference(
            ones(1, 1, 4, 8), ones(1, 1, 4, 16), ones(1, 1, 4, 8), None, None, 1.0
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence_of_the_promised_class(name: str) -> None:
    kind, sentence, call = REFUSED[name]
    live = _C.scratch_live()
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert re.fullmatch(sentence, text), text
    assert "\n" not in text
    assert _C.scratch_live() == live


@pytest.mark.parametrize("name", ["batch 0", "negative strides", "read-only", "one token"])
def test_odd_but_legal_arrays(name: str, rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((2, 2, TOKENS, 64)).astype(np.float32) for _ in range(3))
    if name == "batch 0":
        out, lse = attention(q[:0], k[:0], v[:0], layer=LAYER, return_lse=True)
        assert out.shape == (0, 2, TOKENS, 64)
        assert lse.shape == (0, 2, TOKENS)
        return
    if name == "one token":
        layer = LayerPlan(Geometry(frames=1, height=1, width=1), [Pattern.full(), Pattern.skip()])
        out = attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], layer=layer)
        assert np.allclose(out[:, 0], v[:, 0, :1])
        return
    expected = attention(q, k, v, layer=LAYER)
    if name == "negative strides":
        given = [np.ascontiguousarray(a[::-1])[::-1] for a in (q, k, v)]
        given = [np.ascontiguousarray(a[:, :, ::-1])[:, :, ::-1] for a in given]
        assert given[0].strides[2] < 0
    else:
        given = [a.copy() for a in (q, k, v)]
        for array in given:
            array.flags.writeable = False
    assert np.array_equal(attention(*given, layer=LAYER), expected)


@pytest.mark.parametrize(
    ("kv_len", "kind", "sentence"),
    [
        (195, ValueError, r"attention: kv_len\[0\] is 195, expected 196..199"),
        (200, ValueError, r"attention: kv_len\[0\] is 200, expected 196..199"),
        ([196, 200], ValueError, r"attention: kv_len\[1\] is 200, expected 196..199"),
        ([196] * 3, ValueError, r"attention: kv_len.shape is \(3,\), expected \(2,\) .*"),
        (196.0, TypeError, "attention: kv_len is float64, expected an int or an integer array.*"),
        (True, TypeError, "attention: kv_len is bool, expected .*"),
        (2**80, TypeError, "attention: kv_len is object, expected .*"),
        ([[196], [196, 197]], TypeError, "attention: kv_len is uneven, expected .*"),
    ],
)
def test_kv_len_is_checked_before_anything_runs(kv_len: Any, kind: type[Exception], sentence: str) -> None:
    q = ones(2, 2, TOKENS, 64)
    with pytest.raises(kind, match=sentence):
        attention(q, q, q, layer=LAYER, kv_len=kv_len)


def test_an_unaligned_kv_len_is_copied() -> None:
    q = ones(2, 2, TOKENS, 64)
    lengths = np.zeros(17, np.uint8)[1:].view(np.int64)
    lengths[:] = 197
    assert not lengths.flags.aligned
    assert np.array_equal(
        attention(q, q, q, layer=LAYER, kv_len=lengths), attention(q, q, q, layer=LAYER, kv_len=197)
    )


@pytest.mark.parametrize("scale", ["0.1", True, [0.1, 0.2], None.__class__, 1j])
def test_a_scale_is_a_number(scale: Any) -> None:
    q = ones(2, 2, TOKENS, 64)
    with pytest.raises(TypeError, match=r"attention: scale is \w+, expected a number"):
        attention(q, q, q, layer=LAYER, scale=scale)


def test_bfloat16_is_known_by_name_alone() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    q = ones(1, 2, TOKENS, 64).astype(ml_dtypes.bfloat16)
    out = attention(q, q, q, layer=LAYER)
    assert out.dtype == q.dtype
    assert np.allclose(out.astype(np.float32), 1.0)
    with pytest.raises(
        TypeError, match="attention: q is float8_e4m3fn, expected float32, float16 or bfloat16"
    ):
        one_call(q=q.astype(ml_dtypes.float8_e4m3fn))


def test_a_tile_order_reaches_the_core(rng: np.random.Generator) -> None:
    """The reference knows no orders: a full head in any of them is the same attention."""
    layer = LayerPlan(
        GEOMETRY, [Pattern.vertical_stripe(key_blocks=range(13), order=Order.tiles(2, 3, 3))] * 2
    )
    q, k, v = (rng.standard_normal((1, 2, TOKENS, 64)).astype(np.float32) for _ in range(3))
    reference, _ = _C.attention_reference(q, k, v, None, None, 0.125)
    assert np.abs(attention(q, k, v, layer=layer) - reference).max() < 1e-5
