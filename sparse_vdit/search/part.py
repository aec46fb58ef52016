"""`Part`: the decisions of one transformer as arrays, read from errors, prices and what is asked for.

Option 2c is candidate c plain, 2c + 1 the same with its remainder. Next: `decisions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.geometry import shown
from sparse_vdit.pattern import Pattern
from sparse_vdit.plan.layer import VisitPool
from sparse_vdit.plan.transformer import TransformerPlan
from sparse_vdit.presets import spread_blocks

from .candidates import Candidates
from .cost import CostModel
from .head_errors import HeadErrors
from .probe import BETAS

REMAINDERS = ("fitted", "zero", "none")

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """The decisions of one transformer.

    Attributes:
        errors, cost: as given.
        levels: noise levels of its steps.
        steps: float64 [bins], share of the pipeline's steps in each bin; those above the warm-up left out.
        dense_steps: share of the pipeline's steps above the warm-up.
        asked: bool [candidates], what may be chosen, whatever it costs.
        table: float32 [bins, layers, heads, options] relative errors; NaN = not allowed, or no cheaper than full.
        betas: float32, the same shape; NaN = no remainder.
        weights: float64 [bins, layers, heads], how much a head's relative error counts.
        measure: what the weights are.
    """

    errors: HeadErrors
    cost: CostModel
    levels: tuple[float, ...]
    steps: Doubles
    dense_steps: float
    asked: NDArray[np.bool_]
    table: Floats
    betas: Floats
    weights: Doubles
    measure: str
    _played: dict[bytes, float] = field(default_factory=dict, repr=False)

    @property
    def share(self) -> float:
        """Share of the pipeline's steps that this transformer takes."""
        return float(self.steps.sum()) + self.dense_steps

    @property
    def full(self) -> int:
        """The option that is full attention."""
        return 2 * self.errors.candidates.full

    @property
    def cells(self) -> int:
        """Decisions."""
        return math.prod(self.errors.shape)

    @cached_property
    def prices(self) -> Doubles:
        """float64 [options], ms of one head in one call."""
        return self.cost.option_ms()

    @cached_property
    def cell_steps(self) -> Doubles:
        """`steps` for each decision, [bins, layers, heads]."""
        return np.broadcast_to(self.steps[:, None, None], self.errors.shape)

    def layer_ms(self, options: NDArray[np.int32]) -> float:
        """A layer whose heads take these options [heads], its schedule over the workers played out."""
        return float(self.layers_ms(options[None])[0])

    def layers_ms(self, options: NDArray[np.int32]) -> Doubles:
        """The same for several layers, [.., heads] -> float64 [..]; each mix of options is played once ever."""
        mixes = options.reshape(-1, options.shape[-1]).astype(np.int32)
        keys = [mix.tobytes() for mix in mixes]
        new = {key: number for number, key in enumerate(keys) if key not in self._played}
        if new:
            pool, orders = self._pool
            rows, codes = pool.visits
            ints, batch = pool.geometry.to_ints(), self.cost.batch
            asked = mixes[list(new.values())]
            choice, remainder = np.ascontiguousarray(asked // 2), asked % 2 == 1
            found = _C.cost_layers(
                self.cost.hardware.array, ints, rows, codes, choice, remainder, orders, batch
            )
            self._played.update(zip(new, found[0].tolist(), strict=True))
        return np.array([self._played[key] for key in keys]).reshape(options.shape[:-1])

    @cached_property
    def _pool(self) -> tuple[VisitPool, NDArray[np.int32]]:
        """Visits of all candidates, and their orders; a mass stripe stands for as many evenly spread blocks."""
        candidates = self.errors.candidates
        spread = [
            Pattern.vertical_stripe(key_blocks=spread_blocks(candidates.geometry, count))
            for count in candidates.mass_stripes
        ]
        if not spread:
            return candidates.pool, np.ascontiguousarray(candidates.orders, dtype=np.int32)
        flags = candidates.takes_remainder.tolist()
        pool = VisitPool.of_patterns(candidates.geometry, [*candidates.patterns, *spread], flags)
        return pool, np.array(pool.order_rows, dtype=np.int32)

    def plan_layers_ms(self, plan: TransformerPlan, cells: NDArray[np.bool_]) -> Doubles:
        """Layers of a ready plan, those of bool [bins, layers], with the blocks of its own mass stripes."""
        rows, codes = plan.pool.visits
        orders = np.array(plan.pool.order_rows, dtype=np.int32)
        choice, remainder = plan.choice[cells], ~np.isnan(plan.betas[cells])
        ints, batch = plan.geometry.to_ints(), self.cost.batch
        found = _C.cost_layers(self.cost.hardware.array, ints, rows, codes, choice, remainder, orders, batch)
        return found[0]

    def dense_layer_ms(self, dense_ms: float | None) -> float:
        """A layer of full heads: as measured (`dense_ms` of a step), or as priced."""
        return self.cost.dense_layer_ms if dense_ms is None else dense_ms / self.errors.model.layers


def make_part(
    errors: HeadErrors,
    cost: CostModel,
    levels: tuple[float, ...],
    total_steps: int,
    *,
    dense_above: float | None,
    weights: Any,
    remainder: str,
    among: Sequence[int] | None,
    kinds: Sequence[str] | None,
) -> Part:
    """The arrays of one transformer, from the arguments of `Decisions`.

    Args:
        levels: of its own steps.
        total_steps: of the whole pipeline.
    """
    low = [level for level in levels if dense_above is None or level <= dense_above]
    bins = np.minimum(np.searchsorted(errors.bins, low, side="right") - 1, len(errors.bins) - 2)
    table, betas = options_of(errors, remainder)
    prices, full = cost.option_ms(), 2 * errors.candidates.full
    asked = asked_of(errors.candidates, among, kinds)
    table[..., ~(np.repeat(asked, 2) & (prices < prices[full]))] = np.nan  # the break-even guard
    table[..., full] = 0.0  # by definition: what is measured there is rounding
    measure, found = weights_of(errors, weights)
    return Part(
        errors=errors,
        cost=cost,
        levels=levels,
        steps=np.bincount(bins, minlength=len(errors.bins) - 1) / total_steps,
        dense_steps=(len(levels) - len(low)) / total_steps,
        asked=asked,
        table=table,
        betas=betas,
        weights=found,
        measure=measure,
    )


def check_cost(cost: CostModel | Mapping[str, CostModel], name: str, errors: HeadErrors) -> CostModel:
    """The prices of one transformer.

    Raises:
        ValueError: they are of other candidates or another number of heads.
    """
    found = cost.get(name) if isinstance(cost, Mapping) else cost
    if found is None:
        raise ValueError(f"select: there is no cost of {name}, expected one for each transformer")
    if found.candidates != errors.candidates:
        raise ValueError("select: the prices are of other candidates, expected those that were recorded")
    if found.heads != errors.model.heads:
        raise ValueError(f"select: the prices are for {found.heads} heads, expected {errors.model.heads}")
    return found


def steps_of(
    levels: Sequence[float] | Mapping[str, Sequence[float]] | None, name: str, errors: HeadErrors, count: int
) -> tuple[float, ...]:
    """Noise levels of the steps of one of `count` transformers; without `levels`, of the recorded steps."""
    if levels is None:
        return _recorded_levels(errors)
    if not isinstance(levels, Mapping) and count > 1:
        raise ValueError(f"select: levels is one list for {count} transformers, expected one by name")
    given = levels.get(name, ()) if isinstance(levels, Mapping) else levels
    found = tuple(float(level) for level in given)
    if not found or not all(-1e-6 <= level <= 1 + 1e-6 for level in found):
        raise ValueError(
            f"select: the levels of {name} are {list(found)[:4]}, expected numbers in 0..1, one per step"
        )
    return tuple(min(max(level, 0.0), 1.0) for level in found)


def _recorded_levels(errors: HeadErrors) -> tuple[float, ...]:
    """The middle of every bin, as often as the recording measured steps in it."""
    listen = errors.provenance.get("listen")
    if listen is not None:
        raise ValueError(
            f"select: the recording measured at most {listen} steps of a bin, expected levels= (the noise level of "
            "every step)"
        )
    errors.require_calls()
    calls = errors.calls.min(axis=1)
    middles = [(low + high) / 2 for low, high in zip(errors.bins[:-1], errors.bins[1:], strict=True)]
    return tuple(np.repeat(middles, calls // int(np.gcd.reduce(calls))).tolist())


def options_of(errors: HeadErrors, remainder: str) -> tuple[Floats, Floats]:
    """Errors and biases of all options, writable."""
    table, betas = errors.options()
    if remainder == "none":
        table[..., 1::2] = np.nan
    if remainder == "zero":
        node = int(np.argmin(np.abs(BETAS)))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = errors.curve[..., node] / errors.energy[..., None].astype(np.float64)
        found = np.where((errors.energy == 0)[..., None], 0.0, found)
        keep = errors.candidates.takes_remainder
        table[..., 1::2] = np.where(keep & np.isfinite(found), found, np.nan)
        betas[..., 1::2] = np.where(keep, np.float32(BETAS[node]), np.nan)
    return table, betas


def asked_of(
    candidates: Candidates, among: Sequence[int] | None, kinds: Iterable[str] | None
) -> NDArray[np.bool_]:
    """bool [candidates]: those asked for, and full."""
    kept = np.ones(candidates.count, dtype=bool)
    if among is not None:
        strange = [number for number in among if not 0 <= number < candidates.count]
        if strange:
            raise ValueError(f"select: among holds {strange[0]}, expected 0..{candidates.count - 1}")
        kept = np.isin(np.arange(candidates.count), among)
    if kinds is not None:
        listed = [pattern.kind for pattern in candidates.patterns]
        listed += ["vertical_stripe"] * len(candidates.mass_stripes)
        unknown = sorted(set(kinds) - set(listed))
        if unknown:
            raise ValueError(
                f"select: no candidate is of the kind {shown(unknown[0])}, expected kinds out of "
                f"{', '.join(sorted(set(listed)))}"
            )
        kept &= np.isin(listed, list(kinds))
    kept[candidates.full] = True
    return kept


def weights_of(errors: HeadErrors, weights: Any) -> tuple[str, Doubles]:
    """Name and values of the weights that `Decisions` was asked for."""
    if weights is None:
        weights = errors.default_weights
    if isinstance(weights, str):
        return weights, errors.weights(weights)
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != errors.shape:
        raise ValueError(
            f"select: weights has shape {found.shape}, expected {errors.shape} (bins, layers, heads)"
        )
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError(
            "select: weights holds a negative or infinite number, expected finite ones from 0 on"
        )
    return "given", found
