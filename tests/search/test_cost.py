"""Prices: the equation counted over block masks, the schedule by plain search, plans, steps, break-even."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from sparse_vdit import _C, Geometry, LayerPlan, Order, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search.candidates import Candidates, ladder
from sparse_vdit.search.cost import CostModel, StepEstimate, StepTimer
from sparse_vdit.search.hardware import NAMES, Hardware, HardwareError

GEOMETRY = Geometry(frames=4, height=9, width=7, prefix=5, suffix=6, block_q=32, block_k=16)
TIMES = {
    "launch_us": 40, "head_us": 3, "pack_us": 0.7, "far_us": 0.9, "reorder_us": 0.5, "mean_us": 0.3, "item_us": 2,
    "chunk_us": 0.4, "run_us": 0.13, "full_us": 1.7, "partial_us": 0.23, "pooled_us": 0.61, "tile_us": 0.19,
    "zero_us": 0.05,
}  # fmt: skip


def hardware(workers: int = 1, block_q: int = 32, block_k: int = 16, **changed: float) -> Hardware:
    known = {"workers": workers, "tall_rows": 6, "low_rows": 4, "chunk_keys": 64, "cache_tokens": 400}
    values = known | TIMES | changed
    return Hardware("test", "float32", 64, block_q, block_k, tuple(float(values[name]) for name in NAMES))


def patterns(geometry: Geometry) -> list[Pattern]:
    tiles = Order.tiles(2, 3, 4)
    return [
        Pattern.full(),
        Pattern.skip(),
        Pattern.diagonal(half_width=11, sink_frames=1),
        Pattern.multi_diagonal(half_width=20, remainder=0.5),
        Pattern.vertical_stripe(key_blocks=[1, 4, geometry.key_blocks - 1], remainder=0.0),
        Pattern.vertical_stripe(key_blocks=[2, 3], order=tiles),
        Pattern.periodic_tiles(tile=(2, 3, 4), time=(1, 0, None), space=(1, 1, 3), remainder=-1.0),
        Pattern.union(Pattern.diagonal(half_width=3), Pattern.vertical_stripe(key_blocks=[5]), remainder=1.0),
    ]


# ---- the equation, once more, from masks ----


def item_us(h: Hardware, layer: LayerPlan, head: int) -> list[float]:
    g, mask = layer.geometry, layer.block_mask(head)
    pooled = layer.remainders[head] is not None and layer.patterns[head].takes_remainder
    found = []
    for qb, row in enumerate(mask):
        keys = sum(min(g.block_k, g.tokens - kb * g.block_k) for kb in np.flatnonzero(row))
        runs = int(np.count_nonzero(np.diff(np.concatenate([[0], row.astype(int)])) == 1))
        short = int(row[-1] and g.tokens % g.block_k > 0)
        means = int((~row).sum()) if pooled else 0
        tiles = len({kb // g.block_k for kb in np.flatnonzero(~row)}) if pooled else 0
        panels = math.ceil(means / 16)
        us = (
            h["item_us"] + math.ceil((keys + 16 * panels) / h["chunk_keys"]) * h["chunk_us"] + runs * h["run_us"]
            + keys / g.block_k * h["full_us"] + short * h["partial_us"] + panels * h["pooled_us"] + tiles * h["tile_us"]
        )  # fmt: skip
        rows = min(g.block_q, g.tokens - qb * g.block_q)
        found.append(us * strip_rows(rows) / strip_rows(g.block_q) if keys or means else 0.0)
    return found


def strip_rows(n: int) -> int:
    return min(6 * a + 4 * b for a in range(12) for b in range(12) if 6 * a + 4 * b >= n)


def packing_us(h: Hardware, layer: LayerPlan, head: int) -> float:
    g = layer.geometry
    far = max(0.0, 1 - h["cache_tokens"] / (g.tokens * layer.heads))
    us = h["head_us"] + g.tokens / g.block_k * (h["pack_us"] + far * h["far_us"])
    if layer.order(head).kind != "frame_major":
        us += g.tokens / g.block_q * h["reorder_us"]
    if layer.remainders[head] is not None:
        us += g.key_blocks * h["mean_us"]
    rows = zip(item_us(h, layer, head), range(g.query_blocks), strict=True)
    zeros = sum(min(g.block_q, g.tokens - qb * g.block_q) for us, qb in rows if us == 0)
    return us + zeros / g.block_q * h["zero_us"]


def expected_ms(h: Hardware, layer: LayerPlan) -> float:
    items = []
    for head in range(layer.heads):
        mask, pooled = layer.block_mask(head), layer.remainders[head] is not None
        for qb, us in enumerate(item_us(h, layer, head)):
            unvisited = np.flatnonzero(~mask[qb])
            tiles = len({kb // layer.geometry.block_k for kb in unvisited}) if pooled else 0
            if us:
                items.append((-(int(mask[qb].sum()) + tiles), head, qb, us))
    loads = [0.0] * h.workers
    for *_, us in sorted(items):
        heapq.heappush(loads, heapq.heappop(loads) + us)
    packing = sum(packing_us(h, layer, head) for head in range(layer.heads))
    return (h["launch_us"] + packing / h.workers + max(loads)) / 1000


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
def test_a_layer_costs_what_its_masks_say(workers: int) -> None:
    layer, h = LayerPlan(GEOMETRY, patterns(GEOMETRY)), hardware(workers)
    model = CostModel(h, GEOMETRY, heads=layer.heads)
    assert model.layer_ms(layer) == pytest.approx(expected_ms(h, layer), rel=1e-12)


def test_random_masks_cost_what_they_say(rng: np.random.Generator) -> None:
    shape = (GEOMETRY.query_blocks, GEOMETRY.key_blocks)
    for _ in range(20):
        masks = [rng.random(shape) < rng.uniform(0, 1) for _ in range(3)]
        orders = [Order.frame_major(), Order.token_major(), Order.tiles(2, 3, 4)]
        layer = LayerPlan.from_block_masks(GEOMETRY, masks, orders, [None, 0.0, 1.0])
        layer.patterns = (Pattern.diagonal(half_width=0),) * 3  # for item_us: they take a remainder
        h = hardware(int(rng.integers(1, 9)))
        ms = CostModel(h, GEOMETRY, heads=3).layer_ms(layer)
        assert ms == pytest.approx(expected_ms(h, layer), rel=1e-12)


def test_heads_add_up_for_one_worker_and_bound_it_for_more() -> None:
    made = ladder(GEOMETRY)
    rng = np.random.default_rng(3)
    for workers in (1, 2, 7):
        model = CostModel(hardware(workers), made, heads=6)
        prices = model.option_ms()
        assert prices.shape == (2 * made.count,)
        for _ in range(10):
            choice = rng.integers(0, made.count, 6).astype(np.int32)
            remainder = (rng.random(6) < 0.5) & made.takes_remainder[choice]
            total = prices[2 * choice + remainder].sum() + TIMES["launch_us"] / 1000
            ms = model.choice_ms(choice, remainder)
            if workers == 1:
                assert ms == pytest.approx(total, rel=1e-12)
            longest = 40 * TIMES["full_us"] / 1000
            assert total * (1 - 1e-12) <= ms <= total + longest


def test_options_follow_the_candidates() -> None:
    made = ladder(GEOMETRY)
    model = CostModel(hardware(), made, heads=2)
    prices = model.option_ms().reshape(-1, 2)
    for number in range(len(made.patterns)):
        pattern = made.patterns[number]
        for beta in (None, 0.5):
            if beta is not None and not pattern.takes_remainder:
                continue
            layer = LayerPlan(GEOMETRY, [pattern.with_remainder(beta)] * 2)
            wanted = (model.layer_ms(layer) - TIMES["launch_us"] / 1000) / 2
            assert prices[number, int(beta is not None)] == pytest.approx(wanted, rel=1e-12)
    plain = ~made.takes_remainder
    assert np.array_equal(prices[plain, 0], prices[plain, 1])
    assert (prices[~plain, 1] > prices[~plain, 0]).all()
    stripes = prices[len(made.patterns) :, 0]
    assert (np.diff(stripes) > 0).all()
    assert not np.shares_memory(model.option_ms(), model.option_ms())


def test_batch_and_workers() -> None:
    layer = LayerPlan(GEOMETRY, patterns(GEOMETRY))
    no_cache = {"cache_tokens": 0.0}
    one = CostModel(hardware(**no_cache), GEOMETRY, heads=8).layer_ms(layer)
    three = CostModel(hardware(**no_cache), GEOMETRY, heads=8, batch=3).layer_ms(layer)
    launch = TIMES["launch_us"] / 1000
    assert three - launch == pytest.approx(3 * (one - launch), rel=1e-12)
    spread = CostModel(hardware(10**4, **no_cache), GEOMETRY, heads=8).layer_ms(layer)
    longest = max(max(item_us(hardware(), layer, head)) for head in range(8)) / 1000
    assert longest + launch < spread < longest + launch + one / 10**4


# ---- break-even ----


def test_a_head_that_is_not_cheaper_than_dense_is_not_worthwhile() -> None:
    made = ladder(GEOMETRY)
    cheap = CostModel(hardware(), made, heads=2)
    assert cheap.worthwhile()[2 * made.full]
    assert not cheap.worthwhile()[2 * made.full + 1]
    facts = cheap.break_even()
    assert facts.dense_ms == cheap.dense_head_ms == cheap.option_ms()[2 * made.full]
    assert facts.least_ms < facts.dense_ms
    assert 0 < facts.density < 1
    dear = CostModel(hardware(run_us=500.0, mean_us=1e5), made, heads=2)
    worth, prices = dear.worthwhile(), dear.option_ms()
    for number in np.flatnonzero(made.takes_remainder):
        assert not worth[2 * number + 1]
        assert worth[2 * number] == (prices[2 * number] < dear.dense_head_ms)
        name = made.name(int(number))
        assert (name in dear.break_even().dearer) == (not worth[2 * number])
        assert f"{name} + remainder" in dear.break_even().dearer
    assert str(len(dear.break_even().dearer)) + " candidates cost no less than full" in str(dear.break_even())


# ---- plans and steps ----


def test_a_plan_is_priced_step_by_step() -> None:
    model = ModelIdentity("CogVideoXTransformer3DModel", layers=3, heads=4, head_dim=64)
    sparse = Pattern.diagonal(half_width=15, remainder=0.5)
    plan = SparsePlan.uniform(model, GEOMETRY, sparse, dense_above=0.8).sole
    cost = CostModel(hardware(2), GEOMETRY, heads=4)
    layer_ms = cost.layer_ms(LayerPlan(GEOMETRY, [sparse] * 4))
    assert cost.plan_ms(plan, [0.5]) == pytest.approx(3 * layer_ms)
    mixed = cost.plan_ms(plan, [0.95, 0.5, 0.3, 0.1], dense_layer_ms=7.0)
    assert mixed == pytest.approx((3 * 7.0 + 3 * 3 * layer_ms) / 4)
    full = SparsePlan.uniform(model, GEOMETRY, Pattern.full()).sole
    assert cost.plan_ms(full, [0.5], dense_layer_ms=7.0) == pytest.approx(21.0)
    assert cost.plan_ms(full, [0.5]) == pytest.approx(3 * cost.dense_layer_ms)
    step = cost.step(plan, [0.95, 0.5], rest_ms=10.0, dense_ms=30.0)
    assert step.plan_ms == pytest.approx((30.0 + 3 * layer_ms) / 2)
    assert step.speedup == pytest.approx(40.0 / (10.0 + step.plan_ms))
    with pytest.raises(ValueError, match="there are no noise levels, expected one per step"):
        cost.plan_ms(plan, [])


def test_amdahl_in_a_sentence() -> None:
    step = StepEstimate(rest_ms=38.0, dense_ms=62.0, plan_ms=14.6)
    assert str(step) == "attention is 62 % of your step; ceiling 2.6x; this plan 1.9x"
    assert step.budget_ms(1.9) == pytest.approx(14.63, abs=0.01)
    assert StepEstimate(0.0, 1.0, 0.5).ceiling == math.inf
    for speedup in (3.0, 0.0, -1.0):
        with pytest.raises(ValueError, match=r"expected more than 0 and less than 2\.63: attention is 62 %"):
            step.budget_ms(speedup)


def test_the_timer_tells_attention_from_the_rest() -> None:
    now = [0.0]
    timer = StepTimer(clock=lambda: now[0])

    def dense() -> str:
        now[0] += 0.003
        return "out"

    for step in range(5):
        for layer in range(4):
            now[0] += 0.002 + (1.0 if step == 0 else 0.0)  # the first step warms up
            assert timer(step, 0.5, layer, None, None, None, dense) == "out"
    assert timer.dense_ms == pytest.approx(12.0)
    assert timer.step_ms == pytest.approx(20.0)
    assert timer.rest_ms == pytest.approx(8.0)
    with pytest.raises(ValueError, match="cost: 0 steps were timed, expected at least 3"):
        _ = StepTimer().dense_ms


# ---- refusals ----


def test_refusals() -> None:
    with pytest.raises(HardwareError, match="constants are for blocks 64 x 64, expected 32 x 16"):
        CostModel(hardware(block_q=64, block_k=64), GEOMETRY, heads=2)
    with pytest.raises(ValueError, match=r"cost: heads is 0, expected 1\.\.256"):
        CostModel(hardware(), GEOMETRY, heads=0)
    model = CostModel(hardware(), GEOMETRY, heads=2)
    with pytest.raises(ValueError, match="cost: there are no candidates"):
        model.option_ms()
    other = Geometry(frames=4, height=9, width=8, block_q=32, block_k=16)
    with pytest.raises(ValueError, match=r"cost: the geometry is .* expected .* \(= the model's\)"):
        model.layer_ms(LayerPlan(other, [Pattern.full()] * 2))
    only = Candidates(GEOMETRY, (Pattern.full(), Pattern.skip()))
    with pytest.raises(ValueError, match="all full or skip"):
        CostModel(hardware(), only, heads=2).break_even()
    with pytest.raises(ValueError, match=r"choice\[1\] is 9, expected 0\.\.1"):
        CostModel(hardware(), only, heads=2).choice_ms(np.array([0, 9], np.int32), np.zeros(2, bool))


def test_the_c_door_checks_its_arrays() -> None:
    rows, codes = _C.visits(GEOMETRY.to_ints(), [Pattern.full().to_ints()], np.zeros(1, bool))
    orders, constants = np.full(1, -1, np.int32), hardware().array
    good = (constants, GEOMETRY.to_ints(), rows, codes, orders, 1, 2)
    assert _C.cost_heads(*good).shape == (1, 2)
    bad: list[tuple[int, object, type[Exception], str]] = [
        (0, constants[:-1].copy(), ValueError, "there are 18 constants, expected 19"),
        (0, constants.astype(np.float32), TypeError, "hardware is float32, expected float64"),
        (0, -constants, ValueError, "hardware: workers is -1"),
        (2, rows[:, :-1].copy(), ValueError, r"cost: visit_rows\.shape\[1\]"),
        (4, orders.astype(np.int64), TypeError, "cost: orders is int64, expected int32"),
        (5, 0, ValueError, "cost: batch is 0"),
        (6, 0, ValueError, "cost: there are 0 heads"),
        (6, 2**24 - 1, None, ""),
    ]
    for at, value, error, sentence in bad:
        arguments = [*good[:at], value, *good[at + 1 :]]
        if error is None:
            assert _C.cost_heads(*arguments)[0, 0] > 0
            continue
        with pytest.raises(error, match=sentence):
            _C.cost_heads(*arguments)
