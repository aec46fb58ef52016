"""Plans from errors and prices: every dial met and checked by the cost model, warm-up, guards, caps, controls."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from sparse_vdit import Geometry, SparsePlan
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search.candidates import Candidates, ladder
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.decisions import Decisions
from sparse_vdit.search.hardware import NAMES, Hardware
from sparse_vdit.search.head_errors import HeadErrors
from sparse_vdit.search.probe import BETAS
from sparse_vdit.search.select import Dial, front, paper_modes, select, why
from sparse_vdit.verify.transfer import chosen_options

GEOMETRY = Geometry(frames=6, height=8, width=8, prefix=8, block_q=32, block_k=32)
MODEL = ModelIdentity("CogVideoXTransformer3DModel", layers=3, heads=4, head_dim=16)
BINS = (0.0, 0.3, 0.7, 1.0)
LEVELS = (0.95, 0.85, 0.75, 0.6, 0.5, 0.4, 0.2, 0.1)
CONSTANTS: dict[str, float] = {
    "workers": 2,
    "tall_rows": 6,
    "low_rows": 4,
    "chunk_keys": 256,
    "launch_us": 30,
    "item_us": 1,
}
CONSTANTS |= {"full_us": 4, "head_us": 2, "pooled_us": 1.5, "tile_us": 0.5, "mean_us": 0.3, "reorder_us": 0.4}


@cache
def candidates() -> Candidates:
    return ladder(GEOMETRY, (0.1, 0.2, 0.4), mass=(0.2,))


def cost_model(heads: int = 4, **changed: float) -> CostModel:
    values = CONSTANTS | changed
    constants = tuple(float(values.get(name, 0)) for name in NAMES)
    return CostModel(Hardware("test", "float32", 16, 32, 32, constants), candidates(), heads=heads)


def head_errors(seed: int = 0, model: ModelIdentity = MODEL, bins: tuple[float, ...] = BINS) -> HeadErrors:
    """Errors that fall with density, faster with a bias near one that differs by head."""
    rng = np.random.default_rng(seed)
    made = candidates()
    cells = (len(bins) - 1, model.layers, model.heads)
    energy = rng.uniform(1, 20, cells)
    likes = rng.uniform(0.02, 1, (*cells, made.count))  # which pattern a head likes
    plain = energy[..., None] * np.clip(likes * np.exp(-4 * made.density), 0, 1)
    best = rng.uniform(-2, 3, (*cells, 1, 1))
    curve = plain[..., None] * (0.3 + 0.1 * np.abs(BETAS - best))
    for number, pattern in enumerate(made.patterns):
        if not pattern.takes_remainder:
            plain[..., number] = 0 if pattern.kind == "full" else energy
            curve[..., number, :] = plain[..., number, None]
    stripes = np.argsort(rng.random((*cells, GEOMETRY.key_blocks)))[..., : made.stripe_blocks]
    return HeadErrors(
        model,
        made,
        bins,
        "relative",
        rows=64,
        seed=0,
        plain=plain.astype(np.float32),
        curve=curve.astype(np.float32),
        energy=energy.astype(np.float32),
        calls=np.full(cells[:2], 2, np.int64),
        stripes=stripes.astype(np.int32),
        power=rng.uniform(0, 2, cells).astype(np.float32),
        provenance={"samples": [{"prompt": "a", "seed": 0}, {"prompt": "b", "seed": 0}], "search": "0" * 64},
    )


def dense_ms(cost: CostModel) -> float:
    return cost.dense_layer_ms * MODEL.layers


def plan_error(plan: SparsePlan, errors: HeadErrors, weights: Any, levels: tuple[float, ...]) -> float:
    """The mean error of a plan counted step by step from the options' errors, by name of the pattern."""
    table, betas = errors.options()
    total = norm = 0.0
    for level in levels:
        bin_ = plan.bin_of(level)
        row = min(int(np.searchsorted(errors.bins, level, side="right")) - 1, len(errors.bins) - 2)
        norm += float(weights[row].sum())
        for layer, head in np.ndindex(errors.shape[1:]) if bin_ is not None else ():
            assert bin_ is not None
            pattern = plan.sole.pattern(bin_, layer, head)
            plain = pattern.without_remainder()
            known = [c for c in range(errors.candidates.count)
                     if errors.candidates.pattern(c, errors.stripes[row, layer, head]) == plain]  # fmt: skip
            option = 2 * known[0] + (pattern.remainder is not None)
            if pattern.remainder is not None:
                assert pattern.remainder == pytest.approx(betas[row, layer, head, option], abs=6e-4)
            error = 0.0 if pattern.kind == "full" else float(table[row, layer, head, option])
            total += float(weights[row, layer, head]) * error
    return total / norm


@pytest.mark.parametrize("weights", ["relative", "mse", "sensitivity"])
@pytest.mark.parametrize("speedup", [1.2, 1.6, 2.2])
def test_speedup_is_met_as_the_cost_model_plays_it(speedup: float, weights: str) -> None:
    errors, cost = head_errors(), cost_model()
    rest = 0.5 * dense_ms(cost)
    plan = select(errors, cost, speedup=speedup, rest_ms=rest, levels=LEVELS, weights=weights)
    step = cost.step(plan.sole, LEVELS, rest_ms=rest)
    assert speedup * 0.9999 <= step.speedup <= speedup * 1.02
    predicted = plan.provenance["predicted"]
    assert predicted["speedup"] == pytest.approx(step.speedup, rel=1e-4)
    assert predicted["attention_ms"] == pytest.approx(step.plan_ms, rel=1e-4)
    found = plan_error(plan, errors, errors.weights(weights), LEVELS)
    assert predicted["mean_error"] == pytest.approx(found, rel=1e-4)
    assert plan.provenance["asked"]["speedup"] == speedup
    assert SparsePlan.from_json(plan.to_json()) == plan


def test_the_dials_agree() -> None:
    errors, cost = head_errors(), cost_model()
    dense = dense_ms(cost)
    by_time = select(errors, cost, time_ms=0.5 * dense, levels=LEVELS)
    by_step = select(errors, cost, step_ms=0.5 * dense + 1, rest_ms=1, levels=LEVELS)
    by_speed = select(errors, cost, speedup=2, rest_ms=0, levels=LEVELS)
    for other in (by_step, by_speed):
        assert other.choice.tolist() == by_time.choice.tolist()
        assert other.betas.tobytes() == by_time.betas.tobytes()
    predicted = by_time.provenance["predicted"]
    by_error = select(errors, cost, max_error=predicted["mean_error"] * 1.0001, levels=LEVELS)
    again = by_error.provenance["predicted"]
    assert again["mean_error"] <= predicted["mean_error"] * 1.0002
    assert again["attention_ms"] <= predicted["attention_ms"] * 1.05


def test_more_time_is_never_worse_and_the_ends_are_skip_and_dense() -> None:
    errors, cost = head_errors(1), cost_model()
    dense = dense_ms(cost)
    found = []
    for share in np.linspace(0.15, 1.0, 18):
        plan = select(errors, cost, time_ms=share * dense, levels=LEVELS)
        predicted = plan.provenance["predicted"]
        assert predicted["attention_ms"] <= share * dense * (1 + 1e-5)
        found.append(predicted["mean_error"])
    assert all(after <= before * 1.03 for before, after in itertools.pairwise(found))
    assert found[0] > 10 * found[-2] or found[-2] == 0
    assert found[-1] == 0
    assert select(errors, cost, time_ms=2 * dense, levels=LEVELS).families() == {"full": 36}
    all_skip = select(errors, cost, max_error=1.0, levels=LEVELS)
    assert all_skip.families() == {"skip": 36}


def test_it_is_no_worse_than_random_choices_and_the_best_uniform_pattern() -> None:
    errors, cost = head_errors(2), cost_model()
    wanted = 0.4 * dense_ms(cost)
    best = select(errors, cost, time_ms=wanted, levels=LEVELS).provenance["predicted"]
    decisions = Decisions(errors, cost, levels=LEVELS)
    part = decisions.parts["transformer"]
    same = [decisions.by_one(option) for option in range(part.table.shape[-1])]
    fit = [decisions.mean_error(options) for options in same if decisions.play(options)[1] <= wanted]
    assert best["mean_error"] < np.nanmin(fit)
    rng = np.random.default_rng(0)
    for _ in range(300):
        allowed = ~np.isnan(part.table)
        options = {
            "transformer": np.where(allowed, rng.random(allowed.shape), -1).argmax(-1).astype(np.int32)
        }
        if decisions.play(options)[1] <= wanted:
            assert decisions.mean_error(options) > best["mean_error"]


# ---- warm-up, bins ----


def test_given_warm_up_steps_are_dense_and_count_in_the_time() -> None:
    errors, cost = head_errors(), cost_model()
    wanted = 0.6 * dense_ms(cost)
    plan = select(errors, cost, time_ms=wanted, levels=LEVELS, dense_above=0.8)
    assert plan.dense_above == 0.8
    assert [plan.bin_of(level) for level in LEVELS[:3]] == [None, None, 2]
    assert wanted * 0.97 < cost.plan_ms(plan.sole, LEVELS) <= wanted
    with pytest.raises(ValueError, match=r"expected at least .* ms are reachable"):
        select(errors, cost, time_ms=0.25 * dense_ms(cost), levels=LEVELS, dense_above=0.8)


def test_the_budget_makes_the_warm_up_where_errors_ask_for_it() -> None:
    errors, cost = head_errors(), cost_model()
    assert select(errors, cost, time_ms=0.6 * dense_ms(cost), levels=LEVELS).dense_above == 1.0
    weights = np.ones(errors.shape)
    weights[2] = 1e4
    plan = select(errors, cost, time_ms=0.6 * dense_ms(cost), levels=LEVELS, weights=weights)
    assert plan.dense_above == 0.7
    assert plan.provenance["weights"] == "given"
    assert set(plan.families(0)) - {"full"}
    assert 0.5 * dense_ms(cost) < cost.plan_ms(plan.sole, LEVELS) <= 0.6 * dense_ms(cost)


def test_without_levels_the_recorded_steps_count() -> None:
    errors, cost = head_errors(), cost_model()
    calls = np.array([[4] * 3, [8] * 3, [4] * 3])
    errors = replace(errors, calls=calls)
    plan = select(errors, cost, time_ms=0.5 * dense_ms(cost))
    same = select(errors, cost, time_ms=0.5 * dense_ms(cost), levels=[0.1, 0.5, 0.5, 0.9])
    assert plan.choice.tolist() == same.choice.tolist()
    few = replace(errors, provenance={"listen": 2})
    with pytest.raises(ValueError, match=r"measured at most 2 steps of a bin, expected levels="):
        select(few, cost, time_ms=1)


def test_bins_are_joined_on_request() -> None:
    errors, cost = head_errors(), cost_model()
    plan = select(errors, cost, time_ms=0.5 * dense_ms(cost), levels=LEVELS, bins=(0, 1))
    assert list(plan.bins) == [0.0, 1.0]
    summed = errors.plain.sum(axis=0) / errors.energy.sum(axis=0)[..., None]
    decisions = Decisions(errors, cost, bins=(0, 1), remainder="none")
    table = decisions.parts["transformer"].table[0]
    cheap = ~np.isnan(table[..., ::2])
    cheap[..., candidates().full] = False
    assert np.allclose(table[..., ::2][cheap], summed[cheap], rtol=1e-5)
    split = select(errors, cost, time_ms=0.5 * dense_ms(cost), levels=LEVELS)
    assert list(split.bins) == list(BINS)


def test_bins_without_steps_are_chosen_by_the_same_price() -> None:
    errors, cost = head_errors(), cost_model()
    plan = select(errors, cost, time_ms=0.4 * dense_ms(cost), levels=[0.9, 0.8, 0.1])
    assert set(plan.families(1)) - {"full", "skip"}


# ---- guards, remainder, restrictions ----


def test_nothing_dearer_than_full_is_chosen() -> None:
    errors, cost = head_errors(), cost_model(pooled_us=300)  # means cost more than they save
    for share in (0.3, 0.6, 0.9):
        plan = select(errors, cost, time_ms=share * dense_ms(cost), levels=LEVELS)
        assert np.isnan(plan.betas).all()
    loaded = cost_model(item_us=0, full_us=0, head_us=50)
    by_budget = select(errors, loaded, max_error=1.0, levels=LEVELS)
    by_paper = select(errors, loaded, objective="paper", penalty=0.001, levels=LEVELS)
    for plan in (by_budget, by_paper):
        assert set(plan.families()) <= {"skip", "full"}
    assert "full" in by_paper.families()


def test_a_layer_that_a_measured_dense_backend_beats_is_dense() -> None:
    errors, cost = head_errors(), cost_model()
    fast = 0.45 * dense_ms(cost)  # the host's own attention
    plan = select(errors, cost, max_error=0.02, dense_ms=fast, levels=LEVELS)
    for bin_, layer in np.ndindex(3, 3):
        kinds = {pattern.kind for pattern in plan.layer(bin_, layer).patterns}
        assert kinds == {"full"} or cost.layer_ms(plan.layer(bin_, layer)) < fast / 3
    assert plan.provenance["predicted"]["attention_ms"] <= fast


def test_remainder_fitted_zero_none() -> None:
    errors, cost = head_errors(), cost_model()
    found = {}
    for remainder in ("fitted", "zero", "none"):
        plan = select(errors, cost, time_ms=0.4 * dense_ms(cost), levels=LEVELS, remainder=remainder)
        found[remainder] = plan.provenance["predicted"]["mean_error"]
        betas = plan.betas[~np.isnan(plan.betas)]
        assert (len(betas) > 0) == (remainder != "none")
        assert remainder == "fitted" or (betas == 0).all()
    assert found["fitted"] < found["zero"] < found["none"]
    zero = int(np.flatnonzero(BETAS == 0)[0])
    table = Decisions(errors, cost, remainder="zero").parts["transformer"].table[..., 1::2]
    allowed = ~np.isnan(table)
    assert allowed.sum() > 100
    expected = errors.curve[..., zero] / errors.energy[..., None]
    assert np.allclose(table[allowed], expected[allowed], rtol=1e-6)


def test_among_and_kinds() -> None:
    errors, cost = head_errors(), cost_model()
    wanted = 0.5 * dense_ms(cost)
    plan = select(errors, cost, time_ms=wanted, levels=LEVELS, kinds=["diagonal"])
    assert set(plan.families()) <= {"diagonal", "full"}
    plan = select(errors, cost, time_ms=wanted, levels=LEVELS, among=[candidates().count - 1])
    assert set(plan.families()) - {"full"} == {"vertical_stripe"}
    for cell in np.ndindex(errors.shape):
        pattern = plan.sole.pattern(*cell)
        blocks = sorted(errors.stripes[cell][: candidates().mass_stripes[0]].tolist())
        assert pattern.kind == "full" or list(pattern.key_blocks or ()) == blocks
    with pytest.raises(ValueError, match=r"among holds 999, expected 0\.\."):
        select(errors, cost, time_ms=wanted, among=[999])
    with pytest.raises(
        ValueError, match=r"no candidate is of the kind 'union2', expected kinds out of diagonal"
    ):
        select(errors, cost, time_ms=wanted, kinds=["union2"])


def test_more_patterns_than_a_plan_may_have_leave_mass_stripes_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors, cost = head_errors(), cost_model()
    wanted = 0.5 * dense_ms(cost)
    band = next(n for n, pattern in enumerate(candidates().patterns) if pattern.kind == "diagonal")
    plan = select(errors, cost, time_ms=wanted, levels=LEVELS, among=[band, candidates().count - 1])
    assert "left_out" not in plan.provenance
    most = len(plan.sole.patterns) - 1
    monkeypatch.setattr("sparse_vdit.search.decisions.MAX_PATTERNS", most)
    plan = select(errors, cost, time_ms=wanted, levels=LEVELS, among=[band, candidates().count - 1])
    assert plan.provenance["left_out"] == "mass stripes"
    assert plan.provenance["asked"]["among"] == [band]
    assert set(plan.families()) == {"diagonal", "full"}
    assert f"the plan has {most + 1} distinct patterns, expected at most {most}" in caplog.text
    joined = select(errors, cost, time_ms=wanted, levels=LEVELS, among=[band], bins=(0, 1))
    assert set(joined.families()) <= {"diagonal", "full"}
    assert "select: joined bins have other mass stripes: 12 of 12 heads do without them" in caplog.text


def test_errors_of_nan_are_not_chosen_and_leave_full() -> None:
    errors, cost = head_errors(), cost_model()
    plain, curve = errors.plain.copy(), errors.curve.copy()
    plain[1, 2, 3], curve[1, 2, 3] = np.nan, np.nan
    plan = select(replace(errors, plain=plain, curve=curve), cost, max_error=1.0, levels=LEVELS)
    assert plan.sole.pattern(1, 2, 3).kind == "full"
    assert plan.families()["skip"] == 35


def test_caps_of_layers() -> None:
    errors, cost = head_errors(3), cost_model()
    weights = np.ones(errors.shape)
    wanted = 0.5 * dense_ms(cost)
    free = select(errors, cost, time_ms=wanted, levels=LEVELS, weights=weights)
    table, _ = errors.options()

    def layer_errors(plan: SparsePlan) -> list[float]:
        return [plan_error_of_layer(plan, errors, table, layer) for layer in range(3)]

    worst = max(layer_errors(free))
    cap = 0.9 * worst
    capped = select(errors, cost, time_ms=wanted, levels=LEVELS, weights=weights, max_layer_error=cap)
    assert max(layer_errors(capped)) <= cap * 1.0001
    assert capped.provenance["predicted"]["mean_error"] >= free.provenance["predicted"]["mean_error"]
    with pytest.raises(ValueError, match="expected at least"):
        select(errors, cost, time_ms=wanted, levels=LEVELS, max_layer_error=0.0)


def plan_error_of_layer(plan: SparsePlan, errors: HeadErrors, table: Any, layer: int) -> float:
    steps = np.bincount([min(int(np.searchsorted(BINS, x, side="right")) - 1, 2) for x in LEVELS]) / len(
        LEVELS
    )
    total = 0.0
    for bin_, head in itertools.product(range(3), range(4)):
        pattern = plan.sole.pattern(bin_, layer, head)
        if pattern.kind == "full":
            continue
        stripe = errors.stripes[bin_, layer, head]
        plain = pattern.without_remainder()
        known = [errors.candidates.pattern(c, stripe) == plain for c in range(errors.candidates.count)]
        option = 2 * known.index(True) + (pattern.remainder is not None)
        total += steps[bin_] * float(table[bin_, layer, head, option]) / 4
    return total


# ---- the paper's rule ----


def test_paper_by_equations_two_and_three() -> None:
    errors, cost = head_errors(4), cost_model()
    modes = paper_modes(candidates(), 0.2)
    kinds = [candidates().patterns[mode].kind for mode in modes]
    assert sorted(kinds) == ["diagonal", "full", "multi_diagonal", "skip", "vertical_stripe"]
    mse = errors.mean_square()
    plan = select(errors, cost, objective="paper", among=modes, penalty=0.01, threshold=0.005, levels=LEVELS)
    assert np.isnan(plan.betas).all()
    seen = set()
    for cell in np.ndindex(errors.shape):
        losses = {m: mse[cell][m] + 0.01 * candidates().density[m] for m in modes if m != candidates().full}
        best = min(losses, key=lambda m: losses[m])
        wanted = (
            candidates().patterns[best] if losses[best] <= 0.005 else candidates().patterns[candidates().full]
        )
        assert plan.sole.pattern(*cell) == wanted
        seen.add(wanted.kind)
    assert len(seen) >= 2


def test_paper_meets_a_time_by_its_threshold() -> None:
    errors, cost = head_errors(5), cost_model()
    modes = paper_modes(candidates(), 0.2)
    wanted = 0.6 * dense_ms(cost)
    plan = select(errors, cost, objective="paper", among=modes, time_ms=wanted, levels=LEVELS)
    assert 0.9 * wanted < plan.provenance["predicted"]["attention_ms"] <= wanted
    threshold = plan.provenance["asked"]["found"]["threshold"]
    same = select(errors, cost, objective="paper", among=modes, threshold=threshold * 1.00001, levels=LEVELS)
    assert same.choice.tolist() == plan.choice.tolist()
    with pytest.raises(ValueError, match="threshold and a time are given, expected one of them"):
        select(errors, cost, objective="paper", time_ms=wanted, threshold=1.0)
    with pytest.raises(ValueError, match="max_error is given with the paper's rule"):
        select(errors, cost, objective="paper", max_error=0.1)


# ---- two transformers ----


def test_one_price_for_both_experts() -> None:
    errors = {"transformer": head_errors(1), "transformer_2": head_errors(2)}
    cost = cost_model()
    levels = {"transformer": LEVELS[:3], "transformer_2": LEVELS[3:]}
    plan = select(errors, cost, time_ms=0.5 * dense_ms(cost), levels=levels)
    assert plan.names == ("transformer", "transformer_2")
    times = [cost.plan_ms(plan.for_transformer(name), levels[name]) for name in plan.names]
    mean = (3 * times[0] + 5 * times[1]) / 8
    assert mean == pytest.approx(plan.provenance["predicted"]["attention_ms"], rel=1e-5)
    assert 0.48 * dense_ms(cost) < mean <= 0.5 * dense_ms(cost)
    weights = {name: part.weights("relative") * scale for (name, part), scale in
               zip(errors.items(), (1.0, 100.0), strict=True)}  # fmt: skip
    skewed = select(errors, cost, time_ms=0.5 * dense_ms(cost), levels=levels, weights=weights)
    assert skewed.for_transformer("transformer").density() < plan.for_transformer("transformer").density()
    with pytest.raises(ValueError, match="levels is one list for 2 transformers, expected one by name"):
        select(errors, cost, time_ms=1, levels=LEVELS)
    with pytest.raises(ValueError, match="weights is one array for transformer, transformer_2"):
        select(errors, cost, time_ms=1, levels=levels, weights=np.ones((3, 3, 4)))


# ---- why ----


def test_front_explains_the_choice() -> None:
    errors, cost = head_errors(6), cost_model()
    plan = select(errors, cost, time_ms=0.4 * dense_ms(cost), levels=LEVELS)
    price = plan.provenance["asked"]["found"]["price"]
    table, _ = errors.options()
    differ = 0
    for cell in np.ndindex(errors.shape):
        options = front(errors, cost, *cell)
        assert len(options) == 2 * candidates().count - 2  # full and skip take no remainder
        times = [option.time_ms for option in options]
        assert times == sorted(times)
        hull = [option for option in options if option.is_on_hull]
        prices = [option.price for option in hull]
        assert prices == sorted(prices, reverse=True)
        assert prices[-1] == 0
        assert hull[-1].name == "full" or hull[-1].error == 0
        for option in options:
            assert option.name in ("full",) or option.error == table[cell][option.number]
            assert not option.is_worthwhile or option.time_ms < options[-1].time_ms or option.name == "full"
            for left, right in itertools.pairwise(hull):  # nothing worthwhile lies below the hull
                if option.is_worthwhile and left.time_ms <= option.time_ms <= right.time_ms:
                    share = (option.time_ms - left.time_ms) / (right.time_ms - left.time_ms)
                    assert option.error >= left.error + share * (right.error - left.error) - 1e-6
        wanted = next(option for option in hull if option.price <= price)
        chosen = plan.sole.pattern(*cell)
        beta = chosen.remainder
        differ += chosen.without_remainder().name != wanted.name and "mass" not in wanted.name
        assert beta is None or wanted.beta is None or differ or abs(beta - wanted.beta) < 2e-3
    assert differ <= 3  # steps taken with what was left of the budget
    number = int(chosen_options(errors, plan.sole)[1, 2, 0])
    options = front(errors, cost, 1, 2, 0)
    text = why(options, number, price)
    assert text.startswith(str(next(option for option in options if option.number == number)))
    assert f"the budget's price {price:.3g}" in text
    with pytest.raises(ValueError, match="option 999 is not on the list"):
        why(options, 999)
    with pytest.raises(IndexError, match=r"head is 4, expected 0\.\.3"):
        front(errors, cost, 0, 0, 4)


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({}, ValueError, "no dial is given, expected one of time_ms, step_ms, speedup, max_error"),
        ({"time_ms": 1, "max_error": 1}, ValueError, "time_ms and max_error are given, expected one of them"),
        ({"speedup": 2}, ValueError, "speedup is of a whole step, expected rest_ms too"),
        ({"step_ms": 2}, ValueError, "step_ms is of a whole step, expected rest_ms too"),
        ({"step_ms": 2, "rest_ms": 3}, ValueError, "step_ms is 2, expected more than 3"),
        ({"speedup": 9, "rest_ms": 100}, ValueError, "speedup is 9, expected more than 0 and less than"),
        ({"speedup": 0, "rest_ms": 1}, ValueError, "speedup is 0, expected more than 0"),
        ({"time_ms": math.nan}, ValueError, "time_ms is nan, expected a finite number from 0 on"),
        ({"time_ms": -1}, ValueError, "time_ms is -1, expected a finite number from 0 on"),
        ({"time_ms": "1"}, TypeError, "time_ms is str, expected a number"),
        ({"time_ms": True}, TypeError, "time_ms is bool, expected a number"),
        ({"time_ms": 1e-6}, ValueError, r"expected at least .* ms; .* to .* ms are reachable"),
        (
            {"time_ms": 1, "objective": "fast"},
            ValueError,
            "objective is 'fast', expected one of budget, paper",
        ),
        (
            {"time_ms": 1, "remainder": "some"},
            ValueError,
            "remainder is 'some', expected one of fitted, zero, none",
        ),
        ({"time_ms": 1, "dense_above": 1.5}, ValueError, "dense_above is 1.5, expected a number in 0..1"),
        (
            {"time_ms": 1, "weights": np.ones(3)},
            ValueError,
            r"weights has shape \(3,\), expected \(3, 3, 4\)",
        ),
        ({"time_ms": 1, "weights": -np.ones((3, 3, 4))}, ValueError, "weights holds a negative or infinite"),
        ({"time_ms": 1, "weights": np.zeros((3, 3, 4))}, ValueError, "all weights are 0"),
        ({"time_ms": 1, "weights": "loud"}, ValueError, "expected one of relative, mse, sensitivity"),
        ({"time_ms": 1, "levels": []}, ValueError, "expected numbers in 0..1, one per step"),
        ({"time_ms": 1, "levels": [1.5]}, ValueError, "expected numbers in 0..1, one per step"),
        (
            {"max_error": 0.1, "max_layer_error": -1.0},
            ValueError,
            "max_layer_error is -1.0, expected a number from 0",
        ),
    ],
)
def test_refusals(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        select(head_errors(), cost_model(), **arguments)


def test_other_candidates_heads_and_types_are_refused() -> None:
    errors = head_errors()
    other = CostModel(cost_model().hardware, ladder(GEOMETRY, (0.1,), mass=()), heads=4)
    with pytest.raises(ValueError, match="the prices are of other candidates"):
        select(errors, other, time_ms=1)
    with pytest.raises(ValueError, match="the prices are for 5 heads, expected 4"):
        select(errors, cost_model(heads=5), time_ms=1)
    with pytest.raises(ValueError, match="there is no cost of transformer"):
        select(errors, {"transformer_2": cost_model()}, time_ms=1)
    with pytest.raises(TypeError, match="errors is dict, expected HeadErrors"):
        select({"transformer": {}}, cost_model(), time_ms=1)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="errors is empty"):
        select({}, cost_model(), time_ms=1)
    with pytest.raises(ValueError, match="density is 0, expected more than 0"):
        paper_modes(candidates(), 0)


def test_the_reachable_range_is_named_in_speedups() -> None:
    errors, cost = head_errors(), cost_model()
    with pytest.raises(ValueError, match=r"are reachable, speedups of a step from 1 to [0-9.]+") as refused:
        select(errors, cost, speedup=2.5, rest_ms=0, levels=LEVELS, dense_above=0.5)
    best = float(str(refused.value).rsplit(" ", 1)[1])
    plan = select(errors, cost, speedup=best * 0.99, rest_ms=0, levels=LEVELS, dense_above=0.5)
    assert plan.provenance["predicted"]["speedup"] >= best * 0.99


def test_dials_are_values() -> None:
    assert Dial(time_ms=2.0).asked == {"time_ms": 2.0}
    assert Dial(time_ms=2.0) == Dial(time_ms=2.0)
