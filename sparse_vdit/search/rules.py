"""Rules of other works, and controls, as plans of a wanted time: what the budget rule has to beat.

    svg            per head the better of two bands of one width, by sampled MSE (Sparse VideoGen)
    sliding_tiles  one window of boxes for all heads (sliding tile attention)
    radial         one radially thinning band of boxes for all heads (radial attention)
    paper          Eq. 2 and 3 of Sparse-vDiT: five modes, one fixed width each
    best_uniform   the one pattern of least error for all heads, e.g. with its fitted remainder
    oracle         the key blocks of most attention mass in a measured map, per query block

All but the last read head errors of `baselines(geometry)`, every rule's own patterns at every width. A rule whose
widths come in steps meets a time between two of them by taking the wider one for some heads, evenly spread. Where
a work leaves something open, the better reading is taken: the shape of a window and the widths of the modes are
those of least measured error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C, presets
from sparse_vdit.pattern import Geometry, Pattern
from sparse_vdit.plan.identity import ModelIdentity
from sparse_vdit.plan.layer import LayerPlan, VisitPool
from sparse_vdit.plan.sparse import SparsePlan
from sparse_vdit.presets import densities, fitted_stripe

from .candidates import PENALTY, Candidates, box
from .controls import evenly_spread, kept_blocks
from .cost import price_layer
from .decisions import Decisions, Options, sparsity
from .hardware import Hardware
from .part import Part

__all__ = [
    "Baselines", "baselines", "best_uniform", "oracle", "oracle_share", "paper", "radial", "sliding_tiles", "svg",
]  # fmt: skip

WIDTHS = 28  # of a family, at most
WIDEST = 0.9  # density of a family's widest pattern
CLOSE = 1e-3  # of the time asked for: near enough


@dataclass(frozen=True)
class Baselines:
    """The patterns of all rules as candidates of one recording, and which of them are whose.

    Attributes:
        candidates: all of them, distinct by what they visit.
        bands: (diagonal, multi_diagonal) of the same half width, rising.
        modes: (diagonal, multi_diagonal, vertical_stripe) of about the same density, rising.
        windows: of sliding tiles.
        radials: of radial attention.
    """

    candidates: Candidates
    bands: tuple[tuple[int, int], ...]
    modes: tuple[tuple[int, int, int], ...]
    windows: tuple[int, ...]
    radials: tuple[int, ...]


def baselines(geometry: Geometry, tile: Sequence[int] | None = None) -> Baselines:
    """Every rule's patterns at every width that is worth it.

    Args:
        geometry: the token layout.
        tile: sides (t, h, w) of a box, default about `block_k` tokens.
    """
    sides = box(geometry) if tile is None else tuple(int(side) for side in tile)
    bands = _bands(geometry)
    stripes = [
        fitted_stripe(geometry, density) for density in densities(geometry, [band[0] for band in bands])
    ]
    windows, radials = _windows(geometry, sides), _radials(geometry, sides)
    listed = [Pattern.skip(), Pattern.full(), *itertools.chain(*bands), *stripes, *windows, *radials]
    same = _representatives(geometry, listed)
    candidates = Candidates(geometry, tuple(dict.fromkeys(same.values())))
    number = {pattern: index for index, pattern in enumerate(candidates.patterns)}

    def numbers(patterns: Iterable[Pattern]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(number[same[pattern]] for pattern in patterns))

    pairs = [(number[same[spatial]], number[same[temporal]]) for spatial, temporal in bands]
    modes = [(*pair, number[same[stripe]]) for pair, stripe in zip(pairs, stripes, strict=True)]
    return Baselines(candidates, tuple(pairs), tuple(modes), numbers(windows), numbers(radials))


def _bands(geometry: Geometry) -> list[tuple[Pattern, Pattern]]:
    """Both bands at rising half widths, whole blocks minus one token (the rule of Sparse VideoGen)."""
    blocks = max(1, -(-geometry.video_tokens // geometry.block_k))
    counts = sorted({0, *np.geomspace(1, blocks, WIDTHS).round().astype(int).tolist()})
    halves = [max(0, count * geometry.block_k - 1) for count in counts]
    made = [(Pattern.diagonal(half_width=half), Pattern.multi_diagonal(half_width=half)) for half in halves]
    found = [densities(geometry, pair) for pair in made]
    narrow = [pair for pair, density in zip(made, found, strict=True) if max(density) <= WIDEST]
    return narrow or made[:1]


def _windows(geometry: Geometry, tile: tuple[int, ...]) -> list[Pattern]:
    counts = _boxes(geometry, tile)
    spaces = range(1, max(counts[1:]) + 1)
    made = [
        presets.sliding_tiles(geometry, tile, (2 * time - 1, 2 * space - 1, 2 * space - 1))[0]
        for time, space in itertools.product(range(1, counts[0] + 1), spaces)
    ]
    return _narrow(geometry, made)


def _radials(geometry: Geometry, tile: tuple[int, ...]) -> list[Pattern]:
    counts = _boxes(geometry, tile)
    widths = np.geomspace(1, counts[1] * counts[2], WIDTHS).round().astype(int)
    return _narrow(geometry, [presets.radial(geometry, tile, int(width))[0] for width in sorted(set(widths))])


def _narrow(geometry: Geometry, patterns: list[Pattern]) -> list[Pattern]:
    found = densities(geometry, patterns)
    return [
        pattern for pattern, density in zip(patterns, found, strict=True) if density <= WIDEST
    ] or patterns[:1]


def _boxes(geometry: Geometry, tile: tuple[int, ...]) -> list[int]:
    axes = (geometry.frames, geometry.height, geometry.width)
    return [-(-axis // side) for axis, side in zip(axes, tile, strict=True)]


def _representatives(geometry: Geometry, patterns: Sequence[Pattern]) -> dict[Pattern, Pattern]:
    """Each pattern -> the first one that visits the same."""
    distinct = list(dict.fromkeys(patterns))
    pool = VisitPool.of_patterns(geometry, distinct, [False] * len(distinct))
    first: dict[tuple[Any, ...], Pattern] = {}
    found = {}
    for number, pattern in enumerate(distinct):
        mask = pool.block_mask(number)
        order = () if mask.all() else pattern.order.to_ints()
        key = (pattern.kind == "skip", tuple(order), np.packbits(mask).tobytes())
        found[pattern] = first.setdefault(key, pattern)
    return found


# ---- the rules ----


def svg(decisions: Decisions, known: Baselines, time_ms: float, dense_ms: float | None = None) -> SparsePlan:
    """Sparse VideoGen: each head takes the spatial or the temporal band, whichever has the smaller sampled MSE.

    There is no price, and no full attention but beyond the widest band; the width is the same for all heads.

    Args:
        decisions: over the errors of `known.candidates`.
        known: which candidates are whose.
        time_ms: attention of a step, mean over the steps, warm-up included.
        dense_ms: attention of a dense step as measured; default as priced.

    Raises:
        ValueError: the time is less than the narrowest pattern takes.
    """

    def rung(spatial: int, temporal: int) -> Options:
        return {
            name: np.where(
                part.errors.plain[..., spatial] <= part.errors.plain[..., temporal], 2 * spatial, 2 * temporal
            ).astype(np.int32)
            for name, part in decisions.parts.items()
        }

    rungs = [rung(*pair) for pair in known.bands]
    return _noted("svg", decisions, _between("svg", decisions, rungs, time_ms, dense_ms), time_ms, dense_ms)


def sliding_tiles(
    decisions: Decisions, known: Baselines, time_ms: float, dense_ms: float | None = None
) -> SparsePlan:
    """One window for all heads, of the shape (time by space) that has the least error. Args: as in `svg`."""
    return _uniform("sliding_tiles", decisions, [2 * n for n in known.windows], time_ms, dense_ms)


def radial(
    decisions: Decisions, known: Baselines, time_ms: float, dense_ms: float | None = None
) -> SparsePlan:
    """One radial mask for all heads. Args: as in `svg`."""
    return _uniform("radial", decisions, [2 * n for n in known.radials], time_ms, dense_ms)


def best_uniform(
    decisions: Decisions, time_ms: float, dense_ms: float | None = None, *, remainder: bool = True
) -> SparsePlan:
    """The one pattern of least error for all heads, each with its own fitted bias; between two, some of both.

    Args:
        decisions: over any candidates; skip and mass stripes, which differ by head, take no part.
        time_ms, dense_ms: as in `svg`.
        remainder: False: without.
    """
    candidates = next(iter(decisions.parts.values())).errors.candidates
    numbers = [n for n, pattern in enumerate(candidates.patterns) if pattern.takes_remainder]
    options = [2 * n + remainder for n in numbers] + [2 * candidates.full]
    return _uniform("best_uniform", decisions, options, time_ms, dense_ms)


def paper(
    decisions: Decisions,
    known: Baselines,
    time_ms: float,
    dense_ms: float | None = None,
    *,
    penalty: float = PENALTY,
    normalised: bool = True,
) -> SparsePlan:
    """Sparse-vDiT: L_i = error_i + lambda (1 - S_i); full if all exceed epsilon, else the mode of least L_i.

    The paper prints neither the widths nor the scale of its MSE. Here the error is the MSE over the mean square of the
    head's output (with plain MSE, lambda = 0.5 makes every quiet head `skip`); for every width, epsilon is set so that
    the time is met, and of all widths the one whose plan has the least mean error is taken.

    Args:
        decisions, known, time_ms, dense_ms: as in `svg`.
        penalty: lambda.
        normalised: False: plain MSE.
    """
    found: list[tuple[float, int, Options]] = []
    least = math.inf
    for number, modes in enumerate(known.modes):
        parts = {name: _Modes(part, modes, penalty, normalised) for name, part in decisions.parts.items()}
        losses = np.sort(np.concatenate([part.least.ravel() for part in parts.values()]))
        met = _by_threshold(decisions, parts, losses, time_ms, dense_ms)
        least = min(least, met[1])
        if met[1] <= time_ms:
            error = float(np.mean([part.mean_error(met[0][name]) for name, part in parts.items()]))
            found.append((error, number, met[0]))
    if not found:
        raise ValueError(_too_short("paper", time_ms, least))
    return _noted("paper", decisions, min(found, key=lambda entry: entry[:2])[2], time_ms, dense_ms)


class _Modes:
    """The paper's losses over full, skip and three modes of one width."""

    def __init__(self, part: Part, modes: Sequence[int], penalty: float, normalised: bool) -> None:
        self.part, self.penalty = part, penalty
        errors, candidates = part.errors, part.errors.candidates
        skip = [n for n, pattern in enumerate(candidates.patterns) if pattern.kind == "skip"]
        mse = errors.mean_square()
        if normalised:
            elements = errors.calls[..., None, None] * float(errors.rows * errors.model.head_dim)
            power = errors.energy[..., None] / elements
            mse = np.divide(mse, power, out=np.zeros_like(mse), where=power > 0)
        self.errors = np.full(mse.shape, np.nan)
        asked = [*modes, *skip, candidates.full]
        self.errors[..., asked] = mse[..., asked]
        self.sparsity = sparsity(candidates)
        sparse = [*modes, *skip]
        self.least = (mse[..., sparse] + penalty * (1 - self.sparsity[sparse])).min(axis=-1)

    def chosen(self, threshold: float) -> NDArray[np.int32]:
        """Eq. 3, and the guard: a mode that is no cheaper than full is full."""
        part = self.part
        choice = _C.select_paper(
            np.ascontiguousarray(self.errors.reshape(part.cells, -1)),
            self.sparsity,
            float(self.penalty),
            float(threshold),
            part.errors.candidates.full,
        )
        options = (2 * choice).astype(np.int32).reshape(part.errors.shape)
        return np.where(part.prices[options] < part.prices[part.full], options, np.int32(part.full))

    def mean_error(self, options: NDArray[np.int32]) -> float:
        """Mean of the chosen modes' errors; full has none."""
        found = np.take_along_axis(self.errors, options[..., None] // 2, axis=-1)[..., 0]
        return float(np.where(options == self.part.full, 0.0, found).mean())


def _by_threshold(
    decisions: Decisions,
    parts: dict[str, _Modes],
    losses: NDArray[np.float64],
    time_ms: float,
    dense_ms: float | None,
) -> tuple[Options, float]:
    """The least epsilon, so the most full heads, whose time is at most `time_ms`; the fastest plan if none is."""

    def at(count: int) -> tuple[Options, float]:
        threshold = float(losses[count - 1]) if count else -math.inf
        options = {name: part.chosen(threshold) for name, part in parts.items()}
        return options, decisions.play(options, dense_ms)[1]

    low, high = 0, len(losses)  # sparse heads
    best = at(high)
    if best[1] > time_ms:
        return best
    while low < high:
        middle = (low + high) // 2
        made = at(middle)
        if made[1] <= time_ms:
            best, high = made, middle
        else:
            low = middle + 1
    return best


# ---- meeting a time ----


def _uniform(
    who: str, decisions: Decisions, options: Sequence[int], time_ms: float, dense_ms: float | None
) -> SparsePlan:
    """One option for all heads: on the front of time and error, between two neighbours."""
    made = [decisions.by_one(option) for option in options]
    errors = [decisions.mean_error(chosen) for chosen in made]
    times = [decisions.play(chosen, dense_ms)[1] for chosen in made]
    front: list[Options] = []
    least = math.inf
    for _, error, number in sorted(zip(times, errors, range(len(made)), strict=True)):
        if error < least:
            front.append(made[number])
            least = error
    return _noted(who, decisions, _between(who, decisions, front, time_ms, dense_ms), time_ms, dense_ms)


def _between(
    who: str, decisions: Decisions, rungs: Sequence[Options], time_ms: float, dense_ms: float | None
) -> Options:
    """The dearest rung that fits into the time, with as many heads of the next one as fit too; the last one is full."""
    full = {name: np.full(part.errors.shape, part.full, np.int32) for name, part in decisions.parts.items()}
    rungs = [*rungs, full]
    times = [decisions.play(rung, dense_ms)[1] for rung in rungs]
    ranked = sorted(range(len(rungs)), key=times.__getitem__)
    fitting = [number for number in ranked if times[number] <= time_ms * (1 + 1e-9)]
    if not fitting:
        raise ValueError(_too_short(who, time_ms, min(times)))
    low = rungs[fitting[-1]]
    if len(fitting) == len(ranked):
        return low
    return _mixed(decisions, low, rungs[ranked[len(fitting)]], time_ms, dense_ms)


def _mixed(
    decisions: Decisions, low: Options, high: Options, time_ms: float, dense_ms: float | None
) -> Options:
    """`high` for as many evenly spread heads as the time allows, `low` for the others."""
    cells = sum(rung.size for rung in low.values())

    def at(count: int) -> Options:
        first, found, spread = 0, {}, evenly_spread((cells,), count)
        for name, rung in low.items():
            taken = spread[first : first + rung.size].reshape(rung.shape)
            found[name] = np.where(taken, high[name], rung).astype(np.int32)
            first += rung.size
        return found

    fits, too_many = 0, cells
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        took = decisions.play(at(middle), dense_ms)[1]
        if took <= time_ms:
            fits = middle
            if time_ms - took <= CLOSE * time_ms:
                break
        else:
            too_many = middle
    return at(fits)


def _too_short(who: str, time_ms: float, least: float) -> str:
    return f"{who}: the attention time asked for is {time_ms:.4g} ms a step, expected at least {least:.4g} ms"


def _noted(
    who: str, decisions: Decisions, options: Options, time_ms: float, dense_ms: float | None
) -> SparsePlan:
    took = decisions.play(options, dense_ms)[1]
    asked = {"time_ms": float(f"{time_ms:.6g}")}
    predicted = {"attention_ms": float(f"{took:.6g}")}
    return decisions.plan(options, {"made_by": f"search.rules.{who}", "asked": asked, "predicted": predicted})


# ---- the oracle ----


def oracle(
    maps: NDArray[Any],
    share: float,
    model: ModelIdentity,
    geometry: Geometry,
    *,
    bins: Sequence[float] = (0.0, 1.0),
    dense_above: float = 1.0,
) -> SparsePlan:
    """Block masks: per query block the key blocks of most attention mass in a measured map; never saved.

    Blocks with other tokens and the own block are kept, as in every pattern.

    Args:
        maps: float [bins, layers, heads, nq, nk], mean attention mass per pair of blocks.
        share: of the key blocks, for each query block.
        model, geometry, bins, dense_above: of the plan.
    """
    wanted = (len(bins) - 1, model.layers, model.heads, geometry.query_blocks, geometry.key_blocks)
    if maps.shape != wanted:
        raise ValueError(f"oracle: the maps have shape {maps.shape}, expected {wanted}")
    if not 0 < share <= 1:
        raise ValueError(f"oracle: share is {share}, expected more than 0 and at most 1")
    top = _top_of(geometry, share)
    made = [
        [LayerPlan.from_block_masks(geometry, [top(m) for m in heads]) for heads in layers] for layers in maps
    ]
    note = {"made_by": "search.rules.oracle", "share": share}
    return SparsePlan.from_layers(model, made, bins=bins, dense_above=dense_above, provenance=note)


def oracle_share(maps: NDArray[Any], layer_ms: float, geometry: Geometry, hardware: Hardware) -> float:
    """The share of key blocks at which a layer with the maps of its heads, [heads, nq, nk], takes `layer_ms`."""

    def price(share: float) -> float:
        top = _top_of(geometry, share)
        return price_layer(hardware, LayerPlan.from_block_masks(geometry, [top(head) for head in maps]))[0]

    low, high = 1 / (2 * geometry.key_blocks), 1.0
    if price(low) > layer_ms:
        raise ValueError(_too_short("oracle", layer_ms, price(low)) + " of a layer")
    if price(high) <= layer_ms:
        return high
    while high - low > CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if price(middle) <= layer_ms else (low, middle)
    return low


def _top_of(geometry: Geometry, share: float) -> Callable[[NDArray[Any]], NDArray[np.bool_]]:
    """Map [nq, nk] -> mask; where the share is no whole number of blocks, some rows have one more."""
    edges = np.floor(np.arange(geometry.query_blocks + 1) * share * geometry.key_blocks + 1e-9)
    counts, fixed = np.diff(edges), kept_blocks(geometry)

    def top(mass: NDArray[Any]) -> NDArray[np.bool_]:
        rank = np.argsort(
            np.argsort(-(mass + np.float64(fixed) * (1 + np.max(mass))), axis=1, kind="stable"), axis=1
        )
        return np.asarray((rank < counts[:, None]) | fixed)

    return top
