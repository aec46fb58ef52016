"""Which family each head is of by output error alone: what a model's heads are like, whatever a plan gave them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from .head_errors import HeadErrors

DENSITY = 0.25  # of the sparse patterns that are compared, at most
FULL_ABOVE = 0.1  # relative squared error: with the best sparse pattern still this wrong
SKIP_BELOW = 0.01  # of the mean head's weight: nobody feels it


def families_by_error(errors: HeadErrors, density: float = DENSITY) -> dict[str, int]:
    """Counts heads by the family of the pattern of least error, mean over the bins, each with its best remainder.

    Args:
        errors: of one transformer.
        density: most of a pattern.

    Returns:
        Family -> heads, most frequent first: a `Pattern.family`, "full" where the least error is above `FULL_ABOVE`,
        "skippable" where the head's weight (sensitivity where it was recorded) is below `SKIP_BELOW` of the mean.
    """
    table = errors.options()[0].astype(np.float64).mean(axis=0)  # [layers, heads, options]
    names, allowed = _families(errors, density)
    least = np.where(allowed, table, np.inf)
    best = np.nanargmin(np.where(np.isnan(least), np.inf, least), axis=-1)
    weight = errors.weights(errors.default_weights).mean(axis=0)
    found: Counter[str] = Counter()
    for cell in np.ndindex(best.shape):
        if weight[cell] < SKIP_BELOW:
            found["skippable"] += 1
        elif least[cell][best[cell]] > FULL_ABOVE:
            found["full"] += 1
        else:
            found[names[best[cell]]] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _families(errors: HeadErrors, density: float) -> tuple[list[str], NDArray[np.bool_]]:
    """Of every option its family, and whether it takes part."""
    candidates = errors.candidates
    kinds = [pattern.family for pattern in candidates.patterns]
    kinds += ["vertical_stripe"] * len(candidates.mass_stripes)
    sparse = np.asarray(candidates.takes_remainder) & (np.asarray(candidates.density) <= density)
    return list(np.repeat(kinds, 2)), np.repeat(sparse, 2)
