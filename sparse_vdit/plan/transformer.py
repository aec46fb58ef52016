"""`TransformerPlan`: which pattern each head of each layer of one transformer uses, by noise level.

All heads, layers and bins read one pool of visits (`layer.VisitPool`): one call into C for a whole plan.
`LayeredTransformerPlan` holds ready layers instead, for controls such as random block masks; it is never
saved.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import Json, shown
from sparse_vdit.pattern import Geometry, Pattern
from sparse_vdit.plan.file import PlanError
from sparse_vdit.plan.identity import ModelIdentity
from sparse_vdit.plan.layer import LayerPlan, PackedArrays, VisitPool, pack

MAX_BINS = 64
MAX_PATTERNS = 4096
MAX_CELLS = 2**20  # bins x layers x heads
MAX_PATTERN_INTS = 2**20  # all wire formats together
NOISE_SLACK = 1e-6


class TransformerPlan:
    """The plan of one transformer.

    Args:
        model: what the plan was made for.
        geometry: the token layout.
        patterns: distinct patterns, without remainder.
        choice: integers [bins, layers, heads], numbers of `patterns`.
        betas: floats [bins, layers, heads], NaN or None = no remainder there; None: none anywhere.
        bins: edges of noise level, rising from 0 to 1.
        dense_above: steps with a higher noise level are dense (warm-up).
    """

    def __init__(
        self,
        model: ModelIdentity,
        geometry: Geometry,
        patterns: Sequence[Pattern],
        choice: Any,
        betas: Any = None,
        bins: Sequence[float] = (0.0, 1.0),
        dense_above: float = 1.0,
        pool: VisitPool | None = None,
    ) -> None:
        if not isinstance(geometry, Geometry):
            raise TypeError(f"plan: geometry is {type(geometry).__name__}, expected a Geometry")
        self.model = model
        self.geometry = geometry
        self.patterns = _checked_patterns(patterns)
        self.bins = checked_bins(bins)
        self.dense_above = _level("dense_above", dense_above)
        self.choice = self._checked_choice(choice)
        self.betas = self._checked_betas(betas)
        self.pool = pool or VisitPool.of_patterns(geometry, self.patterns, self.pooled())
        self._layers: dict[tuple[int, int], LayerPlan] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Bins, layers, heads."""
        return (len(self.bins) - 1, self.model.layers, self.model.heads)

    def _checked_choice(self, choice: Any) -> NDArray[np.int32]:
        array = np.asarray(choice)
        if array.shape != self.shape:
            raise PlanError(
                f"plan: choice has shape {array.shape}, expected {self.shape} (bins, layers, heads)"
            )
        if array.dtype.kind not in "iu":
            raise PlanError(f"plan: choice holds {array.dtype}, expected integers")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= len(self.patterns):
            raise PlanError(
                f"plan: choice holds {low if low < 0 else high}, expected 0..{len(self.patterns) - 1}"
            )
        return frozen(array.astype(np.int32))

    def _checked_betas(self, betas: Any) -> NDArray[np.float64]:
        array = np.full(self.shape, np.nan) if betas is None else np.array(betas, dtype=np.float64)
        if array.shape != self.shape:
            raise PlanError(
                f"plan: betas has shape {array.shape}, expected {self.shape} (bins, layers, heads)"
            )
        if np.any(np.abs(array) > np.finfo(np.float32).max):
            raise PlanError("plan: betas holds a number that is not finite, expected finite numbers or null")
        array = np.round(array, 3) + 0.0
        for number, pattern in enumerate(self.patterns):
            if not pattern.takes_remainder and not np.isnan(array[self.choice == number]).all():
                raise PlanError(f"plan: betas holds a number for {pattern.kind}, expected null")
        return frozen(array)

    def pooled(self) -> list[bool]:
        """Which patterns any head uses with a remainder."""
        used = set(self.choice[~np.isnan(self.betas)].tolist())
        return [number in used for number in range(len(self.patterns))]

    def pattern(self, bin_: int, layer: int, head: int) -> Pattern:
        """The pattern of one head, with its remainder."""
        beta = float(self.betas[bin_, layer, head])
        found = self.patterns[int(self.choice[bin_, layer, head])]
        return found.with_remainder(None if math.isnan(beta) else beta)

    def bin_of(self, noise_level: float) -> int | None:
        """The bin of a noise level; None: above `dense_above`, the step is dense."""
        level = _level("the noise level", noise_level)
        if level > self.dense_above:
            return None
        return min(int(np.searchsorted(self.bins, level, side="right")) - 1, len(self.bins) - 2)

    def layer(self, bin_: int, layer: int) -> LayerPlan:
        """What a layer does in a bin."""
        bins, layers, heads = self.shape
        if not (0 <= bin_ < bins and 0 <= layer < layers):
            raise IndexError(f"plan: bin {bin_}, layer {layer}, expected 0..{bins - 1}, 0..{layers - 1}")
        found = self._layers.get((bin_, layer))
        if found is None:
            patterns = tuple(self.pattern(bin_, layer, head) for head in range(heads))
            remainders = [pattern.remainder for pattern in patterns]
            found = LayerPlan.from_pool(self.pool, self.choice[bin_, layer].tolist(), remainders, patterns)
            self._layers[bin_, layer] = found
        return found

    def packed(self, layer: int) -> PackedArrays:
        """The arrays of the torch operator for a layer, all bins; codes and tokens are shared."""
        return pack([self.layer(bin_, layer) for bin_ in range(self.shape[0])])

    def densities(self) -> NDArray[np.float64]:
        """Share of token pairs that is computed, [bins, layers, heads]; dense warm-up steps apart."""
        table = np.array([self.pool.density(number) for number in range(len(self.patterns))])
        found: NDArray[np.float64] = table[self.choice]
        return found

    def density(self) -> float:
        """The mean of `densities`."""
        return float(self.densities().mean())

    def kinds(self) -> list[list[list[str]]]:
        """Family of each head's pattern, [bins][layers][heads]."""
        return [[[self.patterns[n].family for n in layer] for layer in bin_] for bin_ in self.choice.tolist()]

    def families(self, bin_: int | None = None) -> dict[str, int]:
        """How many heads use each kind, in one bin or (None) in all, most frequent first."""
        rows = self.kinds() if bin_ is None else [self.kinds()[bin_]]
        names = [kind for layers in rows for heads in layers for kind in heads]
        return dict(
            sorted(((kind, names.count(kind)) for kind in set(names)), key=lambda item: (-item[1], item[0]))
        )

    def check_model(self, model: ModelIdentity) -> None:
        """Refuses another model.

        Raises:
            PlanError: `plan: layers is 40, expected 30: the plan is of another model`.
        """
        difference = self.model.difference(model)
        if difference:
            raise PlanError(f"plan: {difference}: the plan is of another model")

    def to_json(self) -> Json:
        """Model, bins, dense_above, choice and betas; the patterns stand beside them."""
        betas = [
            [[None if math.isnan(b) else b for b in heads] for heads in layers]
            for layers in self.betas.tolist()
        ]
        return {
            "model": self.model.to_json(),
            "bins": list(self.bins),
            "dense_above": self.dense_above,
            "choice": self.choice.tolist(),
            "betas": betas,
        }

    def for_geometry(self, geometry: Geometry) -> TransformerPlan:
        """This part alone for another geometry, as `SparsePlan.for_geometry`."""
        from sparse_vdit.plan.transfer import transfer_part

        return transfer_part(self, geometry)

    def hash(self) -> str:
        """SHA-256 over the edges, the warm-up and the packed arrays: what a call computes."""
        found = hashlib.sha256(repr((self.geometry, self.bins, self.dense_above)).encode())
        for layer in range(self.model.layers):
            packed = self.packed(layer)
            for array in (packed.items, packed.codes, packed.heads, packed.betas, packed.tokens):
                found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


class LayeredTransformerPlan(TransformerPlan):
    """A plan of ready layers [bins][layers], which may hold block masks."""

    def __init__(
        self,
        model: ModelIdentity,
        layers: Sequence[Sequence[LayerPlan]],
        bins: Sequence[float] = (0.0, 1.0),
        dense_above: float = 1.0,
    ) -> None:
        self.model = model
        self.bins = checked_bins(bins)
        self.dense_above = _level("dense_above", dense_above)
        self.patterns = ()
        found = (
            len(layers),
            len(layers[0]) if layers else 0,
            layers[0][0].heads if layers and layers[0] else 0,
        )
        if found != self.shape or any(len(row) != found[1] for row in layers):
            raise PlanError(
                f"plan: the layers have shape {found}, expected {self.shape} (bins, layers, heads)"
            )
        self.geometry = layers[0][0].geometry
        for layer in (layer for row in layers for layer in row):
            if layer.geometry != self.geometry or layer.heads != found[2]:
                raise PlanError(
                    "plan: a layer has another geometry or number of heads, expected those of the first"
                )
        self._layers = {(b, i): layer for b, row in enumerate(layers) for i, layer in enumerate(row)}
        cells = [[layer.remainders for layer in row] for row in layers]
        self.betas = frozen(np.array(cells, dtype=np.float64))

    def pattern(self, bin_: int, layer: int, head: int) -> Pattern:
        """The pattern of one head; block masks have none."""
        patterns = self.layer(bin_, layer).patterns
        if not patterns:
            raise PlanError("plan: it holds block masks, expected patterns")
        return patterns[head]

    def densities(self) -> NDArray[np.float64]:
        """As in `TransformerPlan`."""
        bins, layers, heads = self.shape
        table = [
            [[self.layer(b, i).density(h) for h in range(heads)] for i in range(layers)] for b in range(bins)
        ]
        return np.array(table, dtype=np.float64)

    def kinds(self) -> list[list[list[str]]]:
        """As in `TransformerPlan`; heads with a mask are 'block_mask'."""
        bins, layers, heads = self.shape
        rows = [[self.layer(b, i).patterns for i in range(layers)] for b in range(bins)]
        return [
            [[p.family for p in row] if row else ["block_mask"] * heads for row in layer] for layer in rows
        ]

    def to_json(self) -> Json:
        """Refused: block masks are controls."""
        raise PlanError("plan: it holds block masks, expected patterns: controls are not saved")


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, made read-only."""
    array.flags.writeable = False
    return array


def _checked_patterns(patterns: Sequence[Pattern]) -> tuple[Pattern, ...]:
    found = tuple(patterns)
    if not 1 <= len(found) <= MAX_PATTERNS:
        raise PlanError(f"plan: there are {len(found)} patterns, expected 1..{MAX_PATTERNS}")
    for number, pattern in enumerate(found):
        if not isinstance(pattern, Pattern):
            raise TypeError(f"plan: pattern {number} is {type(pattern).__name__}, expected a Pattern")
        if pattern.remainder is not None:
            raise PlanError(f"plan: pattern {number} has a remainder, expected it in betas")
    if len(set(found)) != len(found):
        raise PlanError("plan: a pattern appears twice, expected distinct ones")
    total = sum(len(pattern.to_ints()) for pattern in found)
    if total > MAX_PATTERN_INTS:
        raise PlanError(f"plan: the patterns have {total} integers, expected at most {MAX_PATTERN_INTS}")
    return found


def checked_name(name: Any) -> str:
    """The name of a pipeline's component: an identifier of at most 64 letters."""
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 64:
        raise PlanError(f"plan: a transformer is named {shown(name)}, expected an identifier")
    return name


def checked_bins(bins: Sequence[float]) -> tuple[float, ...]:
    """Edges of noise level: rising, from 0 to 1, at most 64 intervals."""
    edges = tuple(_level("an edge of bins", edge) for edge in bins)
    if not 2 <= len(edges) <= MAX_BINS + 1:
        raise PlanError(f"plan: bins has {len(edges)} edges, expected 2..{MAX_BINS + 1}")
    if edges[0] != 0 or edges[-1] != 1 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise PlanError(f"plan: bins is {list(edges)[:8]}, expected edges that rise from 0 to 1")
    return edges


def _level(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise PlanError(f"plan: {name} is {type(value).__name__}, expected a number in 0..1")
    level = float(value)
    if not -NOISE_SLACK <= level <= 1 + NOISE_SLACK:
        raise PlanError(f"plan: {name} is {level}, expected a number in 0..1")
    return min(max(level, 0.0), 1.0)
