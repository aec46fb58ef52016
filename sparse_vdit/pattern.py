"""Where a head looks, as a value: `Pattern`, frozen and hashable (`Geometry`, `Order`: `geometry.py`).

A pattern is a token rule (which key may a query attend to); what is computed is its block cover. The
integers of `to_ints` are the wire format of `csrc/pattern/pattern.h`, which also checks a pattern against a
geometry; what can be said without a geometry is said here, at construction. Next: `plan.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import (
    FRAME_MAJOR,
    MAX_INT,
    MAX_KEY_BLOCKS,
    TOKEN_MAJOR,
    Geometry,
    Json,
    Order,
    checked_tile,
    closed,
    integer,
    json_type,
    shown,
    triple,
)

__all__ = ["Geometry", "Order", "Pattern", "Window"]

MAX_PARTS = 64
MAX_REMAINDER = float(np.finfo(np.float32).max)

Window = tuple[int, int, int | None]

PATTERN_KINDS = (
    "full",
    "skip",
    "diagonal",
    "multi_diagonal",
    "vertical_stripe",
    "periodic_tiles",
    "union",
)
UNION_KINDS = ("diagonal", "multi_diagonal", "vertical_stripe", "periodic_tiles")


def _window(who: str, name: str, value: Any) -> Window:
    width, offset, period = triple(who, name, value, "a window (width, offset, period or None)")
    return (
        integer(who, f"the width of {name}", width, 1, MAX_INT),
        integer(who, f"the offset of {name}", offset, 0, MAX_INT),
        None if period is None else integer(who, f"the period of {name}", period, 1, MAX_INT),
    )


def _blocks(who: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{who}: key_blocks is {type(value).__name__}, expected a list of key block numbers")
    blocks = tuple(integer(who, "a key block", block, 0, MAX_KEY_BLOCKS - 1) for block in value)
    for before, after in itertools.pairwise(blocks):
        if before >= after:
            raise ValueError(
                f"{who}: key_blocks holds {before} before {after}, expected sorted and unique numbers"
            )
    return blocks


def checked_remainder(who: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{who}: remainder is {type(value).__name__}, expected a number or None")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_REMAINDER:
        raise ValueError(f"{who}: remainder is {number}, expected a finite number")
    return number


@dataclass(frozen=True)
class Pattern:
    """Where a head looks; made by the class methods named like the kinds.

    `remainder` is the bias of the pseudo keys that stand for what is not visited, None for the plain rule.
    It is not
    part of the wire format: it stands beside the work items.

    Example:
        >>> Pattern.multi_diagonal(half_width=63, remainder=0.4).name
        'multi_diagonal(63) + remainder(0.4)'
    """

    kind: str
    order: Order = FRAME_MAJOR
    sink_frames: int = 0
    remainder: float | None = None
    half_width: int | None = None
    key_blocks: tuple[int, ...] | None = None
    time: Window | None = None
    space: Window | None = None
    rows: Window | None = None
    columns: Window | None = None
    parts: tuple[Pattern, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in PATTERN_KINDS:
            raise ValueError(
                f"pattern: kind is {shown(self.kind)}, expected one of {', '.join(PATTERN_KINDS)}"
            )
        if not isinstance(self.order, Order):
            raise TypeError(f"{self.kind}: order is {type(self.order).__name__}, expected an Order")
        put = object.__setattr__
        put(self, "sink_frames", integer(self.kind, "sink_frames", self.sink_frames, 0, MAX_INT))
        put(self, "remainder", checked_remainder(self.kind, self.remainder))
        getattr(self, f"_check_{self.kind}")()
        self._check_strangers()
        if self.sink_frames and self.order.kind == "token_major":
            raise ValueError(
                f"{self.kind}: sink_frames is {self.sink_frames} in token_major order, expected 0: a frame "
                "lies in every key block there, so the cover would be dense"
            )

    FIELDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "full": (),
        "skip": (),
        "diagonal": ("half_width",),
        "multi_diagonal": ("half_width",),
        "vertical_stripe": ("key_blocks",),
        "periodic_tiles": ("time", "space", "rows", "columns"),
        "union": ("parts",),
    }

    def _check_strangers(self) -> None:
        for name in ("half_width", "key_blocks", "time", "space", "rows", "columns", "parts"):
            if name not in self.FIELDS[self.kind] and getattr(self, name) not in (None, ()):
                raise ValueError(f"{self.kind}: {name} is {shown(getattr(self, name))}, expected nothing")

    def _check_order(self, kind: str) -> None:
        if self.order.kind != kind:
            raise ValueError(f"{self.kind}: order is {self.order.name}, expected {kind}")

    def _check_full(self) -> None:
        self._check_order("frame_major")
        if self.sink_frames or self.remainder is not None:
            raise ValueError(f"{self.kind}: it has sink_frames or a remainder, expected neither")

    _check_skip = _check_full

    def _check_diagonal(self) -> None:
        self._check_order("frame_major" if self.kind == "diagonal" else "token_major")
        object.__setattr__(self, "half_width", integer(self.kind, "half_width", self.half_width, 0, MAX_INT))

    _check_multi_diagonal = _check_diagonal

    def _check_vertical_stripe(self) -> None:
        object.__setattr__(self, "key_blocks", _blocks(self.kind, self.key_blocks))

    def _check_periodic_tiles(self) -> None:
        self._check_order("tiles")
        if (
            self.time is None
            or (self.space is None) == (self.rows is None)
            or (self.rows is None) != (self.columns is None)
        ):
            raise ValueError(
                "periodic_tiles: expected windows for time and space, or for time, rows and columns"
            )
        for name in ("time", "space", "rows", "columns"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _window(self.kind, name, getattr(self, name)))

    def _check_union(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not 1 <= len(self.parts) <= MAX_PARTS:
            raise ValueError(f"union: there are {len(self.parts)} parts, expected 1..{MAX_PARTS}")
        for number, part in enumerate(self.parts):
            if not isinstance(part, Pattern):
                raise TypeError(f"union: part {number} is {type(part).__name__}, expected a Pattern")
            if part.kind not in UNION_KINDS:
                raise ValueError(
                    f"union: part {number} is {part.kind}, expected one of {', '.join(UNION_KINDS)}"
                )
            if part.sink_frames or part.remainder is not None:
                raise ValueError(
                    f"union: part {number} has sink_frames or a remainder, expected them on the union"
                )
            if part.order != self.order:
                raise ValueError(
                    f"union: part {number} is in {part.order.name} order, "
                    f"expected {self.order.name} like part 0"
                )

    @classmethod
    def full(cls) -> Pattern:
        """Every key: ordinary attention."""
        return cls("full")

    @classmethod
    def skip(cls) -> Pattern:
        """Nothing: the output of the head is zero, other tokens included."""
        return cls("skip")

    @classmethod
    def diagonal(cls, *, half_width: int, sink_frames: int = 0, remainder: float | None = None) -> Pattern:
        """Video keys at most `half_width` tokens away in frame_major order."""
        return cls("diagonal", half_width=half_width, sink_frames=sink_frames, remainder=remainder)

    @classmethod
    def multi_diagonal(
        cls, *, half_width: int, sink_frames: int = 0, remainder: float | None = None
    ) -> Pattern:
        """Video keys at most `half_width` tokens away in token_major order: 2F - 1 diagonals.

        `sink_frames` other than 0 is refused: in token_major order a frame lies in every key block.
        """
        return cls("multi_diagonal", TOKEN_MAJOR, sink_frames, remainder, half_width=half_width)

    @classmethod
    def vertical_stripe(
        cls,
        *,
        key_blocks: Iterable[int],
        order: Order = FRAME_MAJOR,
        sink_frames: int = 0,
        remainder: float | None = None,
    ) -> Pattern:
        """The listed key blocks (sorted, unique, may be none) of `order`, for all queries."""
        return cls(
            "vertical_stripe",
            order,
            sink_frames,
            remainder,
            key_blocks=_blocks("vertical_stripe", key_blocks),
        )

    @classmethod
    def periodic_tiles(
        cls,
        *,
        tile: Sequence[int],
        time: Sequence[int | None],
        space: Sequence[int | None] | None = None,
        rows: Sequence[int | None] | None = None,
        columns: Sequence[int | None] | None = None,
        sink_frames: int = 0,
        remainder: float | None = None,
    ) -> Pattern:
        """Boxes near in time and in space; a window is (width, offset, period or None), counted in boxes.

        Either `space` (the box's raster number inside its frame) or `rows` and `columns`.
        """
        windows = {"time": time, "space": space, "rows": rows, "columns": columns}
        checked = {
            name: None if window is None else _window("periodic_tiles", name, window)
            for name, window in windows.items()
        }
        order = Order("tiles", checked_tile("periodic_tiles", tile))
        return cls("periodic_tiles", order, sink_frames, remainder, **checked)  # type: ignore[arg-type]

    @classmethod
    def union(cls, *parts: Pattern, sink_frames: int = 0, remainder: float | None = None) -> Pattern:
        """What any part keeps; 1 to 64 parts of one order, without sinks or remainder of their own."""
        order = parts[0].order if parts and isinstance(parts[0], Pattern) else FRAME_MAJOR
        return cls("union", order, sink_frames, remainder, parts=parts)

    @property
    def tile(self) -> tuple[int, int, int] | None:
        """The sides of the order's boxes, None for other orders."""
        return self.order.tile

    @property
    def takes_remainder(self) -> bool:
        """Whether a remainder means anything: not for full and skip."""
        return self.kind not in ("full", "skip")

    def with_remainder(self, beta: float | None) -> Pattern:
        """The same rule with the bias `beta` (None: plain)."""
        return replace(self, remainder=beta)

    def without_remainder(self) -> Pattern:
        """The same rule, plain."""
        return self if self.remainder is None else replace(self, remainder=None)

    @property
    def family(self) -> str:
        """What it counts as in tables: its kind, but a stripe without key blocks is the own block, a diagonal."""
        is_own_block = self.kind == "vertical_stripe" and not self.key_blocks and not self.sink_frames
        return "diagonal" if is_own_block else self.kind

    @property
    def name(self) -> str:
        """A short label for tables and pictures; it need not be unique."""
        text = f"{self.kind}({self._arguments()})" if self.FIELDS[self.kind] else self.kind
        if self.sink_frames:
            text += f" + sinks({self.sink_frames})"
        return text if self.remainder is None else f"{text} + remainder({self.remainder:g})"

    def _arguments(self) -> str:
        if self.half_width is not None:
            return str(self.half_width)
        if self.key_blocks is not None:
            order = "" if self.order.kind == "frame_major" else f", {self.order.name}"
            return f"{len(self.key_blocks)} key blocks{order}"
        if self.kind == "union":
            return " | ".join(part.name for part in self.parts)
        windows = [
            f"{name}={_label(getattr(self, name))}"
            for name in ("time", "space", "rows", "columns")
            if getattr(self, name) is not None
        ]
        return ", ".join([f"tile={_label(self.tile or ())}", *windows])

    def _payload(self) -> list[int]:
        if self.half_width is not None:
            return [self.half_width]
        if self.key_blocks is not None:
            return list(self.key_blocks)
        if self.kind == "union":
            return [value for part in self.parts for value in part._wire()]
        if self.kind == "periodic_tiles":
            windows = [w for w in (self.time, self.space, self.rows, self.columns) if w is not None]
            return [0 if self.space is not None else 1, *(v or 0 for window in windows for v in window)]
        return []

    def _wire(self) -> list[int]:
        payload = self._payload()
        header = [PATTERN_KINDS.index(self.kind), *self.order.to_ints(), self.sink_frames, len(payload)]
        return header + payload

    def to_ints(self) -> NDArray[np.int64]:
        """The wire format of `csrc/pattern/pattern.h`, int64 [n]; the remainder is not part of it."""
        return np.array(self._wire(), dtype=np.int64)

    @classmethod
    def from_ints(cls, ints: Iterable[int], remainder: float | None = None) -> Pattern:
        """The inverse of `to_ints`, with a remainder put beside it."""
        values = [int(value) for value in ints]
        pattern, used = _parse(values, 0)
        if used != len(values):
            raise ValueError(f"pattern: there are {len(values)} integers, expected {used}")
        return pattern.with_remainder(remainder)

    def to_json(self) -> Json:
        """A small object: kind, and what the kind and its caller set."""
        fields: Json = {"kind": self.kind}
        if self.order != FRAME_MAJOR:
            fields["order"] = self.order.to_json()
        if self.sink_frames:
            fields["sink_frames"] = self.sink_frames
        for name in self.FIELDS[self.kind]:
            value = getattr(self, name)
            if name == "parts":
                fields[name] = [part.to_json() for part in value]
            elif value is not None:
                fields[name] = list(value) if isinstance(value, tuple) else value
        return fields if self.remainder is None else fields | {"remainder": self.remainder}

    @classmethod
    def from_json(cls, value: Any, who: str = "pattern") -> Pattern:
        """The inverse of `to_json`; strangers and wrong types are refused with a sentence.

        Raises:
            ValueError, TypeError: naming who, what is got and what was expected.
        """
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in PATTERN_KINDS:
            raise ValueError(f"{who}: kind is {shown(kind)}, expected one of {', '.join(PATTERN_KINDS)}")
        own = () if kind == "periodic_tiles" else cls.FIELDS[kind]
        windows = cls.FIELDS[kind] if kind == "periodic_tiles" else ()
        fields = dict(closed(who, value, ("kind", *own), ("order", "sink_frames", "remainder", *windows)))
        for name in (*own, *windows):
            if name != "half_width" and name in fields and not isinstance(fields[name], list):
                raise ValueError(f"{who}: {name} is {json_type(fields[name])}, expected a list")
        if "order" in fields:
            fields["order"] = Order.from_json(fields["order"], f"{who}.order")
        if kind == "union":
            fields["parts"] = cls._parts_from_json(fields["parts"], who)
        return cls(**fields)

    @classmethod
    def _parts_from_json(cls, parts: list[Any], who: str) -> tuple[Pattern, ...]:
        if not 1 <= len(parts) <= MAX_PARTS:
            raise ValueError(f"{who}: there are {len(parts)} parts, expected 1..{MAX_PARTS}")
        for number, part in enumerate(parts):
            if isinstance(part, dict) and part.get("kind") == "union":
                raise ValueError(f"{who}: part {number} is union, expected one of {', '.join(UNION_KINDS)}")
        return tuple(cls.from_json(part, f"{who}.parts[{number}]") for number, part in enumerate(parts))

    def picture(
        self, geometry: Geometry, size: int = 128, in_sequence_order: bool = True
    ) -> NDArray[np.uint8]:
        """What is computed, as a small picture.

        Args:
            geometry: the token layout.
            size: longest side in pixels.
            in_sequence_order: True shows the caller's order (multi-diagonals as diagonals), False the
                head's own.

        Returns:
            uint8 [h, w], 255 where all sampled token pairs of a pixel are visited, 0 where none is.
        """
        from sparse_vdit import _C

        ints = geometry.to_ints()
        rows, codes = _C.visits(ints, [self.to_ints()], np.zeros(1, dtype=bool))
        mask = _C.block_mask(ints, rows[0], codes)
        places = _C.places(ints, self.order.to_ints()) if in_sequence_order else np.arange(geometry.tokens)
        side = max(1, min(integer("picture", "size", size, 1, 4096), geometry.tokens))
        samples = max(1, min(8, geometry.tokens // side))
        index = (np.arange(side * samples) * geometry.tokens) // (side * samples)
        dense = mask[places[index] // geometry.block_q][:, places[index] // geometry.block_k]
        share = dense.reshape(side, samples, side, samples).mean(axis=(1, 3))
        return np.asarray(np.rint(share * 255), dtype=np.uint8)


def _label(values: Sequence[int | None]) -> str:
    return "(" + ",".join("-" if value is None else str(value) for value in values) + ")"


def _parse(values: list[int], start: int) -> tuple[Pattern, int]:
    header = values[start : start + 7]
    if len(header) < 7 or not 0 <= header[0] < len(PATTERN_KINDS):
        raise ValueError(
            f"pattern: the header at {start} is {header}, expected kind 0..6, order, sinks and a count"
        )
    kind, order, sinks, count = PATTERN_KINDS[header[0]], Order.from_ints(header[1:5]), header[5], header[6]
    end = start + 7 + count
    if count < 0 or end > len(values):
        raise ValueError(
            f"pattern: the payload at {start} has {count} integers, expected at most {len(values)}"
        )
    payload = values[start + 7 : end]
    return Pattern(kind, order, sinks, **_fields(kind, payload)), end


def _fields(kind: str, payload: list[int]) -> dict[str, Any]:
    if kind == "vertical_stripe":
        return {"key_blocks": tuple(payload)}
    if kind == "union":
        return {"parts": _parse_parts(payload)}
    expected = {"full": 0, "skip": 0, "diagonal": 1, "multi_diagonal": 1}.get(kind)
    if kind == "periodic_tiles":
        if not payload or payload[0] not in (0, 1):
            raise ValueError(f"periodic_tiles: the form is {payload[:1]}, expected 0 or 1")
        expected = 1 + 3 * (2 + payload[0])
    if len(payload) != expected:
        raise ValueError(f"{kind}: the payload has {len(payload)} integers, expected {expected}")
    if kind == "periodic_tiles":
        names = ("time", "space") if payload[0] == 0 else ("time", "rows", "columns")
        triples = [payload[1 + 3 * i : 4 + 3 * i] for i in range(len(names))]
        return {name: (w, o, p or None) for name, (w, o, p) in zip(names, triples, strict=True)}
    return {"half_width": payload[0]} if payload else {}


def _parse_parts(payload: list[int]) -> tuple[Pattern, ...]:
    parts: list[Pattern] = []
    start = 0
    while start < len(payload) and len(parts) <= MAX_PARTS:
        if payload[start] == PATTERN_KINDS.index("union"):
            raise ValueError("union: a part is union, expected one of " + ", ".join(UNION_KINDS))
        part, start = _parse(payload, start)
        parts.append(part)
    return tuple(parts)
