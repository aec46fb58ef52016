"""The probe against really running every candidate: `kit.masks` in double precision, remainder and kv_len included."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import compare, draws, masks
from kit.attend import numpy_dtype

from sparse_vdit import _C, Geometry, Order, Pattern
from sparse_vdit.plan.layer import VisitPool

BETAS = np.array([-3.0, -0.5, 0.0, 1.25])
RELATIVE, OF_ENERGY = (
    2e-5,
    1e-10,
)  # float32 sums; a candidate that is nearly full attention has only rounding left


@dataclasses.dataclass
class Case:
    """One call: arrays, candidates, and what the core returned."""

    geometry: Geometry
    patterns: list[Pattern]
    q: Any
    k: Any
    v: Any
    rows: np.ndarray
    kv_len: list[int] | None = None
    stripes: np.ndarray | None = None
    counts: tuple[int, ...] = ()
    scale: float | None = None

    def run(self, **changes: Any) -> tuple[np.ndarray, ...]:
        pool = VisitPool.of_patterns(self.geometry, self.patterns, [p.takes_remainder for p in self.patterns])
        arguments: dict[str, Any] = {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "rows": np.asarray(self.rows, np.int32),
            "geometry": self.geometry.to_ints(),
            "scale": self.q.shape[-1] ** -0.5 if self.scale is None else self.scale,
            "visit_rows": pool.visits[0],
            "codes": pool.visits[1],
            "orders": np.array(pool.order_rows, np.int32),
            "tokens": pool.tokens,
            "kv_len": None if self.kv_len is None else np.array(self.kv_len, np.int64),
            "betas": BETAS,
            "stripes": self.stripes,
            "stripe_counts": np.array(self.counts, np.int32),
        }
        return _C.probe(**(arguments | changes))

    def candidates(self, head: int) -> list[Pattern]:
        made = (
            []
            if self.stripes is None
            else [sorted(set(self.stripes[head, :n].tolist())) for n in self.counts]
        )
        return self.patterns + [Pattern.vertical_stripe(key_blocks=blocks) for blocks in made]

    def outputs(self, b: int, head: int, pattern: Pattern, beta: float | None) -> np.ndarray:
        """Rows of one head as the definitions have them, float64 [R, D]."""
        mask = masks.block_cover(self.geometry, pattern)
        q, k, v = (compare.to_float64(x[b, head]) for x in (self.q, self.k, self.v))
        place = masks.places(self.geometry, pattern.order)
        scale = self.q.shape[-1] ** -0.5 if self.scale is None else self.scale
        length = None if self.kv_len is None else self.kv_len[b]
        return masks.attention(q, k, v, self.geometry, mask, place, scale, length, beta)[0][self.rows]

    def check(self) -> tuple[np.ndarray, ...]:
        plain, curve, energy, mass = found = self.run()
        for head in range(self.q.shape[1]):
            full = [self.outputs(b, head, Pattern.full(), None) for b in range(len(self.q))]
            assert energy[head] == pytest.approx(sum((x**2).sum() for x in full), rel=1e-5)
            for number, pattern in enumerate(self.candidates(head)):
                for beta, ours in zip(
                    [None, *BETAS], [plain[head, number], *curve[head, number]], strict=True
                ):
                    took = beta if pattern.takes_remainder else None
                    made = [self.outputs(b, head, pattern, took) for b in range(len(full))]
                    expected = sum(float(((x - y) ** 2).sum()) for x, y in zip(made, full, strict=True))
                    assert ours == pytest.approx(expected, rel=RELATIVE, abs=OF_ENERGY * energy[head]), (
                        f"head {head}, {pattern.name}, beta {beta}"
                    )
        assert mass.sum(axis=1) == pytest.approx(np.ones(len(mass)), rel=1e-5)
        return found


def make(
    rng: np.random.Generator,
    geometry: Geometry,
    patterns: list[Pattern],
    *,
    heads: int = 2,
    head_dim: int = 24,
    dtype: str = "float32",
    gain: float = 1.5,
    rows: int = 24,
    **options: Any,
) -> Case:
    shape = (len(options.get("kv_len") or [0]), heads, geometry.tokens, head_dim)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    k += 2 * rng.standard_normal((*shape[:1], heads, 1, head_dim)).astype(np.float32)
    arrays = (x.astype(numpy_dtype(dtype)) for x in (gain * q, gain * k, v + 1))
    sampled = rng.permutation(geometry.tokens)[: min(rows, geometry.tokens)]
    return Case(geometry, patterns, *arrays, rows=sampled, **options)


def families(geometry: Geometry) -> list[Pattern]:
    """Every kind, sinks, unions and three orders."""
    last, tile = geometry.key_blocks - 1, (2, 2, 3)
    near = {"tile": tile, "time": (1, 0, None), "rows": (2, 0, None), "columns": (1, 0, None)}
    return [
        Pattern.skip(),
        Pattern.full(),
        Pattern.diagonal(half_width=0),
        Pattern.diagonal(half_width=20, sink_frames=1),
        Pattern.multi_diagonal(half_width=0),
        Pattern.multi_diagonal(half_width=9),
        Pattern.vertical_stripe(key_blocks=()),
        Pattern.vertical_stripe(key_blocks=sorted({0, last})),
        Pattern.vertical_stripe(key_blocks=(last,), order=Order.token_major()),
        Pattern.vertical_stripe(key_blocks=(last // 2,), order=Order.tiles(*tile), sink_frames=1),
        Pattern.periodic_tiles(**near),
        Pattern.periodic_tiles(tile=tile, time=(1, 0, 2), space=(1, 1, 3)),
        Pattern.union(Pattern.diagonal(half_width=3), Pattern.vertical_stripe(key_blocks=(last // 2,))),
        Pattern.union(
            Pattern.multi_diagonal(half_width=3),
            Pattern.vertical_stripe(key_blocks=(0,), order=Order.token_major()),
        ),
        Pattern.diagonal(half_width=2**31 - 1),
    ]


SMALL = Geometry(frames=4, height=5, width=6, prefix=5, suffix=19, block_q=32, block_k=16)


def stripes_of(rng: np.random.Generator, geometry: Geometry, heads: int) -> np.ndarray:
    return np.stack([rng.permutation(geometry.key_blocks) for _ in range(heads)]).astype(np.int32)


@pytest.mark.parametrize(
    "geometry",
    [
        SMALL,
        dataclasses.replace(SMALL, block_q=16, block_k=48, prefix=0),
        dataclasses.replace(SMALL, block_q=64, block_k=16, suffix=0),
        dataclasses.replace(SMALL, prefix=0, suffix=8, block_q=16),  # 128 tokens: whole blocks
        Geometry(
            frames=2, height=3, width=4, block_q=64, block_k=128
        ),  # one block, shorter than a panel of keys
    ],
    ids=["ragged", "block_k 48", "block_q 64", "whole", "one block"],
)
def test_every_family_and_stripe(rng: np.random.Generator, geometry: Geometry) -> None:
    patterns = families(geometry)
    stripes = stripes_of(rng, geometry, 2)
    counts = tuple(sorted({0, 1, geometry.key_blocks // 2, geometry.key_blocks}))
    make(rng, geometry, patterns, stripes=stripes, counts=counts).check()


@settings(max_examples=40)
@given(case=draws.cases(), seed=st.integers(0, 2**16))
def test_any_pattern(case: tuple[Geometry, Pattern], seed: int) -> None:
    geometry, pattern = case
    rng = np.random.default_rng(seed)
    if geometry.tokens <= 400:
        make(rng, geometry, [pattern, Pattern.diagonal(half_width=0)], heads=1, head_dim=8, rows=9).check()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_dtypes(rng: np.random.Generator, dtype: str) -> None:
    make(rng, SMALL, families(SMALL)[:8], heads=1, dtype=dtype).check()


@pytest.mark.parametrize("head_dim", [8, 40, 64, 128, 256])
def test_head_dims(rng: np.random.Generator, head_dim: int) -> None:
    make(rng, SMALL, families(SMALL)[2:5], heads=1, head_dim=head_dim, gain=0.7, rows=17).check()


def test_kv_len_differs_by_sample_and_nan_beyond_it(rng: np.random.Generator) -> None:
    first, last = SMALL.tokens - SMALL.suffix, SMALL.tokens
    case = make(rng, SMALL, families(SMALL), kv_len=[first, last - 3, last])
    stripes = stripes_of(rng, SMALL, 2)
    case.stripes, case.counts = stripes, (2, 5)
    for b, length in enumerate(case.kv_len or []):
        case.k[b, :, length:] = case.v[b, :, length:] = np.nan
        case.q[b, :, length:] = 1e3
    found = case.check()
    assert all(np.isfinite(array).all() for array in found)


def test_nan_that_takes_part_shows(rng: np.random.Generator) -> None:
    case = make(rng, SMALL, [Pattern.skip(), Pattern.diagonal(half_width=0)])
    case.k[0, 1, 77] = np.nan
    plain, curve, energy, mass = case.run()
    assert np.isfinite(plain[0]).all()
    assert np.isfinite(curve[0]).all()
    assert np.isnan(energy[1])
    assert np.isnan(mass[1]).any()
    assert np.isnan(plain[1]).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_80(rng: np.random.Generator, sign: int) -> None:
    """A candidate's weights may all be 2^-230 of the row's largest: its output is exact all the same."""
    case = make(rng, SMALL, families(SMALL), heads=1, head_dim=16, scale=1.0)
    case.q[:] = 0
    case.q[..., 0] = sign
    case.q[..., 1:3] = 0.3 * rng.standard_normal(case.q[..., 1:3].shape)
    case.k[:] = rng.standard_normal(case.k.shape)
    case.k[..., 0] = np.where(rng.random(case.k.shape[:-1]) < 0.02, 80, -80)
    found = case.check()
    assert all(np.isfinite(array).all() for array in found)


def test_strided_views(rng: np.random.Generator) -> None:
    case = make(rng, SMALL, families(SMALL)[:6])
    expected = case.run()
    for name in "qkv":
        array = getattr(case, name)
        wide = np.full((array.shape[0], array.shape[2], array.shape[1], 32), np.nan, np.float32)
        view = wide.transpose(0, 2, 1, 3)[..., :24]
        view[:] = array
        setattr(case, name, view)
    for ours, theirs in zip(case.run(), expected, strict=True):
        assert (ours == theirs).all()


def test_values_may_have_a_dtype_of_their_own(rng: np.random.Generator) -> None:
    case = make(rng, SMALL, families(SMALL)[:6], dtype="float16")
    case.v = case.v.astype(np.float32) * 1.0001
    case.check()


def test_mass(rng: np.random.Generator) -> None:
    case = make(rng, SMALL, [Pattern.full()], kv_len=[SMALL.tokens - 7, SMALL.tokens], head_dim=16)
    mass = case.run()[3]
    expected = np.zeros((2, SMALL.tokens))
    for b, length in enumerate(case.kv_len or []):
        logits = (
            np.einsum("hid,hjd->hij", *(x[b].astype(np.float64) for x in (case.q, case.k)))[:, case.rows] / 4
        )
        logits[:, :, length:] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        expected += (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=1) / 2
    blocks = np.add.reduceat(expected, np.arange(0, SMALL.tokens, SMALL.block_k), axis=1)
    np.testing.assert_allclose(mass, blocks, rtol=2e-5, atol=1e-9)


def test_chunks_of_rows_and_repeated_rows(rng: np.random.Generator) -> None:
    """More rows than one task takes, some twice: the sums are those of the parts."""
    case = make(rng, SMALL, families(SMALL), heads=1, rows=SMALL.tokens)
    whole = case.run()
    rows = case.rows
    parts = [case.run(rows=np.asarray(part, np.int32)) for part in (rows[:50], rows[50:])]
    for i in range(3):
        np.testing.assert_allclose(
            whole[i], parts[0][i] + parts[1][i], rtol=1e-9, atol=1e-12 * whole[2].max()
        )
    twice = case.run(rows=np.concatenate([rows, rows]).astype(np.int32))
    np.testing.assert_allclose(twice[0], 2 * whole[0], rtol=1e-12)
    np.testing.assert_allclose(twice[3], whole[3], rtol=1e-12)


def test_bitwise_independent_of_threads(rng: np.random.Generator) -> None:
    case = make(rng, SMALL, families(SMALL), rows=130, kv_len=[SMALL.tokens, SMALL.tokens - 5])
    case.stripes, case.counts = stripes_of(rng, SMALL, 2), (1, 4)
    try:
        results = []
        for threads in (1, 2, 5):
            _C.set_threads(threads)
            results.append(case.run())
    finally:
        _C.set_threads(0)
    for other in results[1:]:
        assert all((a == b).all() for a, b in zip(results[0], other, strict=True))


def test_candidates_may_be_none(rng: np.random.Generator) -> None:
    case = make(rng, SMALL, [Pattern.full()])
    none = {"visit_rows": np.zeros((0, SMALL.query_blocks, 4), np.uint32), "orders": np.zeros(0, np.int32)}
    plain, curve, energy, mass = case.run(**none, codes=np.zeros(0, np.uint32))
    assert plain.shape == (2, 0)
    assert curve.shape == (2, 0, 4)
    assert (energy == case.run()[2]).all()
    assert (mass == case.run()[3]).all()


def broken_tokens() -> np.ndarray:
    tokens = np.arange(SMALL.tokens, dtype=np.int32)[None].copy()
    tokens[0, 3] = 4
    return tokens


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"rows": np.array([0, 144], np.int32)}, ValueError, r"rows\[1\] is 144, expected 0\.\.143"),
        ({"rows": np.array([-1], np.int32)}, ValueError, r"rows\[0\] is -1"),
        ({"rows": np.zeros(0, np.int32)}, ValueError, "there are 0 rows"),
        ({"rows": np.zeros(2, np.int64)}, TypeError, "rows is int64, expected int32"),
        ({"scale": np.nan}, ValueError, "scale is nan"),
        ({"betas": np.array([np.inf])}, ValueError, r"betas\[0\] is inf"),
        ({"betas": np.zeros(65)}, ValueError, "there are 65 betas"),
        ({"orders": np.array([0, 1], np.int32)}, ValueError, r"orders\[1\] is 1, expected -1\.\.0"),
        ({"orders": np.zeros(3, np.int32)}, ValueError, r"orders.shape\[0\] is 3, expected 2"),
        ({"tokens": broken_tokens()}, ValueError, r"tokens\[0, 4\] is 4, expected each of 0\.\.143 once"),
        ({"kv_len": np.array([3])}, ValueError, r"kv_len\[0\] is 3, expected 125\.\.144"),
        ({"stripe_counts": np.array([1], np.int32)}, ValueError, "stripes is None"),
        (
            {"stripes": np.full((2, 2), 9, np.int32), "stripe_counts": np.array([1], np.int32)},
            ValueError,
            r"stripes\[0, 0\] is 9, expected 0\.\.8",
        ),
        (
            {"stripes": np.zeros((2, 2), np.int32), "stripe_counts": np.array([3], np.int32)},
            ValueError,
            r"stripe_counts\[0\] is 3, expected 0\.\.2",
        ),
        (
            {"codes": np.zeros(1, np.uint32)},
            ValueError,
            r"visits: row \d+ is .* expected its codes inside the pool",
        ),
    ],
)
def test_refusals(rng: np.random.Generator, changes: dict[str, Any], error: type, sentence: str) -> None:
    case = make(rng, SMALL, [Pattern.multi_diagonal(half_width=3), Pattern.vertical_stripe(key_blocks=(3,))])
    with pytest.raises(error, match=sentence):
        case.run(**changes)


@pytest.mark.parametrize(
    ("name", "array", "error", "sentence"),
    [
        ("k", np.zeros((1, 2, 143, 24), np.float32), ValueError, r"k.shape\[2\] is 143, expected 144"),
        ("v", np.zeros((1, 2, 144, 16), np.float32), ValueError, r"v.shape\[3\] is 16, expected 24"),
        ("k", np.zeros((1, 2, 144, 24), np.float16), TypeError, "k is float16, expected float32 like q"),
        ("q", np.zeros((1, 2, 144, 24)), TypeError, "q is float64"),
        (
            "v",
            np.zeros((1, 2, 144, 48), np.float32)[..., ::2],
            ValueError,
            "last dimension of v has stride 2",
        ),
    ],
)
def test_refused_tensors(rng: np.random.Generator, name: str, array: Any, error: type, sentence: str) -> None:
    case = make(rng, SMALL, [Pattern.full()])
    with pytest.raises(error, match=sentence):
        case.run(**{name: array})


def test_no_memory_is_one_sentence(rng: np.random.Generator) -> None:
    case = make(rng, SMALL, families(SMALL))
    case.stripes, case.counts = stripes_of(rng, SMALL, 2), (2,)
    case.run()
    live = _C.scratch_live()
    for n in (1, 2):
        _C.scratch_fail_at(n)
        try:
            with pytest.raises(MemoryError, match="could not allocate"):
                case.run()
        finally:
            _C.scratch_fail_at(0)
        assert _C.scratch_live() == live
