"""Choosing a plan by measured output error: candidates, an error table, per-head choices at a density.

    error of a head = |out_candidate - out_full|^2 / |out_full|^2, on sampled query rows (rows.py)

With the remainder, one bias is fitted per (bin, layer, head, candidate). Errors do not depend on the
choices, so one table answers every budget. What it does not do: look at times, or at errors that add up
through the layers.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.choose.rows import BETAS, CandidateRows, best_beta, float32
from sparse_vdit.pattern import Geometry, Pattern
from sparse_vdit.plan.file import PlanError
from sparse_vdit.plan.sparse import SparsePlan, identity
from sparse_vdit.plan.transformer import MAX_PATTERNS, TransformerPlan, checked_bins

SLACK = 1.05  # `uniform` may be this much denser than asked, so that a coarse ladder does not handicap it


class ErrorTable:
    """Measured output errors of every candidate for every (bin, layer, head).

    Args:
        transformer: a diffusers transformer, or a `ModelIdentity`.
        geometry: the token layout.
        candidates: patterns without remainder, e.g. `ladder(geometry)`.
        bins: edges of noise level, rising from 0 to 1.
        rows: query rows sampled per head and call; None: all.
        seed: of the sampling.
    """

    def __init__(
        self,
        transformer: Any,
        geometry: Geometry,
        candidates: Sequence[Pattern],
        bins: Sequence[float] = (0.0, 1.0),
        *,
        rows: int | None = 128,
        seed: int = 0,
    ) -> None:
        if not 1 <= len(candidates) <= MAX_PATTERNS:
            raise PlanError(f"choose: there are {len(candidates)} candidates, expected 1..{MAX_PATTERNS}")
        for number, pattern in enumerate(candidates):
            if not isinstance(pattern, Pattern):
                raise TypeError(f"choose: candidate {number} is {type(pattern).__name__}, expected a Pattern")
        if any(pattern.remainder is not None for pattern in candidates):
            raise PlanError("choose: a candidate has a remainder, expected plain ones: the bias is fitted")
        self.model = identity(transformer)
        self.geometry = geometry
        self.bins = checked_bins(bins)
        self.rows, self.seed = rows, seed
        self._measure = CandidateRows(geometry, list(dict.fromkeys(candidates)))
        self.candidates = self._measure.candidates
        self.density = self._measure.density
        self._errors: NDArray[np.float64] | None = None
        cells = (len(self.bins) - 1, self.model.layers, self.model.heads)
        self.energy = np.zeros(cells)
        self.calls = np.zeros(cells[:2], dtype=np.int64)
        self._mass = np.zeros((*cells, geometry.key_blocks))
        self.levels: set[float] = set()

    def add(
        self, noise_level: float, layer: int, q: Any, k: Any, v: Any, *, scale: float | None = None
    ) -> None:
        """Measures one attention call: q, k, v [B, H, N, D], NumPy arrays or torch tensors.

        Args:
            noise_level: 0..1; says which bin it counts in.
            layer: number of the layer.
            q, k, v: after normalisation and rotary embedding.
            scale: factor of the logits, default 1 / sqrt(D).

        Raises:
            ValueError: another shape, layer or noise level; NaN or infinity among the numbers. Nothing of a
                refused sample is counted.
        """
        q, k, v = float32(q), float32(k), float32(v)
        expected = (self.model.heads, self.geometry.tokens, self.model.head_dim)
        for name, array in (("q", q), ("k", k), ("v", v)):
            if array.ndim != 4 or array.shape[1:] != expected or len(array) != len(q):
                raise ValueError(f"choose: {name}.shape is {array.shape}, expected (batch, *{expected})")
        if not 0 <= layer < self.model.layers:
            raise ValueError(f"choose: layer is {layer}, expected 0..{self.model.layers - 1}")
        bin_ = self._bin(noise_level)
        if self._errors is None:
            self._errors = np.zeros((*self.energy.shape, len(self.candidates), 1 + len(BETAS)))
        factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
        if not math.isfinite(factor):
            raise ValueError(f"choose: scale is {factor}, expected a finite number")
        for sample in range(len(q)):
            rows = self._measure.sample(self.rows, (self.seed, bin_, layer, int(self.calls[bin_, layer])))

            def measured(head: int, sample: int = sample, rows: NDArray[np.int64] = rows) -> tuple[Any, ...]:
                return self._measure.measure(q[sample, head], k[sample, head], v[sample, head], rows, factor)

            with ThreadPoolExecutor(min(expected[0], len(os.sched_getaffinity(0)))) as pool:
                found = list(pool.map(measured, range(expected[0])))
            for head, (_, energy, mass) in enumerate(found):
                if not (math.isfinite(energy) and np.isfinite(mass).all()):
                    raise ValueError(
                        f"choose: attention of layer {layer}, head {head} is not finite, expected finite q, k, v"
                    )
            for head, (errors, energy, mass) in enumerate(found):
                self._errors[bin_, layer, head] += errors
                self.energy[bin_, layer, head] += energy
                self._mass[bin_, layer, head] += mass
            self.calls[bin_, layer] += 1
        self.levels.add(round(float(noise_level), 6))

    def _bin(self, noise_level: float) -> int:
        if not 0 <= noise_level <= 1 + 1e-6:
            raise ValueError(f"choose: the noise level is {noise_level}, expected a number in 0..1")
        return min(int(np.searchsorted(self.bins, noise_level, side="right")) - 1, len(self.bins) - 2)

    @property
    def mass(self) -> NDArray[np.float64]:
        """Mean attention mass of each key block in frame_major order [nk], for `ladder(mass=)`."""
        total = self._mass.sum(axis=(0, 1, 2))
        return np.asarray(total / max(total.sum(), 1e-300))

    def errors(self, remainder: bool = True) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Relative squared errors and biases (NaN: plain is as good), [bins, layers, heads, candidates]."""
        self._require_calls()
        assert self._errors is not None
        error, beta = self._errors[..., 0].copy(), np.full(self._errors.shape[:-1], np.nan)
        if remainder:
            for number, pattern in enumerate(self.candidates):
                if pattern.takes_remainder:
                    self._fit(number, error, beta)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = error / self.energy[..., None]
        relative[np.isnan(relative)] = 0.0  # a head whose output is zero is right with any pattern
        return relative, beta

    def _fit(self, number: int, error: NDArray[np.float64], beta: NDArray[np.float64]) -> None:
        assert self._errors is not None
        for cell in np.ndindex(self.energy.shape):
            bias, found = best_beta(self._errors[cell][number, 1:])
            if found < error[(*cell, number)] * (1 - 1e-4):
                error[(*cell, number)], beta[(*cell, number)] = found, bias

    def _require_calls(self) -> None:
        missing = np.argwhere(self.calls == 0)
        if len(missing):
            bin_, layer = (int(n) for n in missing[0])
            raise PlanError(
                f"choose: bin {bin_}, layer {layer} was never measured, expected at least one call of add"
            )

    def absolute_weights(self, gradient_power: Any = 1.0) -> NDArray[np.float64]:
        """Weights that turn relative errors into absolute ones, times how much the model's output feels them.

        Args:
            gradient_power: from `gradient_power`, broadcastable to [bins, layers, heads].

        Returns:
            [bins, layers, heads], of mean 1 in each bin.
        """
        self._require_calls()
        felt = self.energy / self.calls[..., None] * np.asarray(gradient_power, dtype=np.float64)
        return np.asarray(felt / np.maximum(felt.mean(axis=(1, 2), keepdims=True), 1e-300))

    def select(
        self,
        *,
        max_density: float | None = None,
        mean_density: float | None = None,
        remainder: bool = True,
        weights: Any = None,
        kinds: Iterable[str] | None = None,
        dense_above: float = 1.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> SparsePlan:
        """The plan of least error.

        Args:
            max_density: ceiling for each head.
            mean_density: budget for the mean over bins, layers and heads (lower hulls and one multiplier).
            remainder: fit and use a bias wherever it lowers the error.
            weights: how much each head's relative error matters, broadcastable to [bins, layers, heads].
            kinds: only candidates of these kinds.
            dense_above: steps with a higher noise level are dense.
            provenance: more to note down.

        Raises:
            PlanError: no candidate is sparse enough, or a bin was never measured.
        """
        _check_number("max_density", max_density)
        _check_number("mean_density", mean_density)
        relative, beta = self.errors(remainder)
        allowed = self._allowed(max_density, kinds)
        cost = relative[..., allowed] * self._weights(weights)[..., None]
        if mean_density is None:
            best = cost.argmin(axis=-1)
        else:
            best = _budget(cost, self.density[allowed], mean_density)
        note = {
            "max_density": max_density,
            "mean_density": mean_density,
            "kinds": sorted(kinds) if kinds else None,
        }
        return self._plan(allowed[best], relative, beta, dense_above, "select", note | dict(provenance or {}))

    def uniform(
        self,
        density: float,
        *,
        remainder: bool = True,
        weights: Any = None,
        kinds: Iterable[str] | None = None,
        dense_above: float = 1.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> SparsePlan:
        """The best plan of one pattern at (up to 5 % above) a density; biases are fitted per head."""
        _check_number("density", density)
        relative, beta = self.errors(remainder)
        allowed = self._allowed(density * SLACK, kinds)
        allowed = allowed[[self.candidates[n].kind != "skip" for n in allowed]]
        if not len(allowed):
            raise PlanError(
                f"choose: no candidate but skip has a density of at most {density:.4f}, expected one"
            )
        cost = relative[..., allowed] * self._weights(weights)[..., None]
        best = allowed[int(cost.sum(axis=(0, 1, 2)).argmin())]
        note = {"density_asked": density, "pattern": self.candidates[best].name}
        chosen = np.full(self.energy.shape, best)
        return self._plan(chosen, relative, beta, dense_above, "uniform", note | dict(provenance or {}))

    def refit(self, plan: SparsePlan, *, remainder: bool = True) -> SparsePlan:
        """The same choices with biases fitted anew; the patterns must be candidates."""
        number = {pattern: index for index, pattern in enumerate(self.candidates)}
        for pattern in plan.patterns:
            if pattern not in number:
                raise PlanError(
                    f"choose: the plan has {pattern.name}, expected candidates of this table only"
                )
        relative, beta = self.errors(remainder)
        chosen = np.array([number[pattern] for pattern in plan.patterns])[plan.choice]
        return self._plan(chosen, relative, beta, plan.dense_above, "refit", {"of": plan.hash})

    def mean_error(self, plan: SparsePlan, *, remainder: bool = True) -> float:
        """The mean relative squared error that the table expects of a plan's choices, with biases fitted."""
        number = {pattern: index for index, pattern in enumerate(self.candidates)}
        chosen = np.array([number[pattern] for pattern in plan.patterns])[plan.choice]
        relative, _ = self.errors(remainder)
        return float(np.take_along_axis(relative, chosen[..., None], axis=-1).mean())

    def _allowed(self, ceiling: float | None, kinds: Iterable[str] | None) -> NDArray[np.int64]:
        names = None if kinds is None else set(kinds)
        found = [
            number
            for number, pattern in enumerate(self.candidates)
            if (ceiling is None or self.density[number] <= ceiling + 1e-9)
            and (names is None or pattern.kind in names)
        ]
        if not found:
            raise PlanError(
                f"choose: no candidate has a density of at most {ceiling} and a kind of {names}, expected one"
            )
        return np.array(found)

    def _weights(self, weights: Any) -> NDArray[np.float64]:
        found = np.asarray(1.0 if weights is None else weights, dtype=np.float64)
        if not np.isfinite(found).all() or (found < 0).any():
            raise ValueError(
                "choose: weights holds a negative or infinite number, expected finite ones from 0 on"
            )
        return np.broadcast_to(found, self.energy.shape)

    def _plan(
        self,
        chosen: NDArray[np.int64],
        relative: NDArray[np.float64],
        beta: NDArray[np.float64],
        dense_above: float,
        how: str,
        note: Mapping[str, Any],
    ) -> SparsePlan:
        used, choice = np.unique(chosen, return_inverse=True)
        betas = np.take_along_axis(beta, chosen[..., None], axis=-1)[..., 0]
        errors = np.take_along_axis(relative, chosen[..., None], axis=-1)[..., 0]
        made = TransformerPlan(
            self.model,
            self.geometry,
            [self.candidates[number] for number in used],
            choice.reshape(chosen.shape),
            betas,
            self.bins,
            dense_above,
        )
        about = {
            "made_by": f"choose.{how}",
            "candidates": len(self.candidates),
            "rows": self.rows,
            "seed": self.seed,
            "noise_levels": sorted(self.levels),
            "calls": int(self.calls.sum()),
            "mean_relative_error": float(np.round(errors.mean(), 9)) if np.isfinite(errors).all() else None,
            "density": round(made.density(), 6),
        }
        return SparsePlan(made, about | dict(note))


def _check_number(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"choose: {name} is {type(value).__name__}, expected a number")
    if not math.isfinite(value):
        raise PlanError(f"choose: {name} is {value}, expected a finite number")


def _budget(cost: NDArray[np.float64], density: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
    """Choices [bins, layers, heads] of least total cost whose mean density is at most `budget`.

    Each head climbs its lower hull of (density, cost); steps are taken by falling gain per density, which
    is one Lagrange multiplier for all heads, until the next step does not fit; smaller steps that still fit
    follow.
    """
    shape, flat = cost.shape[:-1], cost.reshape(-1, cost.shape[-1])
    hulls = [_hull(row, density) for row in flat]
    left = budget * len(flat) - sum(float(density[hull[0]]) for hull in hulls)
    if left < -1e-9:
        lowest = budget - left / len(flat)
        raise PlanError(
            f"choose: mean_density is {budget}, expected at least {lowest:.4f} with these candidates"
        )
    steps = [
        ((row[a] - row[b]) / (density[b] - density[a]), unit, step + 1)
        for unit, (row, hull) in enumerate(zip(flat, hulls, strict=True))
        for step, (a, b) in enumerate(itertools.pairwise(hull))
    ]
    reached = [0] * len(flat)
    for _, unit, step in sorted(steps, key=lambda entry: (-entry[0], entry[1], entry[2])):
        hull = hulls[unit]
        price = float(density[hull[step]] - density[hull[step - 1]])
        if reached[unit] == step - 1 and price <= left + 1e-12:
            reached[unit], left = step, left - price
    return np.array([hull[at] for hull, at in zip(hulls, reached, strict=True)]).reshape(shape)


def _hull(cost: NDArray[np.float64], density: NDArray[np.float64]) -> list[int]:
    """Candidates on the lower convex hull of (density, cost), from the sparsest on, costs falling."""
    hull: list[int] = []
    for number in sorted(range(len(cost)), key=lambda n: (density[n], cost[n])):
        if not np.isfinite(cost[number]) or (hull and cost[number] >= cost[hull[-1]]):
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], number, cost, density):
            hull.pop()
        hull.append(number)
    if not hull:
        raise PlanError("choose: a head has no candidate with a finite error, expected one (full always has)")
    return hull


def _above(a: int, b: int, c: int, cost: NDArray[np.float64], density: NDArray[np.float64]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return bool(
        (cost[a] - cost[b]) * (density[c] - density[a]) <= (cost[a] - cost[c]) * (density[b] - density[a])
    )


def choose(
    transformer: Any,
    geometry: Geometry,
    patterns: Sequence[Pattern],
    samples: Iterable[tuple[float, int, Any, Any, Any]],
    *,
    bins: Sequence[float] = (0.0, 1.0),
    max_density: float | None = None,
    mean_density: float | None = None,
    remainder: bool = True,
    rows: int | None = 128,
    weights: Any = None,
    dense_above: float = 1.0,
) -> SparsePlan:
    """A plan out of a list of patterns by measured output error.

    Args:
        transformer: a diffusers transformer, or a `ModelIdentity`.
        geometry: the token layout.
        patterns: candidates without remainder; a preset or `ladder(geometry)`.
        samples: recorded calls (noise level, layer, q, k, v), with q, k, v [B, H, N, D].
        bins, max_density, mean_density, remainder, rows, weights, dense_above: as in `ErrorTable`.

    Example:
        >>> from sparse_vdit.choose import ladder
        >>> from sparse_vdit.plan import ModelIdentity
        >>> geometry = Geometry(frames=4, height=8, width=8, block_q=32, block_k=32)
        >>> model = ModelIdentity("WanTransformer3DModel", layers=1, heads=2, head_dim=16)
        >>> q = np.random.default_rng(0).standard_normal((1, 2, 256, 16)).astype(np.float32)
        >>> plan = choose(model, geometry, ladder(geometry), [(0.5, 0, q, q, q)], max_density=0.3)
        >>> plan.density() <= 0.3
        True
    """
    table = ErrorTable(transformer, geometry, patterns, bins, rows=rows)
    for noise_level, layer, q, k, v in samples:
        table.add(noise_level, layer, q, k, v)
    return table.select(
        max_density=max_density,
        mean_density=mean_density,
        remainder=remainder,
        weights=weights,
        dense_above=dense_above,
    )
