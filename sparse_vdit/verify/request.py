"""What is asked of a plan, and the plan: from errors, constants of a machine and the stock step, without a model.

`Request` holds the dials that people turn; `search.select` does the choosing. Next: `why.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparse_vdit.plan import SparsePlan
from sparse_vdit.search import HeadErrors
from sparse_vdit.search.candidates import PENALTY, Candidates
from sparse_vdit.search.cost import CostModel, StepEstimate
from sparse_vdit.search.decisions import joined
from sparse_vdit.search.hardware import Machine
from sparse_vdit.search.part import asked_of
from sparse_vdit.search.select import select

from .stock import Stock

MAX_ERROR = 0.02  # asked for where no dial is given
PAPER_DENSITY = 0.25  # of the one width per mode of the paper's rule

Errors = Mapping[str, HeadErrors]
Costs = Mapping[str, CostModel]


@dataclass(frozen=True)
class Request:
    """The dials: one of speedup, step_ms, max_error, or target_psnr (`search.target`), and how to choose.

    Args:
        objective: "budget" or "paper".
        speedup: dense step over the plan's.
        step_ms: a whole step.
        max_error: weighted mean of relative errors.
        target_psnr: dB, by real generations.
        remainder, weights, kinds, among, dense_above, max_layer_error, penalty, threshold: as in `search.select`.
        bins: edges of noise level, some of the recorded ones; None: as recorded.
        mode_density: of the paper's modes, one width each, where `among` does not name them.
    """

    objective: str = "budget"
    speedup: float | None = None
    step_ms: float | None = None
    max_error: float | None = None
    target_psnr: float | None = None
    remainder: str = "fitted"
    weights: str | None = None
    kinds: tuple[str, ...] | None = None
    dense_above: float | None = None
    max_layer_error: float | None = None
    penalty: float = PENALTY
    threshold: float | None = None
    bins: tuple[float, ...] | None = None
    mode_density: float = PAPER_DENSITY
    among: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        paper = self.objective == "paper"
        idle = {"threshold": not paper, "max_layer_error": paper, "target_psnr": paper, "max_error": paper}
        for name, is_idle in idle.items():
            if is_idle and getattr(self, name) is not None:
                raise ValueError(
                    f"plan: {name} is {getattr(self, name):g} with the {self.objective} rule, expected the other rule"
                )

    @property
    def has_dial(self) -> bool:
        """Whether anything is asked for besides the objective."""
        dials = (self.speedup, self.step_ms, self.max_error, self.target_psnr)
        return any(dial is not None for dial in dials)

    def check(self, candidates: Candidates, bins: tuple[float, ...], stock: Stock | None = None) -> None:
        """Refuses before anything is measured what can only fail after it.

        Args:
            candidates: that will be measured.
            bins: edges of noise level that will be recorded.
            stock: the dense step, if it is known.

        Raises:
            ValueError: one sentence.
        """
        if self.kinds is not None:
            asked_of(candidates, None, list(self.kinds))
        strange = [edge for edge in self.bins or () if edge not in bins]
        if strange:
            raise ValueError(
                f"plan: bins holds {strange[0]:g}, expected edges among {', '.join(f'{edge:g}' for edge in bins)}"
            )
        if stock is None:
            return
        if self.speedup is not None:
            StepEstimate(stock.rest_ms, stock.attention_ms, stock.attention_ms).budget_ms(self.speedup)
        if self.step_ms is not None and self.step_ms <= stock.rest_ms:
            raise ValueError(
                f"plan: step_ms is {self.step_ms:g}, expected {stock.rest_ms:.4g} (a step without any attention) to "
                f"{stock.step_ms:.4g}"
            )

    def binned(self, errors: Errors) -> dict[str, HeadErrors]:
        """The recording in the bins asked for."""
        bins = self.bins
        return dict(errors) if bins is None else {name: joined(part, bins) for name, part in errors.items()}

    def options(self, stock: Stock | None) -> dict[str, Any]:
        """Arguments of `search.select`, dials apart."""
        found: dict[str, Any] = {
            "objective": self.objective,
            "dense_above": self.dense_above,
            "weights": self.weights,
            "kinds": self.kinds,
            "among": self.among,
        }
        if stock is not None:
            found |= {"levels": stock.levels, "rest_ms": stock.rest_ms, "dense_ms": stock.attention_ms}
        if self.objective == "paper":
            modes = {"mode_density": self.mode_density} if self.among is None else {}
            return found | {"penalty": self.penalty} | modes
        return found | {"remainder": self.remainder, "max_layer_error": self.max_layer_error}

    @property
    def allowed(self) -> dict[str, Any]:
        """Arguments of `front`: what may be chosen at all."""
        return {"kinds": self.kinds, "among": self.among}

    @property
    def rule(self) -> dict[str, Any]:
        """Arguments of `search.select` that make another plan under the same rule, dials and weights apart."""
        found = {"objective": self.objective, "dense_above": self.dense_above, **self.allowed}
        if self.objective == "paper":
            return found | {"penalty": self.penalty}
        return found | {"max_layer_error": self.max_layer_error}

    def choose(self, errors: Errors, cost: Costs, stock: Stock | None = None) -> SparsePlan:
        """The plan; without a dial that of `MAX_ERROR`, or of the paper's own threshold.

        Args:
            errors: by transformer.
            cost: prices by transformer (`costs`).
            stock: the dense step; needed for speedup and step_ms.

        Raises:
            ValueError: what is asked for cannot be reached (naming the range), or needs a pipeline (target_psnr).
        """
        if self.target_psnr is not None:
            raise ValueError("plan: target_psnr is given, expected a model too: it takes real generations")
        binned = self.binned(errors)
        options = self.options(stock)
        asked = {"speedup": self.speedup, "step_ms": self.step_ms, "max_error": self.max_error}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if self.objective == "paper":
            given = given or {"threshold": self.threshold}
        else:
            given = given or {"max_error": MAX_ERROR}
        return select(binned, cost, **options, **given)


def costs(
    errors: Errors, machine: Machine, *, batch: int = 1, dtype: str = "float32"
) -> dict[str, CostModel]:
    """Prices for every transformer of a recording.

    Raises:
        HardwareError: the machine was not measured for these calls; the sentence names those that it was for.
    """
    found = {}
    for name, part in errors.items():
        geometry, model = part.candidates.geometry, part.model
        hardware = machine.find(dtype, model.head_dim, geometry.block_q, geometry.block_k)
        found[name] = CostModel(hardware, part.candidates, heads=model.heads, batch=batch)
    return found


def request_of(plan: SparsePlan) -> Request:
    """How a plan was asked for, as far as its provenance says; what it does not say is as by default."""
    asked = plan.provenance.get("asked")
    asked = asked if isinstance(asked, dict) else {}
    found = replace(Request(bins=plan.transformers[plan.names[0]].bins), **_restrictions(asked))
    if asked.get("objective") == "paper":
        found = replace(found, objective="paper", remainder="none")
    elif asked.get("remainder") in ("fitted", "zero", "none"):
        found = replace(found, remainder=asked["remainder"])
    weights = plan.provenance.get("weights")
    return replace(found, weights=weights) if weights in ("relative", "mse", "sensitivity") else found


def _restrictions(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan's note says of the options that it had; what is no such note is passed over."""
    found: dict[str, Any] = {}
    for name, kind in (("kinds", str), ("among", int)):
        values = asked.get(name)
        if isinstance(values, (list, tuple)) and all(type(value) is kind for value in values):
            found[name] = tuple(values)
    for name, most in (("dense_above", 1.0), ("max_layer_error", math.inf), ("mode_density", 1.0)):
        if _is_number(asked.get(name)) and asked[name] <= most:
            found[name] = asked[name]
    inner = asked.get("found")
    if isinstance(inner, dict) and _is_number(inner.get("penalty")):
        found["penalty"] = inner["penalty"]
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
