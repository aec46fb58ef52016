"""The two rules of C against loops over all choices, the dual function and a sorted greedy written here."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparse_vdit import _C

Doubles = NDArray[np.float64]


def budget_rule(
    errors: Any, times: Any, budget: float, objective: str = "time", **more: Any
) -> dict[str, Any]:
    """One call with weights, repeats and groups filled in."""
    errors = np.ascontiguousarray(errors, dtype=np.float32)
    count = len(errors)
    groups = more.pop("groups", np.zeros(count, np.int32))
    weights, repeats = more.pop("weights", np.ones(count)), more.pop("repeats", np.ones(count))
    times = np.ascontiguousarray(np.atleast_2d(times), dtype=np.float64)
    return _C.select_budget(errors, times, groups, weights, repeats, float(budget), objective, **more)


class Instance:
    """A random instance with ties in time, options that are not allowed, weights and repeats of 0."""

    def __init__(self, seed: int, count: int = 4, options: int = 5, falling: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.errors = rng.random((count, options)).astype(np.float32)
        self.errors[rng.random(self.errors.shape) < 0.15] = np.nan
        self.errors[:, -1] = np.where(np.isnan(self.errors[:, -1]), 0.5, self.errors[:, -1])
        self.times = rng.integers(1, 9, (2, options)).astype(np.float64) / 4
        if falling:
            self.errors *= np.exp(-self.times[0]).astype(np.float32)
        self.more: dict[str, Any] = {
            "groups": rng.integers(0, 2, count).astype(np.int32),
            "weights": rng.random(count) * rng.integers(0, 4, count).clip(0, 1),
            "repeats": rng.integers(0, 4, count).astype(np.float64),
        }

    @property
    def error_table(self) -> Doubles:
        factor = self.more["weights"] * self.more["repeats"]
        return np.asarray(self.errors.astype(np.float64) * factor[:, None])

    @property
    def time_table(self) -> Doubles:
        return np.asarray(self.times[self.more["groups"]] * self.more["repeats"][:, None])

    def enumerate(self) -> tuple[NDArray[np.int64], Doubles, Doubles]:
        """All choices [n, count], their errors (NaN: not allowed) and times."""
        count, options = self.errors.shape
        choices = np.array(list(itertools.product(range(options), repeat=count)))
        rows = np.arange(count)
        allowed = ~np.isnan(self.errors)[rows, choices].any(axis=1)
        errors = np.nan_to_num(self.error_table)[rows, choices].sum(axis=1)
        return choices, np.where(allowed, errors, np.nan), self.time_table[rows, choices].sum(axis=1)

    def solve(self, budget: float, objective: str, **more: Any) -> dict[str, Any]:
        return budget_rule(self.errors, self.times, budget, objective, **self.more, **more)


def best_value(errors: Doubles, times: Doubles, budget: float, objective: str) -> float:
    value, spent = (errors, times) if objective == "time" else (times, errors)
    value = np.where(np.isnan(errors), np.inf, value)
    return float(np.min(value[spent <= budget + 1e-9], initial=np.inf))


def dual(instance: Instance, budget: float, objective: str) -> float:
    """max over prices of  sum_i min_p (value + price * spent) - price * budget, at all its corners."""
    errors, times = instance.error_table, instance.time_table
    value, spent = (errors, times) if objective == "time" else (times, errors)
    value = np.where(np.isnan(errors), np.inf, value)
    with np.errstate(invalid="ignore"):
        rise = value[:, :, None] - value[:, None, :]
    run = spent[:, None, :] - spent[:, :, None]
    with np.errstate(all="ignore"):
        corners = (rise / run).ravel()
    prices = np.concatenate([[0.0], corners[np.isfinite(corners) & (corners > 0)]])
    totals = (value[None] + prices[:, None, None] * np.nan_to_num(spent)[None]).min(axis=2).sum(axis=1)
    return float((totals - prices * budget).max())


@pytest.mark.parametrize("objective", ["time", "error"])
@pytest.mark.parametrize("seed", range(40))
def test_between_bound_and_one_step_above_the_best_of_all(seed: int, objective: str) -> None:
    instance = Instance(seed)
    choices, errors, times = instance.enumerate()
    spent = (times if objective == "time" else errors)[~np.isnan(errors)]
    for budget in instance.rng.uniform(spent.min(), spent.max() * 1.05, 8):
        found = instance.solve(budget, objective)
        at = int(np.flatnonzero((choices == found["choice"]).all(axis=1))[0])
        assert not np.isnan(errors[at])
        assert found["error"] == pytest.approx(errors[at], abs=1e-12)
        assert found["time_ms"] == pytest.approx(times[at], abs=1e-12)
        value = found["error" if objective == "time" else "time_ms"]
        best = best_value(errors, times, budget, objective)
        assert found["time_ms" if objective == "time" else "error"] <= budget * (1 + 1e-9)
        assert found["bound"] - 1e-9 <= best <= value + 1e-9
        assert found["bound"] == pytest.approx(dual(instance, budget, objective), abs=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_exact_where_a_price_uses_the_budget_up(seed: int) -> None:
    instance = Instance(seed, falling=True)
    _, errors, times = instance.enumerate()
    table = np.where(np.isnan(instance.errors), np.inf, np.nan_to_num(instance.error_table))
    for price in instance.rng.uniform(0, 0.5, 6):
        choice = (table + price * instance.time_table).argmin(axis=1)
        rows = np.arange(len(choice))
        error, time_ms = table[rows, choice].sum(), instance.time_table[rows, choice].sum()
        found = instance.solve(time_ms, "time")
        assert found["error"] == pytest.approx(best_value(errors, times, time_ms, "time"), abs=1e-12)
        assert found["error"] <= error + 1e-12
        found = instance.solve(error, "error")
        assert found["time_ms"] == pytest.approx(best_value(errors, times, error, "error"), abs=1e-9)


class Greedy:
    """The rule as a sorted list of single steps on the hulls: each is taken if it is the next of its chain and fits."""

    def __init__(self, errors: Doubles, times: Doubles, layer: list[int], caps: list[float]) -> None:
        self.errors, self.times, self.layer, self.caps = errors, times, layer, caps
        self.hulls = [self.hull(row) for row in errors]
        self.steps = sorted(
            ((row[b] - row[a]) / (times[b] - times[a]), i, k + 1)
            for i, (row, hull) in enumerate(zip(errors, self.hulls, strict=True))
            for k, (a, b) in enumerate(itertools.pairwise(hull))
        )  # steepest first
        self.at = [len(hull) - 1 for hull in self.hulls]

    def hull(self, row: Doubles) -> list[int]:
        times = self.times
        hull: list[int] = []
        for option in sorted(range(len(row)), key=lambda p: (times[p], row[p])):
            if hull and row[option] >= row[hull[-1]]:
                continue
            while len(hull) > 1:
                (a, b), c = hull[-2:], option
                if (row[a] - row[b]) * (times[c] - times[a]) > (row[a] - row[c]) * (times[b] - times[a]):
                    break
                hull.pop()
            hull.append(option)
        return hull

    @property
    def choice(self) -> list[int]:
        return [hull[at] for hull, at in zip(self.hulls, self.at, strict=True)]

    def error(self, layer: int | None = None) -> float:
        chosen = enumerate(self.choice)
        return float(sum(self.errors[i, p] for i, p in chosen if layer is None or self.layer[i] == layer))

    def drop(self, budget: float) -> None:
        """From the least error on, flattest step first, while the error stays within the budget and the caps."""
        closed = set()
        for _, i, k in reversed(self.steps):
            if i in closed:
                continue
            assert self.at[i] == k
            self.at[i] = k - 1
            if self.error() > budget or self.error(self.layer[i]) > self.caps[self.layer[i]]:
                self.at[i] = k
                closed.add(i)

    def lift(self, budget: float) -> None:
        """From where the caps let it be fastest, steepest step first, while the time stays within the budget."""
        self.drop(math.inf)
        self.lift_from_here(budget)

    def lift_from_here(self, budget: float) -> None:
        left = budget - sum(self.times[self.choice])
        for _, i, k in self.steps:
            hull = self.hulls[i]
            price = self.times[hull[k]] - self.times[hull[k - 1]]
            if self.at[i] == k - 1 and price <= left:
                self.at[i], left = k, left - price


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_like_a_sorted_greedy_with_caps(seed: int, capped: bool) -> None:
    rng = np.random.default_rng(seed)
    count = 24
    times = rng.random(8) + 0.05
    errors = (np.exp(-2 * times) * rng.random((count, 8))).astype(np.float32)
    layer = (np.arange(count) % 3).astype(np.int32)
    least = [float(errors[layer == number].min(axis=1).sum()) for number in range(3)]
    most = [float(errors[layer == number, times.argmin()].sum()) for number in range(3)]
    caps = [low + part * (high - low) for low, high, part in zip(least, most, (0.3, 0.6, 9), strict=True)]
    if not capped:
        caps = [math.inf] * 3
    more = {"layer": layer, "layer_caps": np.array(caps)} if capped else {}
    wide = errors.astype(np.float64)
    for part in (0.2, 0.35, 0.5, 0.7):
        budget = sum(least) + part * (sum(most) - sum(least))
        greedy = Greedy(wide, times, layer.tolist(), caps)
        greedy.drop(budget)
        assert budget_rule(errors, times, budget, "error", **more)["choice"].tolist() == greedy.choice
        fastest = Greedy(wide, times, layer.tolist(), caps)
        fastest.drop(math.inf)
        slow, fast = float(times.max()) * count, float(times[fastest.choice].sum())
        budget = fast + part * (slow - fast)
        greedy = Greedy(wide, times, layer.tolist(), caps)
        greedy.lift(budget)
        assert budget_rule(errors, times, budget, "time", **more)["choice"].tolist() == greedy.choice


@pytest.mark.parametrize("seed", range(4))
def test_many_decisions_like_a_sorted_greedy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = rng.random(40)
    errors = (np.exp(-3 * times) * rng.random((300, 40))).astype(np.float32)
    for share in (0.1, 0.3, 0.6):
        budget = 300 * share
        found = budget_rule(errors, times, budget)
        greedy = Greedy(errors.astype(np.float64), times, [0] * 300, [math.inf])
        greedy.at = [0] * 300
        greedy.lift_from_here(budget)
        assert found["choice"].tolist() == greedy.choice
        assert found["time_ms"] <= budget * (1 + 1e-9)
        assert found["error"] - found["bound"] <= found["multiplier"] * times.max()


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("objective", ["time", "error"])
@pytest.mark.parametrize("seed", range(5))
def test_a_larger_budget_is_never_worse(seed: int, objective: str, capped: bool) -> None:
    rng = np.random.default_rng(seed)
    times = rng.random(12) + 0.1
    errors = (np.exp(-3 * times) * rng.random((30, 12))).astype(np.float32)
    caps = {"layer": (np.arange(30) % 3).astype(np.int32), "layer_caps": np.array([0.6, np.inf, 0.3])}
    more = caps if capped else {}
    values: list[float] = []
    for budget in np.linspace(0.02, 33 if objective == "time" else 8, 300):
        try:
            found = budget_rule(errors, times, budget, objective, **more)
            values.append(found["error" if objective == "time" else "time_ms"])
        except ValueError:
            values.append(np.inf)
    values = values[int(np.argmax(np.isfinite(values))) :]
    assert len(values) > 50
    assert np.isfinite(values).all()
    assert (np.diff(values) <= 1e-9).all()


@pytest.mark.parametrize("objective", ["time", "error"])
@pytest.mark.parametrize("seed", range(30))
def test_caps_of_layers(seed: int, objective: str) -> None:
    instance = Instance(seed, falling=True)
    choices, errors, times = instance.enumerate()
    layer = np.array([0, 1, 0, 1], np.int32)
    rows = np.arange(4)
    parts = np.nan_to_num(instance.error_table)[rows, choices]
    sums = np.stack([parts[:, layer == number].sum(axis=1) for number in (0, 1)], axis=1)
    allowed = ~np.isnan(errors)
    low, high = sums[allowed].min(axis=0), sums[allowed].max(axis=0)
    refused: list[str] = []
    for part in (0.0, 0.1, 0.4):
        caps = np.array([low[0] + part * (high[0] - low[0]), np.inf])
        within = np.where(sums[:, 0] <= caps[0] + 1e-9, errors, np.nan)
        budget = 0.5 * (times.min() + times.max()) if objective == "time" else float(errors[allowed].mean())
        try:
            found = instance.solve(budget, objective, layer=layer, layer_caps=caps)
        except ValueError as error:
            refused.append(str(error))
            continue
        value = found["error" if objective == "time" else "time_ms"]
        at = int(np.flatnonzero((choices == found["choice"]).all(axis=1))[0])
        assert sums[at, 0] <= caps[0] + 1e-9
        assert found["bound"] - 1e-9 <= best_value(within, times, budget, objective) <= value + 1e-9
    assert all(" are reachable within the caps" in sentence for sentence in refused)
    assert len(refused) < 3
    assert objective == "time" or not refused


def test_a_cap_moves_time_to_its_layer_and_its_absence_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    times = np.linspace(0.1, 1, 12)
    errors = (np.exp(-3 * times) * rng.random((400, 12))).astype(np.float32)
    layer = (np.arange(400) % 4).astype(np.int32)
    free = budget_rule(errors, times, 160)
    spent = [float(errors[layer == n, free["choice"][layer == n]].sum()) for n in range(4)]
    loose = budget_rule(errors, times, 160, layer=layer, layer_caps=np.full(4, np.inf))
    assert loose["choice"].tolist() == free["choice"].tolist()
    assert loose["error"] == free["error"]
    caps = np.array([spent[0] * 0.7, np.inf, np.inf, np.inf])
    capped = budget_rule(errors, times, 160, layer=layer, layer_caps=caps)
    assert errors[layer == 0, capped["choice"][layer == 0]].sum() <= caps[0]
    assert capped["time_ms"] <= 160 * (1 + 1e-9)
    assert free["error"] < capped["error"] <= capped["bound"] * 1.01
    assert capped["multiplier"] > free["multiplier"]


def test_its_own_result_as_a_budget_gives_it_again() -> None:
    rng = np.random.default_rng(1)
    errors, times = rng.random((5000, 30)).astype(np.float32), rng.random(30)
    first = budget_rule(errors, times, 1500)
    again = budget_rule(errors, times, first["time_ms"])
    assert again["choice"].tolist() == first["choice"].tolist()
    back = budget_rule(errors, times, first["error"], "error")
    assert back["time_ms"] <= first["time_ms"] + times.max()  # from the other end: within a step
    assert back["bound"] <= first["time_ms"]


def test_ties_go_to_the_faster_option_then_the_lower_number_then_the_lower_decision() -> None:
    same = np.full((3, 3), 0.5)
    assert budget_rule(same, [2.0, 1.0, 1.0], 100)["choice"].tolist() == [1, 1, 1]
    unlike = np.array([[0.5, 0.9, 0.5, 0.3]])
    assert budget_rule(unlike, [1.0, 1.0, 1.0, 1.0], math.inf, "error")["choice"].tolist() == [3]
    steps = np.tile([1.0, 0.25], (4, 1))
    assert budget_rule(steps, [1.0, 2.0], 6)["choice"].tolist() == [1, 1, 0, 0]
    assert budget_rule(steps, [1.0, 2.0], 2.5, "error")["choice"].tolist() == [0, 0, 1, 1]


def test_what_has_no_weight_or_no_repeats() -> None:
    errors = np.array([[0.9, 0.1, 0.09], [0.9, 0.1, 0.09], [0.9, 0.1, 0.09], [0.9, 0.5, 0.4]])
    weights, repeats = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
    found = budget_rule(errors, [1.0, 2.0, 3.0], 4, weights=weights, repeats=repeats)
    assert found["choice"].tolist() == [1, 0, 1, 0]  # nothing to gain; free, as the price says; does not fit
    assert found["time_ms"] == 4.0
    assert found["error"] == pytest.approx(1.0)
    found = budget_rule(errors, [1.0, 2.0, 3.0], math.inf, weights=weights, repeats=repeats)
    assert found["choice"].tolist() == [2, 0, 2, 2]


def test_the_reachable_range_is_named() -> None:
    errors, times = [[0.5, 0.25, 0.0]] * 2, [1.0, 2.0, 3.0]
    with pytest.raises(
        ValueError, match=r"the time budget is 1 ms, expected at least 2 ms; 2 to 6 ms are reach"
    ):
        budget_rule(errors, times, 1)
    with pytest.raises(
        ValueError, match=r"the error budget is -1, expected at least 0; 0 to 1 are reachable"
    ):
        budget_rule(errors, times, -1, "error")
    with pytest.raises(ValueError, match=r"the time budget is -inf ms, expected at least 2 ms"):
        budget_rule(errors, times, -math.inf)
    caps: dict[str, Any] = {"layer": np.array([0, 0], np.int32), "layer_caps": np.array([0.25])}
    with pytest.raises(ValueError, match=r"expected at least 5 ms; 5 to 6 ms are reachable within the caps"):
        budget_rule(errors, times, 4, **caps)
    with pytest.raises(
        ValueError, match=r"layer_caps\[0\] is 0.05, expected at least 0.2; 0.2 to 1 are reachable"
    ):
        budget_rule([[0.5, 0.1]] * 2, times[:2], 9, **caps | {"layer_caps": np.array([0.05])})
    assert budget_rule(errors, times, math.inf)["choice"].tolist() == [2, 2]
    assert budget_rule(errors, times, math.inf, "error")["choice"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"errors": np.zeros((0, 2), np.float32), "n": 0}, ValueError, "there are 0 decisions"),
        (
            {"errors": np.zeros((2, 0), np.float32), "times": np.zeros((1, 0))},
            ValueError,
            "there are 0 options",
        ),
        ({"errors": np.full((2, 2), np.nan, np.float32)}, ValueError, "decision 0 has no allowed option"),
        ({"errors": np.full((2, 2), np.inf, np.float32)}, ValueError, "decision 0 has no allowed option"),
        ({"errors": np.full((2, 2), -1, np.float32)}, ValueError, r"errors\[0, 0\] is -1"),
        ({"errors": np.zeros((2, 2))}, TypeError, "errors is float64, expected float32"),
        ({"errors": np.zeros(2, np.float32)}, ValueError, "errors has 1 dimensions, expected 2"),
        ({"times": np.full((1, 2), np.nan)}, ValueError, r"times\[0\] is .*nan, expected a finite number"),
        ({"times": np.zeros((1, 3))}, ValueError, r"times.shape\[1\] is 3, expected 2"),
        ({"times": np.zeros((0, 2))}, ValueError, "there are 0 rows of times"),
        ({"time_group": np.array([0, 1], np.int32)}, ValueError, r"time_group\[1\] is 1, expected 0..0"),
        ({"time_group": np.array([0, -1], np.int32)}, ValueError, r"time_group\[1\] is -1, expected 0..0"),
        ({"time_group": np.zeros(2)}, TypeError, "time_group is float64, expected int32"),
        ({"weights": np.array([1, -1.0])}, ValueError, r"weights\[1\] is -1, expected a finite number"),
        ({"weights": np.ones(3)}, ValueError, r"weights.shape\[0\] is 3, expected 2"),
        ({"repeats": np.array([1, np.inf])}, ValueError, r"repeats\[1\] is inf"),
        ({"budget": math.nan}, ValueError, "the budget is not a number"),
        ({"objective": "speed"}, ValueError, "the objective is 'speed', expected time or error"),
        ({"layer_caps": np.ones(1)}, ValueError, "layer is None, expected the layer of each decision"),
        (
            {"layer_caps": np.array([math.nan]), "layer": np.zeros(2, np.int32)},
            ValueError,
            r"layer_caps\[0\] is",
        ),
        (
            {"layer_caps": np.ones(1), "layer": np.ones(2, np.int32)},
            ValueError,
            r"layer\[0\] is 1, expected 0..0",
        ),
        ({"weights": [1.0, 1.0]}, TypeError, "weights is list, expected numpy.ndarray"),
    ],
)
def test_budget_refusals(change: dict[str, Any], error: type[Exception], words: str) -> None:
    n = change.pop("n", 2)
    call: dict[str, Any] = {
        "errors": np.ones((n, 2), np.float32),
        "times": np.ones((1, 2)),
        "time_group": np.zeros(n, np.int32),
        "weights": np.ones(n),
        "repeats": np.ones(n),
        "budget": 10.0,
    }
    with pytest.raises(error, match=f"select_budget: .*{words}"):
        _C.select_budget(**call | change)


def test_no_option_of_nan_is_ever_chosen() -> None:
    errors = np.array([[np.nan, 0.2, np.nan, 0.1]] * 3, np.float32)
    for budget in (3.0, 5.0, 50.0):
        assert set(budget_rule(errors, [0.5, 1.0, 1.5, 2.0], budget)["choice"].tolist()) <= {1, 3}


# ---- the paper's rule ----


@pytest.mark.parametrize("seed", range(20))
def test_paper_is_equations_two_and_three(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mse, sparsity = rng.random((50, 5)) * 1.5, rng.random(5)
    mse[rng.random(mse.shape) < 0.1] = np.nan
    penalty, threshold, full = float(rng.random()), float(rng.random() + 0.2), int(rng.integers(5))
    choice = _C.select_paper(mse, sparsity, penalty, threshold, full)
    for row, chosen in zip(mse, choice, strict=True):
        losses = {
            m: row[m] + penalty * (1 - sparsity[m]) for m in range(5) if m != full and not np.isnan(row[m])
        }
        within = {m: loss for m, loss in losses.items() if loss <= threshold}
        assert chosen == (min(within, key=lambda m: within[m]) if within else full)


def test_paper_prefers_the_sparser_mode_at_equal_error_and_the_first_of_equals() -> None:
    even = np.full((1, 3), 0.1)
    assert _C.select_paper(even, np.array([0.0, 0.5, 0.9]), 0.5, 1.0, 0).tolist() == [2]
    assert _C.select_paper(even, np.array([0.0, 0.5, 0.5]), 0.5, 1.0, 0).tolist() == [1]
    assert _C.select_paper(even * 0, np.array([0.0, 0.5, 0.9]), 0.0, -1.0, 0).tolist() == [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mse": np.zeros((0, 2))}, "there are 0 decisions"),
        ({"mse": np.zeros((1, 0)), "sparsity": np.zeros(0)}, "there are 0 modes"),
        ({"mse": np.full((1, 2), -1.0)}, r"mse\[0, 0\] is -1"),
        ({"sparsity": np.array([0, 2.0])}, r"sparsity\[1\] is 2, expected 0..1"),
        ({"sparsity": np.array([0, np.nan])}, r"sparsity\[1\] is"),
        ({"sparsity": np.zeros(3)}, r"sparsity.shape\[0\] is 3, expected 2"),
        ({"lambda_": math.nan}, "lambda is"),
        ({"epsilon": math.nan}, "epsilon is not a number"),
        ({"full": 2}, "full is 2, expected 0..1"),
        ({"full": -1}, "full is -1, expected 0..1"),
    ],
)
def test_paper_refusals(change: dict[str, Any], words: str) -> None:
    call: dict[str, Any] = {
        "mse": np.zeros((1, 2)),
        "sparsity": np.zeros(2),
        "lambda_": 0.5,
        "epsilon": 1.0,
        "full": 0,
    }
    with pytest.raises(ValueError, match=f"select_paper: .*{words}"):
        _C.select_paper(**call | change)
