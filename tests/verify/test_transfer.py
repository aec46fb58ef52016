"""What a recording says about a plan, against the arrays themselves; the transfer of a plan to other prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparse_vdit import Geometry, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity, TransformerPlan
from sparse_vdit.search import Candidates, HeadErrors
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.hardware import NAMES, Hardware
from sparse_vdit.search.probe import BETAS
from sparse_vdit.search.select import front, paper_modes, select
from sparse_vdit.verify import chosen_options, errors_of, transfer
from sparse_vdit.verify.request import MAX_ERROR, Request, request_of
from sparse_vdit.verify.transfer import NoRivalError, mean_error
from sparse_vdit.verify.why import why

GEOMETRY = Geometry(frames=4, height=8, width=8, prefix=8, block_q=32, block_k=32)
MODEL = ModelIdentity("CogVideoXTransformer3DModel", layers=3, heads=4, head_dim=16)
BINS = (0.0, 0.5, 1.0)
LEVELS = {"transformer": (0.9, 0.7, 0.3, 0.1)}
CANDIDATES = Candidates(
    GEOMETRY,
    (
        Pattern.full(), Pattern.skip(), Pattern.diagonal(half_width=0), Pattern.diagonal(half_width=60),
        Pattern.multi_diagonal(half_width=20), Pattern.vertical_stripe(key_blocks=[1, 4]),
    ),
    (2, 3),
)  # fmt: skip
CONSTANTS = {
    "workers": 1,
    "tall_rows": 6,
    "low_rows": 4,
    "chunk_keys": 256,
    "item_us": 1,
    "full_us": 40,
    "pooled_us": 2,
}


def cost() -> dict[str, CostModel]:
    constants = tuple(float(CONSTANTS.get(name, 0)) for name in NAMES)
    return {"transformer": CostModel(Hardware("test", "float32", 16, 32, 32, constants), CANDIDATES, heads=4)}


def recording(seed: int, best: float = 1.3, **about: Any) -> HeadErrors:
    """Random liking of patterns; parabolas of the bias with their lowest point at `best`."""
    rng = np.random.default_rng(seed)
    cells = (2, 3, 4)
    energy = rng.uniform(1, 20, cells)
    wanted = 10 ** rng.uniform(-2.5, 0, (*cells, CANDIDATES.count))
    plain = energy[..., None] * wanted * np.exp(-3 * CANDIDATES.density)
    curve = plain[..., None] * (0.2 + 0.02 * (BETAS - best) ** 2)
    for number, pattern in enumerate(CANDIDATES.patterns):
        if not pattern.takes_remainder:
            plain[..., number] = 0 if pattern.kind == "full" else energy
            curve[..., number, :] = plain[..., number, None]
    stripes = np.argsort(np.random.default_rng(9).random((*cells, GEOMETRY.key_blocks)))[..., :3]
    return HeadErrors(
        MODEL, CANDIDATES, BINS, "relative", 64, 0,
        plain=plain.astype(np.float32), curve=curve.astype(np.float32), energy=energy.astype(np.float32),
        calls=np.full(cells[:2], 2, np.int64), stripes=stripes.astype(np.int32), **about,
    )  # fmt: skip


def random_plan(errors: HeadErrors, seed: int, beta: float | None = 0.7) -> tuple[SparsePlan, np.ndarray]:
    """A plan of random candidates, mass stripes among them, and their numbers."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, CANDIDATES.count, errors.shape)
    patterns: dict[Pattern, int] = {}
    choice, betas = np.zeros(errors.shape, np.int32), np.full(errors.shape, np.nan)
    for cell in np.ndindex(errors.shape):
        pattern = CANDIDATES.pattern(int(chosen[cell]), errors.stripes[cell])
        choice[cell] = patterns.setdefault(pattern, len(patterns))
        if beta is not None and pattern.takes_remainder:
            betas[cell] = beta
    return SparsePlan(TransformerPlan(MODEL, GEOMETRY, list(patterns), choice, betas, BINS)), chosen


@pytest.mark.parametrize("beta", [None, 0.7, float(BETAS[0]), float(BETAS[-1]), float(BETAS[5])])
def test_errors_of_a_plan_are_those_of_the_recording(beta: float | None) -> None:
    errors = recording(1)
    plan, chosen = random_plan(errors, 2, beta)
    options, found = chosen_options(errors, plan.sole), errors_of(errors, plan.sole)
    for cell in np.ndindex(errors.shape):
        candidate = int(chosen[cell])
        with_remainder = beta is not None and bool(CANDIDATES.takes_remainder[candidate])
        assert options[cell] == 2 * candidate + with_remainder
        expected = float(errors.plain[*cell, candidate])
        if with_remainder and beta is not None:
            expected *= 0.2 + 0.02 * (beta - 1.3) ** 2  # a parabola, which the cubic through the nodes is too
        assert found[cell] == pytest.approx(expected / errors.energy[cell], rel=2e-3)


def test_joined_bins_and_other_plans() -> None:
    errors = recording(1)
    one = SparsePlan.uniform(MODEL, GEOMETRY, Pattern.diagonal(half_width=60))
    found = errors_of(errors, one.sole)
    number = CANDIDATES.patterns.index(Pattern.diagonal(half_width=60))
    assert found.shape == (1, 3, 4)
    assert found[0] == pytest.approx(errors.plain[..., number].sum(0) / errors.energy.sum(0), rel=1e-5)
    strange = SparsePlan.uniform(MODEL, GEOMETRY, Pattern.diagonal(half_width=100))
    with pytest.raises(ValueError, match=r"plan: it holds diagonal\(100\), expected one of the 8"):
        errors_of(errors, strange.sole)
    other = ModelIdentity("CogVideoXTransformer3DModel", layers=2, heads=4, head_dim=16)
    with pytest.raises(ValueError, match="it is of another model"):
        errors_of(errors, SparsePlan.uniform(other, GEOMETRY, Pattern.full()).sole)


def test_the_mean_is_what_the_selection_predicted() -> None:
    errors = {"transformer": recording(3)}
    for asked in ({"max_error": 0.05}, {"time_ms": 2.0}, {"max_error": 0.05, "dense_above": 0.8}):
        plan = select(errors, cost(), levels=LEVELS, **asked)
        mean = mean_error(errors, cost(), plan, levels=LEVELS)
        assert mean == pytest.approx(plan.provenance["predicted"]["mean_error"], rel=0.02)


def test_the_same_prompts_cost_nothing_and_others_something() -> None:
    own = {"transformer": recording(4)}
    plan = select(own, cost(), levels=LEVELS, max_error=0.1)
    same = transfer(own, own, cost(), plan, levels=LEVELS)
    assert same.own == same.carried
    assert same.regret == pytest.approx(0, abs=0.02)
    assert same.correlation == pytest.approx(1)
    other = transfer(own, {"transformer": recording(5)}, cost(), plan, levels=LEVELS)
    assert other.regret > 0.05
    assert other.carried > other.best
    assert other.same_family < 1
    assert abs(other.correlation) < 0.9
    assert f"{other.regret:+.1%}" in str(other)
    assert same.of_heads.shape == other.of_heads.shape == (int((plan.sole.densities() < 1).sum()), 2)


def test_biases_travel_with_the_plan() -> None:
    """On prompts whose best bias is another, the plan pays for its own."""
    errors, shifted = recording(6), recording(6, best=5.0)
    plan = select(errors, cost()["transformer"], levels=LEVELS["transformer"], max_error=0.05)
    sparse = ~np.isnan(plan.betas)
    assert plan.betas[sparse] == pytest.approx(1.3, abs=0.05)
    ratio = errors_of(shifted, plan.sole)[sparse] / errors_of(errors, plan.sole)[sparse]
    assert ratio == pytest.approx((0.2 + 0.02 * 3.7**2) / 0.2, rel=0.05)


def test_request_is_read_back_from_a_plan() -> None:
    errors = {"transformer": recording(7)}
    plan = Request(max_error=0.1, remainder="zero", weights="mse").choose(errors, cost())
    found = request_of(plan)
    assert (found.remainder, found.weights, found.objective, found.bins) == ("zero", "mse", "budget", BINS)
    paper = Request(objective="paper", threshold=0.9).choose(errors, cost())
    assert request_of(paper).objective == "paper"
    assert np.isnan(paper.betas).all()
    assert Request().choose(errors, cost()).provenance["asked"]["max_error"] == MAX_ERROR
    assert Request(max_error=0.1, bins=(0.0, 1.0)).choose(errors, cost()).bins == (0.0, 1.0)
    with pytest.raises(ValueError, match="target_psnr is given, expected a model too"):
        Request(target_psnr=30.0).choose(errors, cost())
    with pytest.raises(ValueError, match="select: speedup is of a whole step, expected rest_ms too"):
        Request(speedup=2.0).choose(errors, cost())
    hostile = SparsePlan(plan.transformers, {"asked": {"remainder": ["x"], "objective": 3}, "weights": {}})
    assert request_of(hostile).remainder == "fitted"


def test_restrictions_are_read_back_from_a_plan() -> None:
    errors = {"transformer": recording(7)}
    given = {"kinds": ("diagonal", "skip"), "among": (1, 2, 3), "dense_above": 0.8, "max_layer_error": 0.5}
    plan = Request(max_error=0.1, **given).choose(errors, cost())
    found = request_of(SparsePlan.from_json(plan.to_json()))
    assert {name: getattr(found, name) for name in given} == given
    paper = Request(objective="paper", threshold=0.9, mode_density=0.5, penalty=0.2).choose(errors, cost())
    found = request_of(paper)
    assert (found.mode_density, found.penalty) == (0.5, 0.2)
    assert found.among == paper_modes(CANDIDATES, 0.5)
    strange = {"kinds": [3], "among": [True], "dense_above": "x", "max_layer_error": -1, "found": 3}
    hostile = request_of(SparsePlan(plan.transformers, {"asked": strange}))
    assert hostile.rule == Request().rule
    with pytest.raises(ValueError, match=r"mode_density is 0\.5, expected it with the objective paper"):
        select(errors, cost(), max_error=0.1, mode_density=0.5)


@pytest.mark.parametrize(
    "request_",
    [
        Request(max_error=0.3, kinds=("diagonal",), dense_above=0.6),
        Request(objective="paper", penalty=0.01, threshold=9.0),
    ],
)
def test_the_rival_plan_is_under_the_same_rule(request_: Request) -> None:
    """On the plan's own prompts it is the plan again; without the restrictions it is another."""
    own = {"transformer": recording(4)}
    plan = request_.choose(own, cost())
    rule = request_of(plan).rule
    same = transfer(own, own, cost(), plan, levels=LEVELS, **rule)
    free = transfer(own, own, cost(), plan, levels=LEVELS)
    assert free.same_family < same.same_family == 1
    assert same.regret == pytest.approx(0, abs=0.02)
    with pytest.raises(NoRivalError, match="transfer: select: "):
        transfer(own, own, cost(), plan, levels=LEVELS, **(rule | {"kinds": ("full",), "dense_above": None}))


def test_forbidden_options_are_not_on_the_front() -> None:
    errors, prices = {"transformer": recording(4)}, cost()
    plan = Request(max_error=0.1, kinds=("diagonal",)).choose(errors, prices)
    listed = front(errors["transformer"], prices["transformer"], 0, 1, 2, **request_of(plan).allowed)
    of_candidates = [pattern.kind for pattern in CANDIDATES.patterns] + ["mass", "mass"]
    kinds = {option.number: of_candidates[option.number // 2] for option in listed}
    assert {kinds[option.number] for option in listed if option.is_on_hull} <= {"diagonal", "full"}
    assert {kinds[option.number] for option in listed if not np.isnan(option.error)} == {"diagonal", "full"}
    said = why(errors, prices, plan, 1, 2, every=True)
    assert "not allowed" in said
    assert "->" not in said
    paper = Request(objective="paper", threshold=9.0).choose(errors, prices)
    losses = next(line for line in why(errors, prices, paper, 1, 2, bin_=0).splitlines() if "L = MSE" in line)
    assert "mass" not in losses
    assert losses.count(",") == len(paper_modes(CANDIDATES, 0.25)) - 1
