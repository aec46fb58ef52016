"""Controls at the same density: the best uniform pattern (some heads the next denser one), the plan permuted among
heads, random block masks.

A comparison that cannot tell the chosen plan from these does not measure quality. The best uniform pattern in a
*time* is `select.uniform`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.pattern import Geometry
from sparse_vdit.plan.layer import LayerPlan
from sparse_vdit.plan.sparse import SparsePlan
from sparse_vdit.plan.transformer import TransformerPlan

from .candidates import Candidates
from .choose import plan_of
from .head_errors import HeadErrors
from .part import weights_of

GOLDEN = 0.6180339887498949  # multiples of it modulo 1 spread evenly, however many there are


def uniform_at_density(
    errors: HeadErrors,
    density: float,
    *,
    weights: Any = None,
    dense_above: float = 1.0,
    provenance: Mapping[str, Any] | None = None,
) -> SparsePlan:
    """The one pattern of least error for all heads at a density; a head has its remainder where that is better.

    No pattern is exactly so dense: as many heads, evenly spread, take the next better denser pattern as the density
    allows.

    Args:
        errors: of all candidates; skip and mass stripes, which differ by head, take no part.
        density: of the plan, met to one head.
        weights: as in `Decisions`.
        dense_above: steps with a higher noise level are dense.
        provenance: more to note down.

    Raises:
        ValueError: no pattern is sparse enough.
    """
    if not math.isfinite(density):
        raise ValueError(f"controls: density is {density}, expected a finite number")
    candidates = errors.candidates
    measure, weight = weights_of(errors, weights)
    pairs = errors.options()[0].reshape(*errors.shape, -1, 2)[..., : len(candidates.patterns), :]
    least = np.fmin(pairs[..., 0], pairs[..., 1]).astype(np.float64)  # plain, with remainder
    front = _front(candidates, (least * weight[..., None]).sum(axis=(0, 1, 2)))
    low, high, denser = _between(candidates.density[front], density, math.prod(errors.shape))
    choice = np.where(evenly_spread(errors.shape, denser), front[high], front[low])
    plan = plan_of(errors, choice, remainder=True, dense_above=dense_above)
    note = {
        "made_by": "search.uniform_at_density",
        "density_asked": float(density),
        "patterns": [candidates.name(int(number)) for number in np.unique(choice)],
        "heads_of_the_denser": denser,
        "weights": measure,
    }
    return SparsePlan(plan, note | dict(provenance or {}))


def _front(candidates: Candidates, totals: NDArray[np.float64]) -> NDArray[np.intp]:
    """Candidates that are better than every sparser one, by density; skip left out."""
    front: list[int] = []
    for number in np.argsort(candidates.density[: len(totals)], kind="stable"):
        better = not front or totals[number] < totals[front[-1]]
        if candidates.patterns[number].kind != "skip" and np.isfinite(totals[number]) and better:
            front.append(int(number))
    return np.array(front, dtype=np.intp)


def _between(densities: NDArray[np.float64], density: float, heads: int) -> tuple[int, int, int]:
    """Two neighbours of a rising row and how many of the heads take the second one."""
    low = int(np.searchsorted(densities, density + 1e-9, side="right")) - 1
    if low < 0:
        raise ValueError(
            f"controls: no candidate but skip has a density of at most {density:.4f}, expected one"
        )
    high = min(low + 1, len(densities) - 1)
    step = float(densities[high] - densities[low])
    return low, high, 0 if high == low else int((density - densities[low]) / step * heads + 1e-6)


def evenly_spread(shape: tuple[int, ...], count: int) -> NDArray[np.bool_]:
    """bool array of a shape with `count` true cells, as evenly spread as multiples of the golden section."""
    return np.asarray(np.argsort(np.argsort((np.arange(math.prod(shape)) * GOLDEN) % 1.0)) < count).reshape(
        shape
    )


def permute(plan: SparsePlan, seed: int) -> SparsePlan:
    """The choices and betas of a plan moved to other heads of any layer, in all bins alike."""
    made: dict[str, TransformerPlan] = {}
    for name, part in plan.transformers.items():
        bins, layers, heads = part.shape
        moved = np.random.default_rng([seed, len(made)]).permutation(layers * heads)
        choice = part.choice.reshape(bins, -1)[:, moved].reshape(part.shape)
        betas = part.betas.reshape(bins, -1)[:, moved].reshape(part.shape)
        made[name] = TransformerPlan(
            part.model, part.geometry, part.patterns, choice, betas, part.bins, part.dense_above
        )
    return SparsePlan(made, plan.provenance | {"made_by": "permute", "seed": seed, "of": plan.hash})


def random_masks(plan: SparsePlan, seed: int) -> SparsePlan:
    """Random block masks, per query block as many key blocks as the plan visits, with the plan's betas.

    Blocks with other tokens and the own block stay; the order of tokens is the model's own. Never saved.
    """
    part = plan.sole
    rng = np.random.default_rng(seed)
    bins, layers, heads = part.shape
    fixed = kept_blocks(part.geometry)
    made = []
    for bin_ in range(bins):
        row = []
        for layer in range(layers):
            source = part.layer(bin_, layer)
            masks = [_random(rng, source.block_mask(head).sum(axis=1), fixed) for head in range(heads)]
            row.append(LayerPlan.from_block_masks(part.geometry, masks, remainders=source.remainders))
        made.append(row)
    note = {"made_by": "random_masks", "seed": seed, "of": plan.hash}
    return SparsePlan.from_layers(
        part.model, made, bins=part.bins, dense_above=part.dense_above, provenance=note
    )


def kept_blocks(geometry: Geometry) -> NDArray[np.bool_]:
    """bool [nq, nk]: pairs that hold another token or a token with itself, in frame_major order."""
    rows, columns = np.arange(geometry.query_blocks), np.arange(geometry.key_blocks)
    first_q, last_q = rows * geometry.block_q, (rows + 1) * geometry.block_q - 1
    first_k, last_k = columns * geometry.block_k, (columns + 1) * geometry.block_k - 1
    video_end = geometry.prefix + geometry.video_tokens
    end = geometry.tokens - 1
    other_q = (first_q < geometry.prefix) | (np.minimum(last_q, end) >= video_end)
    other_k = (first_k < geometry.prefix) | (np.minimum(last_k, end) >= video_end)
    own = (first_q[:, None] <= last_k) & (first_k <= last_q[:, None])
    return np.asarray(own | other_q[:, None] | other_k)


def _random(
    rng: np.random.Generator, counts: NDArray[np.int64], fixed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """A mask with `counts` blocks in each row, the fixed ones first; a row of a skipped head stays empty."""
    score = rng.random(fixed.shape) + 2.0 * fixed
    rank = np.argsort(np.argsort(-score, axis=1), axis=1)
    return np.asarray(rank < counts[:, None])
