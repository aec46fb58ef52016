"""Controls at the same density: the best uniform pattern, the plan permuted among heads, random block masks.

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

from .head_errors import HeadErrors
from .part import weights_of

SLACK = 1.05  # a uniform pattern may be so much denser than asked: a coarse ladder shall not handicap it


def uniform_at_density(
    errors: HeadErrors,
    density: float,
    *,
    weights: Any = None,
    dense_above: float = 1.0,
    provenance: Mapping[str, Any] | None = None,
) -> SparsePlan:
    """The one pattern of least error at (up to 5 % above) a density; a head has its remainder where that is better.

    Args:
        errors: of all candidates; skip and mass stripes, which differ by head, take no part.
        density: the ceiling.
        weights: as in `Decisions`.
        dense_above: steps with a higher noise level are dense.
        provenance: more to note down.

    Raises:
        ValueError: no pattern is sparse enough.
    """
    if not math.isfinite(density):
        raise ValueError(f"controls: density is {density}, expected a finite number")
    candidates = errors.candidates
    allowed = [
        number
        for number, pattern in enumerate(candidates.patterns)
        if pattern.kind != "skip" and candidates.density[number] <= density * SLACK + 1e-9
    ]
    if not allowed:
        raise ValueError(
            f"controls: no candidate but skip has a density of at most {density:.4f}, expected one"
        )
    measure, weight = weights_of(errors, weights)
    found, betas = errors.options()
    pairs = found.reshape(*errors.shape, -1, 2)[..., allowed, :]  # plain, with remainder
    least = np.fmin(pairs[..., 0], pairs[..., 1])
    totals = (least.astype(np.float64) * weight[..., None]).sum(axis=(0, 1, 2))
    best = int(np.argmin(np.where(np.isnan(totals), np.inf, totals)))
    fitted = betas.reshape(*errors.shape, -1, 2)[..., allowed[best], 1]
    is_better = pairs[..., best, 1] < pairs[..., best, 0]
    plan = TransformerPlan(
        errors.model,
        candidates.geometry,
        [candidates.patterns[allowed[best]]],
        np.zeros(errors.shape, dtype=np.int32),
        np.where(is_better, fitted, np.nan).astype(np.float64),
        errors.bins,
        dense_above,
    )
    note = {
        "made_by": "search.uniform_at_density",
        "density_asked": float(density),
        "pattern": candidates.name(allowed[best]),
        "weights": measure,
    }
    return SparsePlan(plan, note | dict(provenance or {}))


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
