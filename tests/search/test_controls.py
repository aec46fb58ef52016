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
from sparse_vdit.search import Candidates, HeadErrors, Recorder, choose
from sparse_vdit.search.controls import evenly_spread, kept_blocks, permute, random_masks, uniform_at_density
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


# ---- by error alone ----


@pytest.mark.parametrize("remainder", [False, True])
def test_every_head_gets_the_pattern_of_least_error(remainder: bool) -> None:
    offered = [CANDIDATES.patterns[number] for number in (2, 3, 4)]
    plan = choose(errors(), offered, remainder=remainder, dense_above=0.9)
    found = errors().options()[0]
    table = np.stack(
        [found[..., 2 * n : 2 * n + 2] for n in map(CANDIDATES.patterns.index, offered)], axis=-2
    )
    least = np.fmin(table[..., 0], table[..., 1]) if remainder else table[..., 0]
    seen = set()
    for cell in np.ndindex(plan.sole.shape):
        taken = plan.sole.patterns[plan.sole.choice[cell]]
        number = offered.index(taken.without_remainder())
        assert least[cell][number] == least[cell].min()
        seen.add(number)
        has_remainder = not np.isnan(plan.betas[cell])
        assert has_remainder == (remainder and table[cell][number][1] < table[cell][number][0])
    assert len(seen) > 1
    assert (plan.dense_above, plan.provenance["made_by"]) == (0.9, "search.choose")
    assert SparsePlan.from_json(plan.to_json()) == plan


def test_full_wins_where_it_is_offered_and_the_first_of_equals_is_taken() -> None:
    plan = choose({"transformer": errors()}, [CANDIDATES.patterns[3], Pattern.full()])
    assert plan.density() == 1
    silent = replace(errors(), plain=errors().plain * 0, curve=errors().curve * 0)
    assert {p.kind for p in choose(silent, CANDIDATES.patterns[2:4]).patterns} == {
        CANDIDATES.patterns[2].kind
    }


def test_what_cannot_be_chosen_from() -> None:
    with pytest.raises(ValueError, match="patterns is empty"):
        choose(errors(), [])
    with pytest.raises(ValueError, match=r"diagonal\(1\) was not measured"):
        choose(errors(), [Pattern.full(), Pattern.diagonal(half_width=1)])
    broken = replace(errors(), plain=np.where(np.arange(CANDIDATES.count) == 3, np.inf, errors().plain))
    with pytest.raises(
        ValueError, match="no pattern has a finite error in transformer, bin 0, layer 0, head 0"
    ):
        choose(broken, [CANDIDATES.patterns[3]])


# ---- controls ----


def front(table: np.ndarray) -> list[int]:
    """Candidates that no sparser one beats, by density."""
    allowed = [n for n, pattern in enumerate(CANDIDATES.patterns) if pattern.kind != "skip"]
    total = table.reshape(-1, table.shape[-1]).sum(axis=0)
    return sorted(
        (n for n in allowed if not any(
            total[m] <= total[n] and (CANDIDATES.density[m], m) < (CANDIDATES.density[n], n) for m in allowed
        )),
        key=lambda n: CANDIDATES.density[n],
    )  # fmt: skip


@pytest.mark.parametrize("density", [0.35, 0.5, 0.7, 1.0])
def test_uniform_is_the_best_pattern_and_for_some_heads_the_next(density: float) -> None:
    plan = uniform_at_density(errors(), density, dense_above=0.9)
    rungs = front(of_candidates())
    low = max(n for n in rungs if CANDIDATES.density[n] <= density + 1e-9)
    high = next((n for n in rungs if CANDIDATES.density[n] > CANDIDATES.density[low]), low)
    step = CANDIDATES.density[high] - CANDIDATES.density[low]
    assert density - max(step, 1e-9) / 8 - 1e-9 < plan.density() <= density + 1e-9 or low == CANDIDATES.full
    used = {CANDIDATES.patterns.index(pattern.without_remainder()) for pattern in plan.patterns}
    assert used <= {low, high}
    assert low in used
    assert plan.provenance["patterns"] == [CANDIDATES.patterns[number].name for number in sorted(used)]
    assert plan.dense_above == 0.9
    found, betas = errors().options()
    for cell in np.ndindex(plan.sole.shape):
        number = CANDIDATES.patterns.index(plan.sole.patterns[plan.sole.choice[cell]].without_remainder())
        plain, fitted = found[cell][2 * number : 2 * number + 2]
        assert np.isnan(plan.betas[cell]) == (not fitted < plain)
        if fitted < plain:
            assert plan.betas[cell] == pytest.approx(betas[cell][2 * number + 1], abs=6e-4)


@pytest.mark.parametrize(("count", "cells"), [(0, 12), (1, 12), (5, 12), (12, 12), (48, 96)])
def test_evenly_spread(count: int, cells: int) -> None:
    taken = evenly_spread((2, cells // 2), count).ravel()
    assert taken.sum() == count
    for part in range(1, cells):
        assert abs(taken[:part].sum() - part * count / cells) <= 2


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
            if CANDIDATES.density[number] <= 0.6 and pattern.kind != "skip"
        ]
        best = min(allowed, key=lambda number: table[cell][number])
        assert plan.provenance["patterns"][0] == CANDIDATES.patterns[best].name
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
