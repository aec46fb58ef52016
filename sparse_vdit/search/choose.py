"""`choose`: to every head the pattern of least measured error, whatever it costs.

    candidates = Candidates(geometry, (Pattern.full(), *svg(geometry, 0.3)))
    errors = record(pipe, prompts, "svg.safetensors", recorder=Recorder(models_of(pipe), candidates), observe=observe)
    plan = choose(errors, svg(geometry, 0.3))

With the two bands of `presets.svg` this is Sparse VideoGen's rule. A budget of time or error: `select.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.pattern import Pattern
from sparse_vdit.plan.sparse import SparsePlan
from sparse_vdit.plan.transformer import TransformerPlan

from .head_errors import HeadErrors


def choose(
    errors: HeadErrors | Mapping[str, HeadErrors],
    patterns: Sequence[Pattern],
    *,
    remainder: bool = False,
    dense_above: float = 1.0,
    provenance: Mapping[str, Any] | None = None,
) -> SparsePlan:
    """The pattern of least relative output error per noise bin, layer and head; the first listed of equal ones.

    Args:
        errors: of one transformer, or by name, as `record` returns them.
        patterns: what is chosen from, without remainders; all were measured. With `full` among them it always wins.
        remainder: a head has its pattern with the fitted remainder where that is better.
        dense_above: steps with a higher noise level are dense.
        provenance: more to note down.

    Raises:
        ValueError: no pattern; one that was not measured; a head without a finite error.
    """
    by_name = dict(errors) if isinstance(errors, Mapping) else {"transformer": errors}
    made = {name: _part(name, found, patterns, remainder, dense_above) for name, found in by_name.items()}
    note = {"made_by": "search.choose", "patterns": [pattern.name for pattern in patterns]}
    return SparsePlan(made, note | dict(provenance or {}))


def _part(
    name: str, errors: HeadErrors, patterns: Sequence[Pattern], remainder: bool, dense_above: float
) -> TransformerPlan:
    columns = np.array(_columns(errors, patterns))
    pairs = errors.options()[0].reshape(*errors.shape, -1, 2)[..., columns, :]  # plain, with remainder
    least = np.fmin(pairs[..., 0], pairs[..., 1]) if remainder else pairs[..., 0]
    if np.isnan(least).all(axis=-1).any():
        bin_, layer, head = (int(n) for n in np.argwhere(np.isnan(least).all(axis=-1))[0])
        raise ValueError(
            f"choose: no pattern has a finite error in {name}, bin {bin_}, layer {layer}, head {head}, expected one"
        )
    best = np.argmin(np.where(np.isnan(least), np.inf, least), axis=-1)
    return plan_of(errors, columns[best], remainder=remainder, dense_above=dense_above)


def plan_of(
    errors: HeadErrors, choice: NDArray[np.intp], *, remainder: bool, dense_above: float
) -> TransformerPlan:
    """The plan that gives every head a candidate, with its fitted remainder where that is better and asked for.

    Args:
        errors: of the candidates.
        choice: numbers of patterns [bins, layers, heads], no mass stripes.
        remainder: whether heads may have one.
        dense_above: steps with a higher noise level are dense.
    """

    def taken(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of options [.., 2 * candidates], those of the choice [.., 2]: plain, with remainder."""
        pairs = values.reshape(*errors.shape, -1, 2)
        return np.take_along_axis(pairs, choice[..., None, None], axis=-2)[..., 0, :]

    found, betas = map(taken, errors.options())
    is_better = remainder & np.isfinite(found[..., 1]) & ~(found[..., 1] >= found[..., 0])
    used, numbers = np.unique(choice, return_inverse=True)
    return TransformerPlan(
        errors.model, errors.candidates.geometry, [errors.candidates.patterns[number] for number in used],
        numbers.reshape(errors.shape).astype(np.int32),
        np.where(is_better, betas[..., 1], np.nan).astype(np.float64), errors.bins, dense_above,
    )  # fmt: skip


def _columns(errors: HeadErrors, patterns: Sequence[Pattern]) -> list[int]:
    """Numbers of the patterns among the candidates."""
    if not patterns:
        raise ValueError("choose: patterns is empty, expected at least one")
    known = errors.candidates.patterns
    for pattern in patterns:
        if pattern not in known:
            raise ValueError(
                f"choose: {pattern.name} was not measured, expected one of the recorded candidates"
            )
    return [known.index(pattern) for pattern in patterns]
