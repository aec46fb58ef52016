"""What Python adds to the probe: rows, the fitted bias, the measure behind the output projection, tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import draws, masks

from sparse_vdit import Geometry, Pattern
from sparse_vdit.search import probe as probing
from sparse_vdit.search.candidates import Candidates, ladder
from sparse_vdit.search.probe import BETAS, fit_beta, output_factors, probe, sample_rows

GEOMETRY = Geometry(frames=6, height=8, width=8, prefix=5, suffix=3, block_q=32, block_k=32)
FLOOR = 1e-4  # of the energy: errors below it are as good as none


def heads(
    rng: np.random.Generator, count: int, geometry: Geometry = GEOMETRY, head_dim: int = 32
) -> list[Any]:
    """q, k, v [1, count, N, D] of heads that look along frames, rows and columns, each at a sharpness of its own."""
    axes = np.meshgrid(*map(np.arange, (geometry.frames, geometry.height, geometry.width)), indexing="ij")
    places = np.stack(axes, axis=-1).reshape(-1, 3)
    arrays: list[list[np.ndarray]] = [[], [], []]
    for _ in range(count):
        waves = places @ (rng.standard_normal((3, head_dim // 2)) * rng.choice([0.1, 0.3, 1, 3], 3)[:, None])
        seen = np.concatenate([np.cos(waves), np.sin(waves)], axis=1)
        values = np.sin(places @ (rng.standard_normal((3, head_dim)) * rng.choice([0.1, 0.5, 2])))
        gain, noise = rng.choice([0.5, 1.5, 4, 8]), rng.choice([0.01, 0.1, 0.5, 1])
        for number, video in enumerate((seen, seen, values)):
            rough = video + (noise if number < 2 else 0.2) * rng.standard_normal(video.shape)
            parts = (rng.standard_normal((n, head_dim)) for n in (geometry.prefix, geometry.suffix))
            before, after = parts
            arrays[number].append((gain if number == 0 else 1) * np.concatenate([before, rough, after]))
    return [np.stack(listed)[None].astype(np.float32) for listed in arrays]


def errors_at(
    monkeypatch: pytest.MonkeyPatch, candidates: Candidates, arrays: list[Any], rows: Any, betas: np.ndarray
) -> np.ndarray:
    """The measured errors of other biases than the nodes, [H, C, len(betas)]."""
    parts = []
    for start in range(0, len(betas), 60):
        monkeypatch.setattr(probing, "BETAS", np.ascontiguousarray(betas[start : start + 60]))
        parts.append(probe(candidates, *arrays, rows).curve)
    monkeypatch.undo()
    return np.concatenate(parts, axis=-1)


def test_fitted_bias_is_within_1_percent_of_a_fine_grid(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = ladder(GEOMETRY)
    takes = candidates.takes_remainder[: len(candidates.patterns)]
    arrays, rows = heads(rng, 12), sample_rows(GEOMETRY, 64, 1)
    found = probe(candidates, *arrays, rows)
    error, beta = (x[:, takes] for x in fit_beta(found.plain, found.curve))
    fine = errors_at(monkeypatch, candidates, arrays, rows, np.linspace(BETAS[0], BETAS[-1], 11 * 48 + 1))[
        :, takes
    ]
    best = fine.min(axis=-1)
    near = np.stack(
        [
            errors_at(monkeypatch, candidates, arrays, rows, beta[h])[h, takes].diagonal()
            for h in range(len(beta))
        ]
    )
    counts = best > FLOOR * found.energy[:, None]
    assert counts.mean() > 0.8
    assert (near / best)[counts].max() < 1.01
    assert np.abs(error / near - 1)[counts].max() < 0.05
    assert np.quantile(np.abs(error / near - 1)[counts], 0.99) < 0.02
    assert beta.min() < -0.5
    assert beta.max() > 1


def test_known_curves() -> None:
    """One row: (aa + 2 t ac + t^2 cc) / (1 + t)^2 has its lowest point at t = (aa - ac) / (cc - ac)."""
    t = np.exp(BETAS)
    aa, ac, cc = (
        np.array([[1.0], [1.0], [2.0]]),
        np.array([[-0.9], [-0.5], [-0.1]]),
        np.array([[1.0], [8.0], [0.1]]),
    )
    curve = (aa + 2 * t * ac + t**2 * cc) / (1 + t) ** 2
    error, beta = fit_beta(aa[:, 0], curve.astype(np.float32))
    best = ((aa - ac) / (cc - ac))[:, 0]
    np.testing.assert_allclose(beta, np.log(best), atol=0.03)
    exact = (aa[:, 0] + 2 * best * ac[:, 0] + best**2 * cc[:, 0]) / (1 + best) ** 2
    np.testing.assert_allclose(error, exact, rtol=0.02)


def test_ends_and_curves_without_numbers() -> None:
    curves = np.stack([np.exp(BETAS), np.exp(-BETAS), np.full(len(BETAS), np.inf), np.full(len(BETAS), 3.0)])
    error, beta = fit_beta(np.array([9.0, 9, 9, 9]), curves[None].repeat(2, axis=0).reshape(2, 4, -1)[0])
    assert beta[:2] == pytest.approx([BETAS[0], BETAS[-1]], abs=0.1)
    assert (error[2], beta[2]) == (9.0, 0.0)
    assert error[3] == pytest.approx(3.0)
    assert np.isfinite(beta).all()
    shaped = fit_beta(np.ones((2, 3, 4)), np.ones((2, 3, 4, len(BETAS)), np.float32))
    assert shaped[0].shape == shaped[1].shape == (2, 3, 4)


@settings(max_examples=40)
@given(geometry=draws.geometries(), n=st.integers(1, 300), seed=st.integers(0, 9))
def test_rows_are_distinct_and_as_many_as_asked(geometry: Geometry, n: int, seed: int) -> None:
    rows = sample_rows(geometry, n, [seed, 3])
    assert rows.dtype == np.int32
    assert len(rows) == len(set(rows.tolist())) == min(n, geometry.tokens)
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < geometry.tokens
    assert (rows == sample_rows(geometry, n, [seed, 3])).all()
    others = (rows < geometry.prefix) | (rows >= geometry.prefix + geometry.video_tokens)
    total = geometry.tokens - geometry.video_tokens
    expected = n * total / geometry.tokens
    if n < geometry.tokens:
        low = max(min(1, total, n - 1), n - geometry.video_tokens)
        assert low <= others.sum() <= max(expected + 1, low)


def test_rows_have_their_share_of_every_axis() -> None:
    geometry = Geometry(frames=16, height=16, width=16, prefix=40, suffix=24, block_q=64, block_k=64)
    counts = np.zeros((3, 16))
    for seed in range(8):
        rows = sample_rows(geometry, 64, seed)
        assert ((rows < 40) | (rows >= 40 + 4096)).sum() == 1
        video = rows[(rows >= 40) & (rows < 40 + 4096)] - 40
        found = [np.bincount(axis, minlength=16) for axis in (video // 256, video // 16 % 16, video % 16)]
        assert all(count.min() >= 2 for count in found)
        counts += np.array(found)
    assert (np.abs(counts / 8 - 63 / 16) < 0.8).all()
    assert (sample_rows(geometry, 64, 0) != sample_rows(geometry, 64, 1)).any()


@pytest.mark.parametrize(
    ("n", "error", "sentence"),
    [(0, ValueError, "rows is 0, expected at least 1"), (1.5, TypeError, "rows is float")],
)
def test_refused_rows(n: Any, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        sample_rows(GEOMETRY, n, 0)


@pytest.mark.parametrize("features", [80, 16])
def test_the_projected_measure_is_that_of_projected_outputs(rng: np.random.Generator, features: int) -> None:
    pattern = Pattern.diagonal(half_width=0)
    candidates = Candidates(GEOMETRY, (Pattern.full(), pattern))
    q, k, v = heads(rng, 2)
    weight, rows = rng.standard_normal((features, 64)), sample_rows(GEOMETRY, 20, 0)
    found = probe(candidates, q, k, v, rows, projection=output_factors(weight, 2))
    place = masks.places(GEOMETRY, pattern.order)
    for head in range(2):
        share = weight[:, 32 * head : 32 * head + 32].T
        mask, beta = masks.block_cover(GEOMETRY, pattern), BETAS[4]
        arguments = (q[0, head], k[0, head], v[0, head], GEOMETRY)
        full = masks.attention(*arguments, np.ones_like(mask), place, 32**-0.5)[0][rows]
        ours = masks.attention(*arguments, mask, place, 32**-0.5, None, beta)[0][rows]
        expected = (((ours - full) @ share) ** 2).sum()
        assert found.curve[head, 0, 4] == pytest.approx(expected, rel=1e-4)
        assert found.energy[head] == pytest.approx(((full @ share) ** 2).sum(), rel=1e-4)


def test_refused_projection(rng: np.random.Generator) -> None:
    candidates = Candidates(GEOMETRY, (Pattern.full(),))
    with pytest.raises(ValueError, match=r"projection has shape \(3, 32, 32\), expected \(2, 32, 32\)"):
        probe(candidates, *heads(rng, 2), sample_rows(GEOMETRY, 5, 0), projection=np.zeros((3, 32, 32)))


def test_stripes_are_the_blocks_given_or_left_out(rng: np.random.Generator) -> None:
    candidates = Candidates(GEOMETRY, (Pattern.full(), Pattern.skip()), mass_stripes=(2, 5))
    arrays, rows = heads(rng, 2), sample_rows(GEOMETRY, 30, 0)
    without = probe(candidates, *arrays, rows)
    stripes = np.argsort(-without.mass, axis=1)[:, :5].astype(np.int32)
    found = probe(candidates, *arrays, rows, stripes=stripes)
    assert without.plain.shape == (2, 2)
    assert found.plain.shape == (2, 4)
    assert (found.plain[:, :2] == without.plain).all()
    for head in range(2):
        patterns = [candidates.pattern(n, stripes[head]) for n in (2, 3)]
        same = probe(Candidates(GEOMETRY, (Pattern.full(), *patterns)), *arrays, rows)
        np.testing.assert_allclose(found.plain[head, 2:], same.plain[head, :2], rtol=1e-6)
        np.testing.assert_allclose(found.curve[head, 2:], same.curve[head, :2], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_are_arrays(rng: np.random.Generator, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)).requires_grad_() for x in heads(rng, 2)]
    shuffled = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    candidates, rows = ladder(GEOMETRY), sample_rows(GEOMETRY, 16, 0)
    arrays = [x.detach().float().numpy() for x in tensors]
    for ours, theirs in zip(
        vars(probe(candidates, *shuffled, rows)).values(),
        vars(probe(candidates, *arrays, rows)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(z)) for z in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_sampled_errors_predict_those_of_all_rows(rng: np.random.Generator) -> None:
    """Over heads for one candidate, and over candidates for one head."""
    candidates, arrays = ladder(GEOMETRY), heads(rng, 24)
    few, all_ = (probe(candidates, *arrays, sample_rows(GEOMETRY, n, 5)) for n in (32, GEOMETRY.tokens))
    sampled, true = (fit_beta(x.plain, x.curve)[0] / x.energy[:, None] for x in (few, all_))
    errors = [
        number for number in range(true.shape[1]) if number and true[:, number].min() > 1e-6
    ]  # 0 is skip
    assert len(errors) > 15
    assert np.mean([rank_correlation(sampled[:, n], true[:, n]) for n in errors]) > 0.97
    assert np.median([rank_correlation(sampled[h], true[h]) for h in range(24)]) > 0.95
