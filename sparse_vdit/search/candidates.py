"""The candidates of a search: distinct patterns of one geometry, sparse first, as a list that users may edit.

`patterns` are plain (a bias is fitted to each later), distinct by what they visit, and hold `full`, the last
resort. A *mass stripe* stands behind them: the n key blocks of most attention mass, which differ by noise
bin, layer and head, so that only its number of blocks is listed. Candidate c < len(patterns) is a pattern,
candidate len(patterns) + i the i-th mass stripe; each may carry a remainder. Next: `recorder.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import Json, checked_tile, closed, integer, json_type, shown
from sparse_vdit.pattern import Geometry, Order, Pattern
from sparse_vdit.plan.file import PlanError, layout, parse, read_bytes, write_atomic
from sparse_vdit.plan.layer import VisitPool
from sparse_vdit.plan.transformer import MAX_PATTERN_INTS
from sparse_vdit.presets import (
    checked_density,
    densities,
    fitted_band,
    fitted_stripe,
    nearest_density,
    spread_blocks,
)

PENALTY, THRESHOLD = 0.5, 1.0  # lambda and epsilon of the paper, tuned there on CogVideoX
FORMAT = "sparse_vdit.candidates"
FORMAT_VERSION = 1
FILE_NAME = "candidates.json"
FIELDS = ("format", "format_version", "geometry", "patterns", "mass_stripes")
MAX_CANDIDATES = 1024
DENSITIES = (0.03, 0.05, 0.08, 0.12, 0.18, 0.26, 0.36, 0.5)
MASS_DENSITIES = (0.03, 0.06, 0.12, 0.24)
DENSEST = 0.9  # of a generated candidate: beyond it, full costs about as much


@dataclass(frozen=True)
class Candidates:
    """What a search chooses from, for every head alike.

    Args:
        geometry: the token layout.
        patterns: without remainder, no two of which visit the same; `full` among them. Kept by density.
        mass_stripes: numbers of key blocks, each 1..key_blocks - 1; kept rising.

    Raises:
        ValueError: an empty or repeating list: `candidates: diagonal(40) visits the same blocks as
            diagonal(33), expected distinct patterns`.

    Example:
        >>> geometry = Geometry(frames=4, height=8, width=8, block_q=32, block_k=32)
        >>> made = Candidates(geometry, (Pattern.full(), Pattern.skip()), mass_stripes=(2,))
        >>> [made.name(number) for number in range(made.count)]
        ['skip', 'full', 'mass_stripe(2 key blocks)']
    """

    geometry: Geometry
    patterns: tuple[Pattern, ...]
    mass_stripes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.geometry, Geometry):
            raise TypeError(f"candidates: geometry is {type(self.geometry).__name__}, expected a Geometry")
        found = _checked_patterns(self.patterns)
        counts = _checked_stripes(self.geometry, self.mass_stripes)
        if len(found) + len(counts) > MAX_CANDIDATES:
            raise ValueError(
                f"candidates: there are {len(found) + len(counts)}, expected at most {MAX_CANDIDATES}"
            )
        _refuse_repeats(self.geometry, found)
        if not any(pattern.kind == "full" for pattern in found):
            raise ValueError("candidates: full is not in the list, expected it (the last resort of a head)")
        order = np.argsort(densities(self.geometry, found), kind="stable")
        object.__setattr__(self, "patterns", tuple(found[number] for number in order))
        object.__setattr__(self, "mass_stripes", counts)

    @property
    def count(self) -> int:
        """Number of candidates: patterns and mass stripes, each counted once."""
        return len(self.patterns) + len(self.mass_stripes)

    @property
    def stripe_blocks(self) -> int:
        """Key blocks that the widest mass stripe needs; 0 without mass stripes."""
        return max(self.mass_stripes, default=0)

    @cached_property
    def pool(self) -> VisitPool:
        """The visits of `patterns`, with the rows that a remainder needs."""
        pooled = [pattern.takes_remainder for pattern in self.patterns]
        return VisitPool.of_patterns(self.geometry, self.patterns, pooled)

    @cached_property
    def orders(self) -> NDArray[np.int32]:
        """int32 [len(patterns)]: row of `pool.tokens`, or -1 for the model's own order."""
        return np.array(self.pool.order_rows, dtype=np.int32)

    @cached_property
    def takes_remainder(self) -> NDArray[np.bool_]:
        """bool [count]: whether a bias means anything; not for full and skip."""
        stripes = [True] * len(self.mass_stripes)
        return np.array([pattern.takes_remainder for pattern in self.patterns] + stripes, dtype=bool)

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """float64 [count]; a mass stripe's is that of as many evenly spread blocks."""
        spread = [_spread(self.geometry, blocks) for blocks in self.mass_stripes]
        of_stripes = densities(self.geometry, spread) if spread else []
        return np.array([self.pool.density(n) for n in range(len(self.patterns))] + of_stripes)

    @property
    def full(self) -> int:
        """The number of the full pattern."""
        return next(number for number, pattern in enumerate(self.patterns) if pattern.kind == "full")

    def name(self, candidate: int) -> str:
        """A label of one candidate."""
        if candidate < len(self.patterns):
            return self.patterns[candidate].name
        return f"mass_stripe({self.mass_stripes[candidate - len(self.patterns)]} key blocks)"

    def pattern(self, candidate: int, stripe: Sequence[int] | NDArray[np.int32] = ()) -> Pattern:
        """The pattern of a candidate.

        Args:
            candidate: 0..count - 1.
            stripe: the head's key blocks by falling mass, for a mass stripe.
        """
        if candidate < len(self.patterns):
            return self.patterns[candidate]
        blocks = [int(block) for block in stripe[: self.mass_stripes[candidate - len(self.patterns)]]]
        if len(blocks) < self.mass_stripes[candidate - len(self.patterns)] or min(blocks) < 0:
            raise ValueError(
                f"candidates: {self.name(candidate)} has blocks {blocks}, expected measured ones"
            )
        return Pattern.vertical_stripe(key_blocks=sorted(blocks))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over what they are, for provenance and to tell two lists apart."""
        return hashlib.sha256(layout(self.to_json())).hexdigest()

    def to_json(self) -> Json:
        """Geometry, patterns one by one, numbers of blocks of the mass stripes."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "geometry": self.geometry.to_json(),
            "patterns": [pattern.to_json() for pattern in self.patterns],
            "mass_stripes": list(self.mass_stripes),
        }

    @classmethod
    def from_json(cls, value: Any, who: str = "candidates") -> Candidates:
        """The inverse of `to_json`; unknown and missing fields are refused."""
        fields = closed(who, value, FIELDS)
        for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
            if isinstance(fields[name], bool) or fields[name] != expected:
                raise ValueError(f"{who}: {name} is {shown(fields[name])}, expected {expected!r}")
        for name in ("patterns", "mass_stripes"):
            if not isinstance(fields[name], list):
                raise ValueError(f"{who}: {name} is {json_type(fields[name])}, expected a list")
        if len(fields["patterns"]) + len(fields["mass_stripes"]) > MAX_CANDIDATES:
            raise ValueError(f"{who}: there are more than {MAX_CANDIDATES} entries, expected at most that")
        geometry = Geometry.from_json(fields["geometry"], f"{who}.geometry")
        patterns = [
            Pattern.from_json(entry, f"{who}.patterns[{number}]")
            for number, entry in enumerate(fields["patterns"])
        ]
        return cls(geometry, tuple(patterns), tuple(fields["mass_stripes"]))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the JSON file; a reader sees the old file or the new one."""
        where = Path(path)
        return write_atomic(where.parent, where.name, layout(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Candidates:
        """Reads a JSON file.

        Raises:
            FileNotFoundError, ValueError, TypeError: one sentence.
        """
        try:
            return cls.from_json(parse(read_bytes(path)))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"candidates: there is no file {os.fspath(path)!r}, expected a {FILE_NAME}"
            ) from None
        except IsADirectoryError:
            raise ValueError(f"candidates: {os.fspath(path)!r} is a folder, expected a {FILE_NAME}") from None
        except PlanError as error:
            raise ValueError(f"candidates: {str(error).removeprefix('plan: ')}") from None


def _checked_patterns(patterns: Iterable[Pattern]) -> list[Pattern]:
    found = list(patterns)
    if not found:
        raise ValueError("candidates: the list is empty, expected at least one pattern")
    for number, pattern in enumerate(found):
        if not isinstance(pattern, Pattern):
            raise TypeError(f"candidates: entry {number} is {type(pattern).__name__}, expected a Pattern")
        if pattern.remainder is not None:
            raise ValueError(
                f"candidates: {pattern.name} has a remainder, expected plain patterns (the bias is fitted)"
            )
    total = sum(len(pattern.to_ints()) for pattern in found[: MAX_CANDIDATES + 1])
    if total > MAX_PATTERN_INTS:
        raise ValueError(f"candidates: they have {total} integers, expected at most {MAX_PATTERN_INTS}")
    return found


def _checked_stripes(geometry: Geometry, counts: Iterable[int]) -> tuple[int, ...]:
    high = geometry.key_blocks - 1
    found = sorted(integer("candidates", "an entry of mass_stripes", count, 1, high) for count in counts)
    for before, after in itertools.pairwise(found):
        if before == after:
            raise ValueError(f"candidates: mass_stripes holds {after} twice, expected distinct numbers")
    return tuple(found)


def _refuse_repeats(geometry: Geometry, patterns: Sequence[Pattern]) -> None:
    known: dict[bytes, Pattern] = {}
    for pattern, key in zip(patterns, _covers(geometry, patterns), strict=True):
        if key in known:
            raise ValueError(
                f"candidates: {pattern.name} visits the same blocks as {known[key].name}, "
                "expected distinct patterns"
            )
        known[key] = pattern


def _covers(geometry: Geometry, patterns: Sequence[Pattern]) -> list[bytes]:
    """A key per pattern, equal for two that compute the same; skip, which gives zeros, has its own."""
    pool = VisitPool.of_patterns(geometry, patterns, [False] * len(patterns))
    return [_cover(pool, number, pattern) for number, pattern in enumerate(patterns)]


def _cover(pool: VisitPool, number: int, pattern: Pattern) -> bytes:
    mask = pool.block_mask(number)
    if mask.all():
        return b"full"
    if pattern.kind == "skip":
        return b"skip"
    order = ",".join(map(str, pattern.order.to_ints())).encode()
    return hashlib.sha256(order + np.packbits(mask).tobytes()).digest()


def ladder(
    geometry: Geometry,
    levels: Sequence[float] = DENSITIES,
    *,
    mass: Sequence[float] = MASS_DENSITIES,
    tile: Sequence[int] | None = None,
) -> Candidates:
    """Candidates of every family at rising densities.

    Diagonal, multi-diagonal, vertical stripe (evenly spread), diagonal + stripe, multi-diagonal + stripe: one
    width per level, the one whose measured density is nearest. Boxes near in time and space: one per level,
    and such that see far in time or far in space, or every n-th box. The self block, skip and full. Whatever
    visits the same as a simpler one, or nearly everything, is left out.

    Args:
        geometry: the token layout.
        levels: densities to aim at, besides what every candidate visits (own block, other tokens).
        mass: densities of the mass stripes.
        tile: sides (t, h, w) of a box, default about `block_k` tokens.
    """
    own = Pattern.diagonal(half_width=0)
    found = [Pattern.skip(), Pattern.full(), own]
    base = densities(geometry, [own])[0]
    levels = [base + (1 - base) * checked_density("ladder", level) for level in levels]
    for level in levels:
        found += _family(geometry, level, base)
    sides = box(geometry) if tile is None else checked_tile("ladder", tile)
    found += _boxes(geometry, sides, levels)
    distinct: dict[bytes, Pattern] = {}
    for key, pattern in zip(_covers(geometry, found), found, strict=True):
        distinct.setdefault(key, pattern)
    patterns = list(distinct.values())
    worth = [
        pattern
        for pattern, density in zip(patterns, densities(geometry, patterns), strict=True)
        if density <= DENSEST or pattern.kind == "full"
    ]
    return Candidates(geometry, tuple(worth), _mass_stripes(geometry, mass))


def _mass_stripes(geometry: Geometry, levels: Sequence[float]) -> tuple[int, ...]:
    blocks = geometry.key_blocks
    wanted = {max(1, round(checked_density("ladder", level) * blocks)) for level in levels}
    return tuple(sorted(count for count in wanted if count < blocks))


def _spread(geometry: Geometry, count: int) -> Pattern:
    return Pattern.vertical_stripe(key_blocks=spread_blocks(geometry, count) if count else ())


def _family(geometry: Geometry, level: float, base: float) -> list[Pattern]:
    return [
        fitted_band(geometry, level, Pattern.diagonal),
        fitted_band(geometry, level, Pattern.multi_diagonal),
        fitted_stripe(geometry, level),
        _striped(geometry, level, base, Pattern.diagonal),
        _striped(geometry, level, base, Pattern.multi_diagonal),
    ]


def _striped(geometry: Geometry, level: float, base: float, make: Callable[..., Pattern]) -> Pattern:
    """A band that takes half of what is above `base`, one block on each side at least, then spread key blocks."""
    band = fitted_band(geometry, (level + base) / 2, make)
    if band.half_width == 0:
        band = make(half_width=1)

    def joined(count: int) -> Pattern:
        blocks = spread_blocks(geometry, max(count, 1))
        return Pattern.union(band, Pattern.vertical_stripe(key_blocks=blocks, order=band.order))

    return nearest_density(geometry, level, joined, geometry.key_blocks)


def box(geometry: Geometry) -> tuple[int, int, int]:
    """Sides of a box of at most `block_k` tokens: the axis with most boxes is doubled while that fits."""
    sides, axes = [1, 1, 1], (geometry.frames, geometry.height, geometry.width)
    while 2 * math.prod(sides) <= geometry.block_k:
        counts = [-(-axis // side) for axis, side in zip(axes, sides, strict=True)]
        if max(counts) == 1:
            break
        sides[2 - counts[::-1].index(max(counts))] *= 2
    return (sides[0], sides[1], sides[2])


def _boxes(geometry: Geometry, tile: tuple[int, int, int], levels: Sequence[float]) -> list[Pattern]:
    """Per level the box windows of nearest density: alike in time and space, farther in time, in space, periodic."""
    counts = [
        -(-axis // side)
        for axis, side in zip((geometry.frames, geometry.height, geometry.width), tile, strict=True)
    ]
    shapes: dict[str, list[Pattern]] = {"alike": [], "time": [], "space": [], "periodic": []}
    space = max(counts[1:])
    for t, s in itertools.product(_widths(counts[0]), _widths(space)):
        pattern = Pattern.periodic_tiles(
            tile=tile, time=(t, 0, None), rows=(s, 0, None), columns=(s, 0, None)
        )
        unlike = math.log(t / counts[0]) - math.log(s / space)
        kind = "alike" if abs(unlike) <= math.log(2) else "time" if unlike > 0 else "space"
        shapes[kind].append(pattern)
    shapes["periodic"] = _periodic(tile, counts)
    found = [Pattern.vertical_stripe(key_blocks=(), order=Order.tiles(*tile))]
    for patterns in shapes.values():
        measured = densities(geometry, patterns) if patterns else []
        for level in levels if patterns else ():
            found.append(patterns[int(np.argmin(np.abs(np.array(measured) - level)))])
    return found


def _periodic(tile: tuple[int, int, int], counts: Sequence[int]) -> list[Pattern]:
    """Every n-th box in time (near in space), or every n-th box in space (near in time)."""
    found = []
    for period, near in itertools.product((2, 3, 4), (1, 2, 3)):
        if period < counts[0]:
            space = (near, 0, None)
            found.append(Pattern.periodic_tiles(tile=tile, time=(1, 0, period), rows=space, columns=space))
        if period < max(counts[1:]):
            every = (1, 0, period)
            found.append(Pattern.periodic_tiles(tile=tile, time=(near, 0, None), rows=every, columns=every))
    return found


def _widths(boxes: int) -> list[int]:
    """1 .. boxes, thinned out to at most a dozen."""
    return sorted(
        {max(1, round(boxes ** (i / 11))) for i in range(12)} if boxes > 12 else range(1, boxes + 1)
    )


def paper_modes(candidates: Candidates, density: float) -> tuple[int, ...]:
    """The paper's modes among candidates: full, skip, and of each simple family the one nearest to a density."""
    if not 0 < density <= 1:
        raise ValueError(f"candidates: density is {density}, expected more than 0 and at most 1")
    found = [number for number, pattern in enumerate(candidates.patterns) if pattern.kind in ("full", "skip")]
    for kind in ("diagonal", "multi_diagonal", "vertical_stripe"):
        family = [
            number
            for number, pattern in enumerate(candidates.patterns)
            if pattern.kind == kind and pattern.order.kind != "tiles"
        ]
        if family:
            found.append(min(family, key=lambda number: (abs(candidates.density[number] - density), number)))
    return tuple(sorted(found))
