"""Does a plan carry over to other prompts? What one recording says about a plan chosen on another.

own      mean error of the plan on the prompts it was chosen on
carried  the same plan, biases included, on other prompts
best     what a plan chosen on those other prompts would have there, in the same time
regret   carried / best - 1: what is lost by not knowing the prompt (the paper: nothing)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.pattern import Pattern
from sparse_vdit.plan import SparsePlan, TransformerPlan
from sparse_vdit.search import HeadErrors
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.decisions import Decisions
from sparse_vdit.search.probe import BETAS
from sparse_vdit.search.select import select

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Transfer:
    """How a plan fares on prompts that it was not chosen on.

    Attributes:
        own, carried, best: mean relative errors, as above.
        regret: carried / best - 1.
        same_family: share of the heads (of all bins) that would have the same kind of pattern.
        correlation: of the logarithms of the errors of the chosen options, head by head, own against carried.
        of_heads: (own, carried) errors of every sparse head, float64 [n, 2].
    """

    own: float
    carried: float
    best: float
    same_family: float
    correlation: float
    of_heads: Doubles

    @property
    def regret(self) -> float:
        """What not knowing the prompts costs, as a share of the error."""
        return self.carried / self.best - 1 if self.best > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"error {self.own:.4g} on its own prompts, {self.carried:.4g} on others, where a plan of their own would "
            f"have {self.best:.4g}: {self.regret + 0.0:+.1%}; {self.same_family:.0%} of the heads would keep their kind"
        )


class NoRivalError(ValueError):
    """On the other prompts, the rule of the plan has none that takes as little time."""


def transfer(
    own: Mapping[str, HeadErrors],
    others: Mapping[str, HeadErrors],
    cost: Mapping[str, CostModel],
    plan: SparsePlan,
    **options: Any,
) -> Transfer:
    """Judges a plan by a recording of other prompts.

    Args:
        own: the recording that the plan was chosen on, by transformer.
        others: of other prompts, recorded with `stripes=` of the first.
        cost: prices.
        plan: the plan.
        options: what the plan was selected with, dials apart: levels, dense_ms, remainder, weights, kinds, ...

    Raises:
        NoRivalError: the rule does not reach the plan's time on the other prompts.
    """
    asked = {key: value for key, value in options.items() if key in ("levels", "weights", "remainder")}
    time_ms = planned_ms(Decisions(own, cost, **asked), plan, options.get("dense_ms"))
    try:
        rival = select(others, cost, time_ms=time_ms * (1 + 1e-6), **options)
    except ValueError as error:
        raise NoRivalError(f"transfer: {error}") from None
    pairs = []
    for name, part in plan.transformers.items():
        sparse = chosen_options(own[name], part) != 2 * own[name].candidates.full
        pairs.append(np.stack([errors_of(found[name], part)[sparse] for found in (own, others)], axis=1))
    of_heads = np.concatenate(pairs)
    return Transfer(
        own=mean_error(own, cost, plan, **asked),
        carried=mean_error(others, cost, plan, **asked),
        best=mean_error(others, cost, rival, **asked),
        same_family=_same_kinds(plan, rival),
        correlation=_correlation(of_heads),
        of_heads=of_heads,
    )


def planned_ms(decisions: Decisions, plan: SparsePlan, dense_ms: float | None = None) -> float:
    """Attention of a step under a plan, priced; `dense_ms`: that of a dense step as measured."""
    found = 0.0
    for name, part in decisions.parts.items():
        dense = part.dense_layer_ms(dense_ms)
        found += part.share * part.cost.plan_ms(plan.for_transformer(name), part.levels, dense_layer_ms=dense)
    return found


def mean_error(
    errors: Mapping[str, HeadErrors], cost: Mapping[str, CostModel], plan: SparsePlan, **options: Any
) -> float:
    """The weighted mean of the heads' relative errors under a plan with its own biases; dense steps count with 0."""
    found, steps = 0.0, 0
    for name, part in plan.transformers.items():
        given = dict(options)
        if isinstance(given.get("levels"), Mapping):
            given["levels"] = {name: given["levels"][name]}
        alone = {name: _in_bins_of(errors[name], part)}
        made = Decisions(alone, cost, dense_above=part.dense_above, **given).parts[name]
        of_heads = errors_of(errors[name], part) * made.weights * made.cell_steps
        found += len(made.levels) * float(of_heads.sum())
        steps += len(made.levels)
    return found / steps


def chosen_options(errors: HeadErrors, plan: TransformerPlan) -> NDArray[np.int32]:
    """The number of the option that each head has, int32 [bins, layers, heads].

    Args:
        errors: a recording whose candidates the plan was chosen from; in the bins of the plan, or in finer ones.
        plan: of the same transformer.

    Raises:
        ValueError: the plan holds a pattern that is no candidate: `plan: ...`.
    """
    found = _in_bins_of(errors, plan)
    candidates = found.candidates
    number = {pattern: index for index, pattern in enumerate(candidates.patterns)}
    counts = {count: len(candidates.patterns) + i for i, count in enumerate(candidates.mass_stripes)}
    of_plan = [number.get(pattern, _stripe(pattern, counts)) for pattern in plan.patterns]
    for pattern, candidate in zip(plan.patterns, of_plan, strict=True):
        if candidate is None:
            raise ValueError(
                f"plan: it holds {pattern.name}, expected one of the {candidates.count} recorded candidates"
            )
    table = np.array([candidate for candidate in of_plan if candidate is not None], dtype=np.int32)
    return np.asarray(2 * table[plan.choice] + ~np.isnan(plan.betas), dtype=np.int32)


def errors_of(errors: HeadErrors, plan: TransformerPlan) -> Doubles:
    """The relative squared error of each head under a plan, its own biases included, [bins, layers, heads].

    Args:
        errors, plan: as in `chosen_options`.
    """
    found, options = _in_bins_of(errors, plan), chosen_options(errors, plan)
    candidate = (options // 2)[..., None]
    plain = np.take_along_axis(found.plain, candidate, axis=-1)[..., 0].astype(np.float64)
    curve = np.take_along_axis(found.curve, candidate[..., None], axis=-2)[..., 0, :].astype(np.float64)
    with_bias = _at_bias(curve, np.nan_to_num(plan.betas))
    squares = np.where(options % 2 == 1, with_bias, plain)
    squares[options == 2 * found.candidates.full] = 0.0
    energy = found.energy.astype(np.float64)
    return np.asarray(np.divide(squares, energy, out=np.zeros_like(squares), where=energy > 0))


def _at_bias(curve: Doubles, betas: Doubles) -> Doubles:
    """The curve [..., K] over `BETAS` at a bias [...]: the cubic through the four nodes around it."""
    first = np.clip(np.searchsorted(BETAS, betas, side="right") - 2, 0, len(BETAS) - 4)
    nodes = [BETAS[first + i] for i in range(4)]
    found = np.zeros(betas.shape)
    for i in range(4):
        weight = np.take_along_axis(curve, (first + i)[..., None], axis=-1)[..., 0]
        for j in range(4):
            if j != i:
                weight = weight * (betas - nodes[j]) / (nodes[i] - nodes[j])
        found += weight
    return np.asarray(np.maximum(found, 0.0))


def _stripe(pattern: Pattern, counts: Mapping[int, int]) -> int | None:
    """The mass stripe with as many blocks, for a stripe that is no listed candidate."""
    if pattern.kind != "vertical_stripe" or pattern.order.kind != "frame_major":
        return None
    return counts.get(len(pattern.key_blocks or ()))


def _in_bins_of(errors: HeadErrors, plan: TransformerPlan) -> HeadErrors:
    difference = errors.model.difference(plan.model)
    if difference:
        raise ValueError(f"plan: {difference}: it is of another model")
    if errors.candidates.geometry != plan.geometry:
        raise ValueError(f"plan: geometry is {plan.geometry}, expected {errors.candidates.geometry}")
    return errors if errors.bins == plan.bins else errors.rebinned(plan.bins)


def _same_kinds(plan: SparsePlan, other: SparsePlan) -> float:
    same = []
    for name, part in plan.transformers.items():
        rival = other.for_transformer(name)
        if rival.shape == part.shape:
            same.append(np.array(part.kinds()) == np.array(rival.kinds()))
    return float(np.mean(np.concatenate([found.ravel() for found in same]))) if same else 0.0


def _correlation(pairs: Doubles) -> float:
    positive = pairs[(pairs > 0).all(axis=1)]
    if len(positive) < 3 or (np.ptp(positive, axis=0) == 0).any():
        return 1.0 if len(pairs) and np.allclose(pairs[:, 0], pairs[:, 1]) else 0.0
    return float(np.corrcoef(np.log(positive).T)[0, 1])
