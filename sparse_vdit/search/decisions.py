"""All decisions of a pipeline, one per (transformer, bin, layer, head), under the two rules of csrc/search/select.h.

    error of a plan  = sum steps_b w_blh e_blh(option) / sum steps_b w_blh     a weighted mean of relative errors
    time of a plan   = sum steps_b t(option)                                   attention of a step, heads alone

steps_b is the share of a generation's steps that fall into bin b below the warm-up. What a mix of heads really
takes is more than their sum: `play` plays it out. Next: `part.py`, `select.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.geometry import shown
from sparse_vdit.pattern import Pattern
from sparse_vdit.plan.sparse import SparsePlan
from sparse_vdit.plan.transformer import MAX_PATTERNS, TransformerPlan

from .candidates import Candidates
from .cost import CostModel
from .head_errors import HeadErrors
from .part import REMAINDERS, Doubles, Part, check_cost, make_part, steps_of

log = logging.getLogger(__name__)

Options = dict[str, NDArray[np.int32]]  # transformer -> option of each head, [bins, layers, heads]


class TooManyPatterns(ValueError):
    """A plan's distinct patterns are more than a plan may have; mass stripes are nearly all of them."""


class Decisions:
    """What can be chosen, and at what price.

    Args:
        errors: of one transformer, or by name (both experts of Wan 2.2).
        cost: prices of the same candidates; one for all transformers, or by name.
        bins: edges to join recorded bins to, (0, 1) for one; default: as recorded.
        levels: noise level of every step of a generation, by name if there are several transformers; default:
            the recorded steps.
        dense_above: steps with a higher noise level are dense; None: the budget decides.
        weights: "relative", "mse" or "sensitivity" (`HeadErrors.weights`), or float arrays [bins, layers, heads],
            by name if there are several transformers; None: sensitivity where it was recorded, else relative.
        remainder: "fitted" bias per head, "zero": bias 0, "none": plain options only.
        among: numbers of the candidates that may be chosen (full always may); None: all.
        kinds: only candidates of these kinds; a mass stripe is a "vertical_stripe".

    Raises:
        ValueError, TypeError: one sentence.
    """

    def __init__(
        self,
        errors: HeadErrors | Mapping[str, HeadErrors],
        cost: CostModel | Mapping[str, CostModel],
        *,
        bins: Sequence[float] | None = None,
        levels: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
        dense_above: float | None = None,
        weights: Any = None,
        remainder: str = "fitted",
        among: Iterable[int] | None = None,
        kinds: Iterable[str] | None = None,
    ) -> None:
        found = dict(errors) if isinstance(errors, Mapping) else {"transformer": errors}
        for part in found.values():
            if not isinstance(part, HeadErrors):
                raise TypeError(
                    f"select: errors is {type(part).__name__}, expected HeadErrors, or some by name"
                )
        if bins is not None:
            found = {name: joined(part, bins) for name, part in found.items()}
        if not found:
            raise ValueError("select: errors is empty, expected those of one transformer or more")
        if remainder not in REMAINDERS:
            raise ValueError(
                f"select: remainder is {shown(remainder)}, expected one of {', '.join(REMAINDERS)}"
            )
        if dense_above is not None and not 0 <= dense_above <= 1:
            raise ValueError(f"select: dense_above is {dense_above}, expected a number in 0..1")
        self.dense_above = dense_above
        steps = {name: steps_of(levels, name, part, len(found)) for name, part in found.items()}
        listed = None if among is None else list(among), None if kinds is None else list(kinds)
        made = {
            name: make_part(
                part,
                check_cost(cost, name, part),
                steps[name],
                sum(map(len, steps.values())),
                dense_above=dense_above,
                weights=_by_name(weights, name, list(found)),
                remainder=remainder,
                among=listed[0],
                kinds=listed[1],
            )
            for name, part in found.items()
        }
        self.parts = _normalised(made)

    # ---- rules ----

    def by_budget(
        self, budget: float, objective: str = "time", max_layer_error: float | None = None
    ) -> tuple[Options, dict[str, float]]:
        """`_C.select_budget` over all decisions.

        Args:
            budget: ms of a step (heads alone, warm-up left out) for "time", mean error for "error".
            objective: which of the two the budget is.
            max_layer_error: most mean error of a layer over its bins and heads.

        Returns:
            The options; and error, time_ms, multiplier and bound of csrc/search/select.h.
        """
        parts = list(self.parts.values())
        widest = max(part.table.shape[-1] for part in parts)
        layers, caps = self._caps(max_layer_error)
        found = _C.select_budget(
            np.concatenate([_padded(part.table.reshape(part.cells, -1), widest, np.nan) for part in parts]),
            np.concatenate([_padded(part.prices[None], widest, 0.0) for part in parts]),
            np.repeat(np.arange(len(parts), dtype=np.int32), [part.cells for part in parts]),
            np.concatenate([part.weights.ravel() for part in parts]),
            np.concatenate([part.cell_steps.ravel() for part in parts]),
            float(budget),
            objective,
            layers,
            caps,
        )
        rows = np.split(found.pop("choice"), np.cumsum([part.cells for part in parts])[:-1])
        made = zip(self.parts.items(), rows, strict=True)
        return {name: row.reshape(part.errors.shape) for (name, part), row in made}, found

    def _caps(self, most: float | None) -> tuple[NDArray[np.int32] | None, Doubles | None]:
        if most is None:
            return None, None
        if not most >= 0:
            raise ValueError(f"select: max_layer_error is {most}, expected a number from 0 on")
        layers, caps, first = [], [], 0
        for part in self.parts.values():
            count = part.errors.model.layers
            numbers = np.arange(first, first + count, dtype=np.int32)
            layers.append(np.broadcast_to(numbers[None, :, None], part.errors.shape).ravel())
            caps.append(most * (part.weights * part.cell_steps).sum(axis=(0, 2)))
            first += count
        return np.concatenate(layers), np.concatenate(caps)

    def by_paper(self, penalty: float, threshold: float) -> Options:
        """`_C.select_paper` on the mean square errors of the candidates asked for, plain.

        Then a head whose mode is no cheaper than full is full.
        """
        found = {}
        for name, part in self.parts.items():
            mse = np.where(part.asked, part.errors.mean_square(), np.nan)
            choice = _C.select_paper(
                np.ascontiguousarray(mse.reshape(part.cells, -1), dtype=np.float64),
                sparsity(part.errors.candidates),
                float(penalty),
                float(threshold),
                part.errors.candidates.full,
            )
            options = (2 * choice).astype(np.int32).reshape(part.errors.shape)
            is_cheaper = part.prices[options] < part.prices[part.full]
            found[name] = np.where(is_cheaper, options, np.int32(part.full))
        return found

    def paper_losses(self, penalty: float) -> Doubles:
        """The least L_i (Eq. 2) of every decision, rising: the thresholds at which a plan changes."""
        found = []
        for part in self.parts.values():
            candidates = part.errors.candidates
            losses = part.errors.mean_square() + penalty * (1 - sparsity(candidates))
            losses = np.where(part.asked & ~np.isnan(losses), losses, np.inf)
            losses[..., candidates.full] = np.inf
            found.append(losses.min(axis=-1).ravel())
        listed = np.sort(np.concatenate(found))
        return np.asarray(listed[np.isfinite(listed)])

    def by_one(self, option: int) -> Options:
        """The same option for every head."""
        return {name: np.full(part.errors.shape, option, np.int32) for name, part in self.parts.items()}

    # ---- what options come to ----

    def mean_error(self, options: Options) -> float:
        """The weighted mean of relative errors; dense steps count with 0. NaN if an option is not allowed."""
        found = 0.0
        for name, part in self.parts.items():
            errors = np.take_along_axis(part.table, options[name][..., None], axis=-1)[..., 0]
            found += float((errors * part.weights * part.cell_steps).sum())
        return found

    def play(
        self, options: Options, dense_ms: float | None = None, *, guard: bool = False
    ) -> tuple[Options, float]:
        """Attention of a step, mean over the pipeline's steps, each layer's schedule played out.

        Args:
            options: of all heads.
            dense_ms: attention of a dense step as measured; layers whose heads are all full take it.
            guard: makes a layer full that would not be faster than a dense one.

        Returns:
            The options, and milliseconds.
        """
        made, total = {name: chosen.copy() for name, chosen in options.items()}, 0.0
        for name, part in self.parts.items():
            dense = part.dense_layer_ms(dense_ms)
            total += part.dense_steps * part.errors.model.layers * dense
            used = part.steps > 0
            rows = made[name][used]  # [bins with steps, layers, heads]
            is_full = (rows == part.full).all(axis=-1)
            found = np.full(is_full.shape, dense)
            found[~is_full] = part.layers_ms(rows[~is_full])
            if guard:
                rows[found >= dense] = part.full
                found = np.minimum(found, dense)
                made[name][used] = rows
            total += float((part.steps[used][:, None] * found).sum())
        return made, total

    def dense_attention_ms(self, dense_ms: float | None = None) -> float:
        """Attention of a dense step: as measured, or as priced."""
        parts = self.parts.values()
        return sum(part.share * part.errors.model.layers * part.dense_layer_ms(dense_ms) for part in parts)

    def warm_up(self, name: str, options: Options) -> float:
        """The noise level above which all is dense: as given, or where every head of all higher bins is full."""
        if self.dense_above is not None:
            return self.dense_above
        part = self.parts[name]
        dense = (options[name] == part.full).all(axis=(1, 2))
        sparse = np.flatnonzero(~dense)
        return part.errors.bins[int(sparse[-1]) + 1 if len(sparse) else 0]

    def plan(self, options: Options, provenance: Mapping[str, Any] | None = None) -> SparsePlan:
        """The plan of chosen options."""
        return SparsePlan({name: self._transformer_plan(name, options) for name in self.parts}, provenance)

    def _transformer_plan(self, name: str, options: Options) -> TransformerPlan:
        part, chosen = self.parts[name], options[name]
        candidates, stripes = part.errors.candidates, part.errors.stripes
        patterns: dict[Pattern, int] = {}
        choice = np.empty(chosen.shape, dtype=np.int32)
        for candidate in np.unique(chosen // 2).tolist():
            cells = chosen // 2 == candidate
            if candidate < len(candidates.patterns):
                choice[cells] = patterns.setdefault(candidates.patterns[candidate], len(patterns))
                continue
            for cell in map(tuple, np.argwhere(cells)):
                pattern = candidates.pattern(candidate, stripes[cell])
                choice[cell] = patterns.setdefault(pattern, len(patterns))
        if len(patterns) > MAX_PATTERNS:
            raise TooManyPatterns(
                f"select: the plan has {len(patterns)} distinct patterns, expected at most {MAX_PATTERNS}: every "
                "mass stripe is one of its own; choose among candidates without them"
            )
        betas = np.take_along_axis(part.betas, chosen[..., None], axis=-1)[..., 0].astype(np.float64)
        above = self.warm_up(name, options)
        model, geometry = part.errors.model, candidates.geometry
        return TransformerPlan(model, geometry, list(patterns), choice, betas, part.errors.bins, above)

    def plan_ms(self, plan: SparsePlan, options: Options, dense_ms: float | None = None) -> float:
        """What `CostModel.plan_ms` says of the plan of these options: mass stripes are priced as they are."""
        made, total = self.play(options, dense_ms)
        for name, part in self.parts.items():
            first_stripe = 2 * len(part.errors.candidates.patterns)
            transformer = plan.for_transformer(name)
            cells = (made[name] >= first_stripe).any(axis=-1) & (part.steps > 0)[:, None]
            if cells.any():
                more = part.plan_layers_ms(transformer, cells) - part.layers_ms(made[name][cells])
                total += float((part.steps[np.nonzero(cells)[0]] * more).sum())
        return total


def sparsity(candidates: Candidates) -> Doubles:
    """S of the paper: the share of token pairs left out, float64 [candidates]."""
    return np.ascontiguousarray((1.0 - candidates.density).clip(0.0, 1.0))


def joined(errors: HeadErrors, bins: Sequence[float]) -> HeadErrors:
    """Wider bins; says how many heads lose their mass stripes, which are other blocks in the joined bins."""
    found = errors.rebinned(bins)
    lost = int((found.stripes < 0).any(axis=-1).sum()) if (errors.stripes >= 0).all() else 0
    if lost:
        heads = found.stripes[..., 0].size
        log.warning(
            "select: joined bins have other mass stripes: %d of %d heads do without them", lost, heads
        )
    return found


def _by_name(weights: Any, name: str, names: Sequence[str]) -> Any:
    if isinstance(weights, Mapping):
        if name not in weights:
            raise ValueError(f"select: weights has no {name}, expected one for each of {', '.join(names)}")
        return weights[name]
    if len(names) > 1 and weights is not None and not isinstance(weights, str):
        raise ValueError(f"select: weights is one array for {', '.join(names)}, expected one by name")
    return weights


def _normalised(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Weights divided by their sum over all steps, warm-up included, so that errors are means."""
    total = 0.0
    for part in parts.values():
        of_bins = part.weights.sum(axis=(1, 2))
        total += float((of_bins * part.steps).sum()) + float(of_bins.mean()) * part.dense_steps
    if total <= 0:
        raise ValueError("select: all weights are 0, expected some that are not")
    return {name: replace(part, weights=part.weights / total) for name, part in parts.items()}


def _padded(rows: NDArray[Any], width: int, value: float) -> NDArray[Any]:
    if rows.shape[1] == width:
        return np.ascontiguousarray(rows)
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=value))
