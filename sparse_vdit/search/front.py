"""The options of one head on their front of time and error: what `explain --why` and the report show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cost import CostModel
from .head_errors import HeadErrors
from .part import asked_of, check_cost, options_of, weights_of


@dataclass(frozen=True)
class Option:
    """One option of one head, for pictures and for `explain --why`.

    Attributes:
        number: 2 * candidate + (1 with remainder).
        name: of the pattern.
        beta: bias of the remainder, None without.
        density: of the pattern.
        time_ms: of the head in one call.
        error: relative squared error; NaN: not allowed.
        is_worthwhile: allowed, and cheaper than full (or full itself): the break-even guard.
        is_on_hull: a budget may choose it.
        price: on the hull, what the step to its next option is worth: mean error of the plan per ms; 0 at its end.
    """

    number: int
    name: str
    beta: float | None
    density: float
    time_ms: float
    error: float
    is_worthwhile: bool
    is_on_hull: bool
    price: float

    def __str__(self) -> str:
        return self.name if self.beta is None else f"{self.name} with remainder {self.beta:g}"


def front(
    errors: HeadErrors,
    cost: CostModel,
    bin_: int,
    layer: int,
    head: int,
    *,
    weights: Any = None,
    remainder: str = "fitted",
    among: Iterable[int] | None = None,
    kinds: Iterable[str] | None = None,
) -> list[Option]:
    """All options of one head by rising time, with the lower convex hull of time and error.

    A plan whose price of time is p (provenance `asked.found.price`) chooses the first option of the hull whose
    price is not above p: a slower one would lower the error by less than its time is worth elsewhere.

    Args:
        errors, cost: of one transformer.
        bin_, layer, head: which.
        weights, remainder, among, kinds: as in `Decisions`; what may not be chosen has an error of NaN.

    Raises:
        IndexError: `select: head is 9, expected 0..7`.
    """
    for name, value, count in zip(("bin", "layer", "head"), (bin_, layer, head), errors.shape, strict=True):
        if not 0 <= value < count:
            raise IndexError(f"select: {name} is {value}, expected 0..{count - 1}")
    check_cost(cost, "transformer", errors)
    found, betas = (array.ravel() for array in options_of(_one_head(errors, bin_, layer, head), remainder))
    candidates, prices = errors.candidates, cost.option_ms()
    full = 2 * candidates.full
    listed = None if among is None else list(among), None if kinds is None else list(kinds)
    found[~np.repeat(asked_of(candidates, *listed), 2)] = np.nan
    found[full] = 0.0
    worth = (prices < prices[full]) & ~np.isnan(found)
    worth[full] = True
    hull = lower_hull(prices, np.where(worth, found, np.nan).astype(np.float64))
    weight = weights_of(errors, weights)[1]
    share = float(weight[bin_, layer, head] / weight[bin_].sum())
    steps = {
        number: share * float(found[number] - found[after]) / float(prices[after] - prices[number])
        for number, after in itertools.pairwise(hull)
    }
    return [
        Option(
            number=number,
            name=candidates.name(number // 2),
            beta=None if math.isnan(betas[number]) else round(float(betas[number]), 3),
            density=float(candidates.density[number // 2]),
            time_ms=float(prices[number]),
            error=float(found[number]),
            is_worthwhile=bool(worth[number]),
            is_on_hull=number in hull,
            price=steps.get(number, 0.0),
        )
        for number in np.lexsort((np.arange(len(prices)), prices)).tolist()
        if number % 2 == 0 or candidates.takes_remainder[number // 2]
    ]


def _one_head(errors: HeadErrors, bin_: int, layer: int, head: int) -> HeadErrors:
    """The same recording of one head alone."""
    arrays = {
        name: array[bin_ : bin_ + 1] if array.ndim == 1 else array[bin_ : bin_ + 1, layer : layer + 1]
        for name, array in errors.arrays().items()
    }
    cut: dict[str, Any] = {
        name: array[:, :, head : head + 1] if array.ndim > 2 else array for name, array in arrays.items()
    }
    return replace(errors, model=replace(errors.model, layers=1, heads=1), bins=(0.0, 1.0), **cut)


def why(options: Sequence[Option], chosen: int, price: float | None = None) -> str:
    """One paragraph: what a head uses, what it gives up against full, and why the budget stopped there.

    Args:
        options: of `front`.
        chosen: number of the option that the plan uses.
        price: of the plan (provenance `asked.found.price`), if it was chosen by a budget.
    """
    known = {option.number: option for option in options}
    if chosen not in known:
        raise ValueError(
            f"select: option {chosen} is not on the list, expected one of {sorted(known)[:4]}, ..."
        )
    it, full = known[chosen], next(option for option in options if option.name == "full")
    said = f"{it}: {it.time_ms:.3g} ms (full: {full.time_ms:.3g} ms) at an error of {it.error:.3g}."
    if not it.is_on_hull:
        return f"{said} Other options are better at a mix of such times: it was not chosen by a budget."
    after = next((option for option in options if option.is_on_hull and option.time_ms > it.time_ms), None)
    if after is None:
        return f"{said} Nothing has a smaller error."
    said += f" {after} would take {after.time_ms - it.time_ms:.3g} ms more for an error of {after.error:.3g}"
    if price is None:
        return said + "."
    verdict = "less than" if it.price <= price else "more than (but it did not fit into what was left of)"
    return (
        said
        + f", worth {it.price:.3g} of the plan's mean error per ms: {verdict} the budget's price {price:.3g}."
    )


def lower_hull(times: NDArray[np.float64], errors: NDArray[np.float64]) -> list[int]:
    """Numbers on the lower convex hull of (time, error), errors falling; NaN takes no part."""
    hull: list[int] = []
    for number in np.lexsort((np.arange(len(times)), errors, times)).tolist():
        if math.isnan(errors[number]) or (hull and errors[number] >= errors[hull[-1]]):
            continue
        while hull and _is_above(hull, number, times, errors):
            hull.pop()
        hull.append(number)
    return hull


def _is_above(
    hull: Sequence[int], number: int, times: NDArray[np.float64], errors: NDArray[np.float64]
) -> bool:
    """Whether the last of the hull lies above the line from the one before it to `number`."""
    last = hull[-1]
    if times[last] == times[number]:
        return True
    if len(hull) == 1:
        return False
    before = hull[-2]
    to_last = (errors[before] - errors[last]) * (times[number] - times[last])
    return bool(to_last < (errors[last] - errors[number]) * (times[last] - times[before]))
