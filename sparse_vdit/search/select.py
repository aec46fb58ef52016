"""From measured errors and prices to a plan, in a second and without the model.

    plan = select(errors, cost, speedup=1.8, rest_ms=timer.rest_ms)       # least error in that time
    plan = select(errors, cost, max_error=0.02)                           # least time at that error
    plan = select(errors, cost, objective="paper", among=paper_modes(errors.candidates, 0.25))

The budget rule is one price for all (bin, layer, head) (csrc/search/select.h); the time of the mix it finds is then
played out layer by layer, and the budget moved until the two agree. What is predicted is noted in the plan's
provenance; errors of heads do not add, so the plan is to be verified end to end. Next: `decisions.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_vdit.geometry import shown
from sparse_vdit.plan.sparse import SparsePlan

from .candidates import PENALTY, THRESHOLD, Candidates, paper_modes
from .cost import CostModel, StepEstimate
from .decisions import Decisions, Options, TooManyPatterns
from .front import Option, front, why
from .head_errors import HeadErrors

__all__ = ["Dial", "Option", "front", "paper_modes", "select", "why"]

log = logging.getLogger(__name__)

OBJECTIVES = ("budget", "paper")
CLOSE = 2e-3  # of the time asked for: near enough
TRIES = 12

Make = Callable[[float], tuple[Options, dict[str, float]]]


@dataclass(frozen=True)
class Dial:
    """What is asked of a plan: one of the four, and what turns it into attention milliseconds of a step.

    Args:
        time_ms: attention of a step.
        step_ms: a whole step.
        speedup: dense step over this plan's.
        max_error: weighted mean of the heads' relative errors.
        rest_ms: a step without attention (`StepTimer.rest_ms`); for step_ms and speedup. 0: attention alone.
        dense_ms: attention of a dense step as measured (`StepTimer.dense_ms`); default as priced.
    """

    time_ms: float | None = None
    step_ms: float | None = None
    speedup: float | None = None
    max_error: float | None = None
    rest_ms: float | None = None
    dense_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in self._given(*vars(self)).items():
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise TypeError(f"select: {name} is {type(value).__name__}, expected a number")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"select: {name} is {value}, expected a finite number from 0 on")
        asked = self._given("time_ms", "step_ms", "speedup", "max_error")
        if len(asked) > 1:
            raise ValueError(f"select: {' and '.join(asked)} are given, expected one of them")
        if self.rest_ms is None and (self.step_ms is not None or self.speedup is not None):
            raise ValueError(
                f"select: {next(iter(asked))} is of a whole step, expected rest_ms too (a step without attention; 0: "
                "attention alone)"
            )

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def asked(self) -> dict[str, float]:
        """What was asked for, as noted down."""
        return self._given("time_ms", "step_ms", "speedup", "max_error")

    def attention_ms(self, decisions: Decisions) -> float | None:
        """The attention time asked for; None: no time was."""
        if self.time_ms is not None:
            return self.time_ms
        dense = decisions.dense_attention_ms(self.dense_ms)
        rest = self.rest_ms or 0.0
        if self.speedup is not None:
            return StepEstimate(rest, dense, dense).budget_ms(self.speedup)
        if self.step_ms is None:
            return None
        if self.step_ms <= rest:
            raise ValueError(f"select: step_ms is {self.step_ms:g}, expected more than {rest:g} (= rest_ms)")
        return self.step_ms - rest


def select(
    errors: HeadErrors | Mapping[str, HeadErrors],
    cost: CostModel | Mapping[str, CostModel],
    *,
    objective: str = "budget",
    time_ms: float | None = None,
    step_ms: float | None = None,
    speedup: float | None = None,
    max_error: float | None = None,
    rest_ms: float | None = None,
    dense_ms: float | None = None,
    max_layer_error: float | None = None,
    bins: Sequence[float] | None = None,
    levels: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    dense_above: float | None = None,
    weights: Any = None,
    remainder: str = "fitted",
    among: Iterable[int] | None = None,
    kinds: Iterable[str] | None = None,
    mode_density: float | None = None,
    penalty: float = PENALTY,
    threshold: float | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> SparsePlan:
    """The plan that an objective chooses.

    Args:
        errors: of one transformer, or by name.
        cost: prices of the same candidates, one for all transformers or by name.
        objective: "budget": least error in a time, or least time at an error; "paper": Eq. 2 and 3 of Sparse-vDiT,
            plain patterns only.
        time_ms, step_ms, speedup, max_error, rest_ms, dense_ms: the dial, exactly one of the first four (`Dial`);
            for "paper" a time, or none with `threshold`.
        max_layer_error: most mean error of any layer (budget).
        bins, levels, dense_above, weights, remainder, among, kinds: as in `Decisions`. Without dense_above the budget
            decides: steps are dense above the level from which all heads came out full.
        mode_density: for "paper", instead of among: its modes of about this density (`paper_modes`).
        penalty, threshold: lambda and epsilon of "paper"; with a time, epsilon is set so that it is met.
        provenance: more to note down.

    Returns:
        The plan; `provenance["predicted"]` holds attention_ms, dense_attention_ms, mean_error and more. If a large
        model's mass stripes made more patterns than a plan may have, it is one without them: a warning and
        `provenance["left_out"]` say so.

    Raises:
        ValueError: the time or error cannot be reached (the sentence names the range), or an argument is bad.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"select: objective is {shown(objective)}, expected one of {', '.join(OBJECTIVES)}")
    dial = Dial(time_ms, step_ms, speedup, max_error, rest_ms, dense_ms)
    plain = "none" if objective == "paper" else remainder
    among = _among(errors, objective, among, mode_density)
    kinds = None if kinds is None else list(kinds)

    def chosen(among: list[int] | None, note: Mapping[str, Any]) -> SparsePlan:
        decisions = Decisions(
            errors, cost, bins=bins, levels=levels, dense_above=dense_above, weights=weights, remainder=plain,
            among=among, kinds=kinds,
        )  # fmt: skip
        if objective == "paper":
            options, found = _by_paper(decisions, dial, penalty, threshold)
        else:
            options, found = _by_budget(decisions, dial, max_layer_error)
        asked = {
            "objective": objective,
            "remainder": plain,
            "max_layer_error": max_layer_error,
            "kinds": kinds,
            "among": None if among is None else [int(number) for number in among],
            "dense_above": None if dense_above is None else float(dense_above),
            "mode_density": mode_density,
        } | dial.asked
        return _noted(decisions, options, dial, asked | {"found": _rounded(found)}, note)

    try:
        return chosen(among, provenance or {})
    except TooManyPatterns as error:
        log.warning("%s: chosen once more among the others", error)
        return chosen(
            _without_mass_stripes(errors, among), {"left_out": "mass stripes"} | dict(provenance or {})
        )


def _among(
    errors: HeadErrors | Mapping[str, HeadErrors],
    objective: str,
    among: Iterable[int] | None,
    mode_density: float | None,
) -> list[int] | None:
    """Numbers of the candidates that may be chosen, as given or of the paper's modes; None: all."""
    if mode_density is None:
        return None if among is None else list(among)
    if objective != "paper" or among is not None:
        raise ValueError(
            f"select: mode_density is {mode_density}, expected it with the objective paper and without among"
        )
    return list(paper_modes(_candidates_of(errors), mode_density))


def _candidates_of(errors: HeadErrors | Mapping[str, HeadErrors]) -> Candidates:
    return (next(iter(errors.values())) if isinstance(errors, Mapping) else errors).candidates


def _without_mass_stripes(
    errors: HeadErrors | Mapping[str, HeadErrors], among: Iterable[int] | None
) -> list[int]:
    patterns = len(_candidates_of(errors).patterns)
    return [number for number in (range(patterns) if among is None else among) if number < patterns]


def _noted(
    decisions: Decisions,
    options: Options,
    dial: Dial,
    asked: Mapping[str, Any],
    provenance: Mapping[str, Any] | None,
) -> SparsePlan:
    plan = decisions.plan(options)
    about = _about(decisions, plan, options, dial)
    note = {"made_by": "search.select", "asked": dict(asked)} | about | dict(provenance or {})
    return SparsePlan(plan.transformers, note)


# ---- the two objectives ----


def _by_budget(decisions: Decisions, dial: Dial, caps: float | None) -> tuple[Options, dict[str, float]]:
    if dial.max_error is not None:
        options, found = decisions.by_budget(dial.max_error, "error", caps)
        price = 1 / found["multiplier"] if found["multiplier"] > 0 else math.inf
        return decisions.play(options, dial.dense_ms, guard=True)[0], {"price": price}
    wanted = dial.attention_ms(decisions)
    if wanted is None:
        raise ValueError("select: no dial is given, expected one of time_ms, step_ms, speedup, max_error")

    def at_budget(budget: float) -> tuple[Options, dict[str, float]]:
        options, found = decisions.by_budget(budget, "time", caps)
        return options, {"price": found["multiplier"], "least_error": found["bound"]}

    fastest = decisions.by_budget(math.inf, "error", caps)[1]["time_ms"]
    slowest = decisions.by_budget(math.inf, "time", caps)[1]["time_ms"]
    return _meet(decisions, dial, wanted, at_budget, (fastest, slowest), guard=True)


def _by_paper(
    decisions: Decisions, dial: Dial, penalty: float, threshold: float | None
) -> tuple[Options, dict[str, float]]:
    if dial.max_error is not None:
        raise ValueError("select: max_error is given with the paper's rule, expected threshold or a time")
    wanted = dial.attention_ms(decisions)
    if wanted is None:
        epsilon = THRESHOLD if threshold is None else threshold
        return decisions.by_paper(penalty, epsilon), {"penalty": penalty, "threshold": epsilon}
    if threshold is not None:
        raise ValueError("select: threshold and a time are given, expected one of them")
    losses = decisions.paper_losses(penalty)

    def at_rank(rank: float) -> tuple[Options, dict[str, float]]:
        sparse_heads = len(losses) - round(rank)
        epsilon = float(losses[sparse_heads - 1]) if sparse_heads else -math.inf
        return decisions.by_paper(penalty, epsilon), {"penalty": penalty, "threshold": epsilon}

    return _meet(decisions, dial, wanted, at_rank, (0.0, float(len(losses))), guard=False)


def _meet(
    decisions: Decisions,
    dial: Dial,
    wanted: float,
    make: Make,
    ends: tuple[float, float],
    *,
    guard: bool,
) -> tuple[Options, dict[str, float]]:
    """The options at the largest knob between the ends whose played-out time is at most `wanted`.

    A mix takes a little more than the sum of its heads (launches, workers that wait), so the knob is found by a
    guarded secant: times rise with it, nearly.
    """

    def played(knob: float) -> tuple[float, tuple[Options, dict[str, float]]]:
        options, about = make(knob)
        options, took = decisions.play(options, dial.dense_ms, guard=guard)
        return took, (options, about)

    low, high = ends
    low_ms, best = played(low)
    if low_ms > wanted * (1 + 1e-9):
        raise ValueError(_unreachable(dial, wanted, low_ms, decisions.dense_attention_ms(dial.dense_ms)))
    high_ms, made = played(high)
    if high_ms <= wanted * (1 + 1e-9):
        return made
    for _ in range(TRIES):
        if wanted - low_ms <= CLOSE * wanted:
            break
        part = (wanted * (1 - CLOSE / 2) - low_ms) / (high_ms - low_ms) if high_ms > low_ms else 0.5
        knob = low + (high - low) * min(max(part, 0.02), 0.98)
        found_ms, made = played(knob)
        if found_ms <= wanted:
            low, low_ms, best = knob, found_ms, made
        else:
            high, high_ms = knob, found_ms
    return best


def _unreachable(dial: Dial, wanted: float, fastest: float, dense: float) -> str:
    said = f"select: the attention time asked for is {wanted:.4g} ms a step, expected at least {fastest:.4g} ms; "
    reach = f"{fastest:.4g} to {dense:.4g} ms are reachable"
    if dial.rest_ms is None:
        return said + reach
    best = StepEstimate(dial.rest_ms, dense, fastest).speedup
    return said + reach + f", speedups of a step from 1 to {best:.3g}"


def _about(decisions: Decisions, plan: SparsePlan, options: Options, dial: Dial) -> dict[str, Any]:
    """Provenance: what was chosen from, and what is expected of it."""
    part = next(iter(decisions.parts.values()))
    attention = decisions.plan_ms(plan, options, dial.dense_ms)
    dense = decisions.dense_attention_ms(dial.dense_ms)
    predicted = {
        "attention_ms": attention,
        "dense_attention_ms": dense,
        "mean_error": decisions.mean_error(options),
    }
    if dial.rest_ms is not None:
        predicted["step_ms"] = attention + dial.rest_ms
        predicted["speedup"] = StepEstimate(dial.rest_ms, dense, attention).speedup
    recorded, hardware = part.errors.provenance, part.cost.hardware
    return {
        "candidates": part.errors.candidates.hash,
        "recorded": {key: recorded[key] for key in ("search", "follow", "settings") if key in recorded}
        | {"rows": part.errors.rows, "seed": part.errors.seed, "samples": len(recorded.get("samples", []))},
        "measure": part.errors.measure,
        "weights": part.measure,
        "hardware": {"engine": hardware.engine, "workers": hardware.workers, "batch": part.cost.batch},
        "predicted": _rounded(predicted),
    }


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Six digits; what is infinite or NaN is left out, JSON has no word for it."""
    return {key: float(f"{value:.6g}") for key, value in numbers.items() if math.isfinite(value)}
