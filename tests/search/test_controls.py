"""Plans at a density and their controls, chosen from errors that the recorder measured on random attention."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from sparse_vdit import Geometry, LayerPlan, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search import Candidates, HeadErrors, Recorder
from sparse_vdit.search.controls import kept_blocks, permute, random_masks, uniform_at_density
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.decisions import Decisions
from sparse_vdit.search.density import at_density
from sparse_vdit.search.hardware import NAMES, Hardware

GEOMETRY = Geometry(5, 6, 7, prefix=9, suffix=4, block_q=16, block_k=16)
MODEL = ModelIdentity("WanTransformer3DModel", 2, 2, 16)
BINS = (0.0, 0.5, 1.0)
LEVELS = (0.8, 0.6, 0.2)
CANDIDATES = Candidates(
    GEOMETRY,
    (
        Pattern.skip(),
        Pattern.full(),
        Pattern.diagonal(half_width=0),
        Pattern.diagonal(half_width=20),
        Pattern.diagonal(half_width=40, sink_frames=1),
        Pattern.multi_diagonal(half_width=5),
        Pattern.vertical_stripe(key_blocks=[1, 4, 9]),
        Pattern.periodic_tiles(tile=(2, 3, 3), time=(1, 0, None), space=(2, 1, 3)),
    ),
    mass_stripes=(3,),
)


@cache
def errors(seed: int = 0) -> HeadErrors:
    """Two steps; heads look more or less sharply, one of them at few keys."""
    recorder = Recorder(MODEL, CANDIDATES, BINS, rows=64, seed=seed)
    rng = np.random.default_rng(seed)
    with recorder.prompt(0):
        for step, (level, layer) in enumerate(itertools.product((0.8, 0.2), range(MODEL.layers))):
            shape = (1, MODEL.heads, GEOMETRY.tokens, MODEL.head_dim)
            q, k, v = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
            q *= rng.uniform(0.3, 3, (1, MODEL.heads, 1, 1)).astype(np.float32)
            v += rng.uniform(0, 2, (1, MODEL.heads, 1, 1)).astype(np.float32)
            recorder(step // MODEL.layers, level, layer, q, k, v, lambda: None)
    return recorder.errors()["transformer"]


def cost() -> CostModel:
    times = {"workers": 2, "tall_rows": 6, "low_rows": 4, "chunk_keys": 256, "launch_us": 2, "item_us": 0.1}
    times |= {
        "full_us": 4,
        "head_us": 0.2,
        "pooled_us": 0.4,
        "tile_us": 0.5,
        "mean_us": 0.1,
        "reorder_us": 0.1,
    }
    constants = tuple(float(times.get(name, 0)) for name in NAMES)
    return CostModel(Hardware("test", "float32", 16, 16, 16, constants), CANDIDATES, heads=MODEL.heads)


def chosen(density: float = 0.4) -> SparsePlan:
    return at_density(errors(), cost(), density, levels=LEVELS, dense_above=0.9)


def of_candidates(measure: str = "relative") -> np.ndarray:
    """Weighted errors of the candidates with or without a remainder, whichever is better [.., candidates]."""
    found = errors().options()[0]
    best = np.fmin(found[..., 0::2], found[..., 1::2]) * errors().weights(measure)[..., None]
    best[..., CANDIDATES.full] = 0
    return best


# ---- at a density ----


@pytest.mark.parametrize("density", [0.15, 0.25, 0.4, 0.6, 0.9])
def test_a_plan_is_as_dense_as_asked_and_no_single_pattern_is_better(density: float) -> None:
    plan = chosen(density)
    assert plan.density() <= density + 1e-9
    steps = np.array([1, 2]) / 3  # of LEVELS, in each bin
    table = of_candidates() * steps[:, None, None, None]
    norm = (errors().weights() * steps[:, None, None]).sum()
    reached = plan.provenance["predicted"]["mean_error"]
    cheap = cost().option_ms()
    for number, pattern in enumerate(CANDIDATES.patterns):
        if pattern.kind != "full" and cheap[2 * number + 1] < cheap[2 * CANDIDATES.full]:
            alone = table[..., number].sum() / norm
            assert CANDIDATES.density[number] > plan.density() - 0.1 or reached <= alone, pattern.name
    assert plan.provenance["asked"]["density"] == density
    assert SparsePlan.from_json(plan.to_json()) == plan


def test_less_density_is_never_better() -> None:
    found = [chosen(density) for density in (0.15, 0.2, 0.3, 0.45, 0.7, 1.0)]
    reached = [plan.provenance["predicted"]["mean_error"] for plan in found]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] > reached[2] > reached[-1]


def test_it_is_the_best_choice_of_its_time_and_spends_the_density() -> None:
    """By brute force over all choices of four heads: none of no more time has less error."""
    one = replace(errors(), model=replace(MODEL, layers=2, heads=1), **_first_heads())
    prices = CostModel(cost().hardware, CANDIDATES, heads=1)
    plan = at_density(one, prices, 0.45, levels=(0.8, 0.2), dense_above=1.0, weights="relative")
    decisions = Decisions(one, prices, levels=(0.8, 0.2), dense_above=1.0, weights="relative")
    part = decisions.parts["transformer"]
    table, times = part.table.reshape(4, -1).astype(np.float64), part.prices
    allowed = [np.flatnonzero(~np.isnan(row)) for row in table]
    found = [_option(plan, one, cell) for cell in np.ndindex(one.shape)]
    error, took = sum(table[i, o] for i, o in enumerate(found)), sum(times[o] for o in found)
    best = min(
        sum(table[i, o] for i, o in enumerate(options))
        for options in itertools.product(*allowed)
        if sum(times[o] for o in options) <= took + 1e-12
    )
    widest = max(np.diff(np.sort(row[~np.isnan(row)])).max() for row in table)
    assert best <= error <= best + widest
    assert 0.25 < plan.density() <= 0.45


def _first_heads() -> dict[str, Any]:
    names = ("plain", "curve", "energy", "stripes")
    return {name: np.ascontiguousarray(getattr(errors(), name)[:, :, :1]) for name in names}


def _option(plan: SparsePlan, found: HeadErrors, cell: tuple[int, ...]) -> int:
    pattern = plan.sole.pattern(*cell)
    plain = pattern.without_remainder()
    number = next(c for c in range(CANDIDATES.count) if CANDIDATES.pattern(c, found.stripes[cell]) == plain)
    return 2 * number + (pattern.remainder is not None)


@pytest.mark.parametrize(
    ("density", "sentence"),
    [
        (float("nan"), "select: density is nan, expected more than 0 and at most 1"),
        (0.0, "select: density is 0.0, expected"),
        (1.5, "select: density is 1.5, expected"),
    ],
)
def test_densities_that_are_refused(density: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        chosen(density)


def test_a_density_below_the_sparsest_plan_names_it() -> None:
    candidates = Candidates(GEOMETRY, (Pattern.full(), Pattern.diagonal(half_width=0)))
    keep = [CANDIDATES.patterns.index(pattern) for pattern in candidates.patterns]
    arrays: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(errors(), name)[..., keep]) for name in ("plain",)
    }
    arrays["curve"] = np.ascontiguousarray(errors().curve[..., keep, :])
    arrays["stripes"] = errors().stripes[..., :0].copy()
    few = replace(errors(), candidates=candidates, **arrays)
    prices = CostModel(cost().hardware, candidates, heads=MODEL.heads)
    own = float(candidates.density.min())
    assert at_density(few, prices, own, levels=LEVELS, dense_above=1.0).density() == pytest.approx(own)
    with pytest.raises(ValueError, match=rf"density is 0.05, expected at least {own:.4f}"):
        at_density(few, prices, 0.05, levels=LEVELS, dense_above=1.0)


# ---- controls ----


@pytest.mark.parametrize("density", [0.35, 0.5, 0.7])
def test_uniform_is_the_best_single_pattern(density: float) -> None:
    plan = uniform_at_density(errors(), density, dense_above=0.9)
    table = of_candidates()
    allowed = [
        number
        for number, pattern in enumerate(CANDIDATES.patterns)
        if CANDIDATES.density[number] <= density * 1.05 and pattern.kind != "skip"
    ]
    best = min(allowed, key=lambda number: table[..., number].sum())
    assert [pattern.without_remainder() for pattern in plan.patterns] == [CANDIDATES.patterns[best]]
    assert plan.provenance["pattern"] == CANDIDATES.patterns[best].name
    assert plan.dense_above == 0.9
    found, betas = errors().options()
    better = found[..., 2 * best + 1] < found[..., 2 * best]
    assert better.any()
    assert np.array_equal(np.isnan(plan.betas), ~better)
    np.testing.assert_allclose(plan.betas[better], betas[..., 2 * best + 1][better], atol=6e-4)


def test_no_uniform_pattern_is_so_sparse() -> None:
    with pytest.raises(ValueError, match=r"no candidate but skip has a density of at most 0\.0010"):
        uniform_at_density(errors(), 1e-3)
    with pytest.raises(ValueError, match="density is nan"):
        uniform_at_density(errors(), float("nan"))


def test_weights_decide_between_uniform_patterns() -> None:
    """All the weight on one head: its own best pattern."""
    table = of_candidates()
    seen = set()
    for cell in np.ndindex(errors().shape):
        weights = np.zeros(errors().shape)
        weights[cell] = 1
        plan = uniform_at_density(errors(), 0.6, weights=weights)
        allowed = [
            number
            for number, pattern in enumerate(CANDIDATES.patterns)
            if CANDIDATES.density[number] <= 0.63 and pattern.kind != "skip"
        ]
        best = min(allowed, key=lambda number: table[cell][number])
        assert plan.patterns[0].without_remainder() == CANDIDATES.patterns[best]
        seen.add(best)
    assert len(seen) > 1


def test_permuted_heads_are_the_same_heads_elsewhere() -> None:
    plan = chosen()
    moved = permute(plan, 1)
    assert moved.density() == pytest.approx(plan.density())
    assert moved == permute(plan, 1)
    for bin_ in range(2):
        before = sorted(zip(plan.choice[bin_].ravel(), plan.betas[bin_].ravel(), strict=True))
        after = sorted(zip(moved.choice[bin_].ravel(), moved.betas[bin_].ravel(), strict=True))
        assert repr(before) == repr(after)
    orders = {tuple(permute(plan, seed).betas.ravel()) for seed in range(20)}
    assert len(orders) > 5
    assert moved.dense_above == plan.dense_above


def test_random_masks_have_the_density_and_keep_what_every_pattern_keeps() -> None:
    plan = chosen()
    control = random_masks(plan, 3)
    fixed = kept_blocks(GEOMETRY)
    full_rows = LayerPlan(GEOMETRY, [Pattern.diagonal(half_width=0)]).block_mask(0)
    assert (fixed == full_rows).all(), "the own block and other tokens"
    for bin_, layer, head in np.ndindex(plan.choice.shape):
        mask = control.layer(bin_, layer).block_mask(head)
        source = plan.layer(bin_, layer).block_mask(head)
        assert (mask.sum(axis=1) == source.sum(axis=1)).all()
        enough = source.sum(axis=1) >= fixed.sum(axis=1)
        assert (mask | ~fixed)[enough].all()
        assert control.layer(bin_, layer).remainders[head] == plan.layer(bin_, layer).remainders[head]
    assert control.density() == pytest.approx(plan.density(), abs=0.02)
    assert control.hash != random_masks(plan, 4).hash
