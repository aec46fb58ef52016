"""Where a head looks, as values: `Geometry`, `Order` and `Pattern`, frozen and hashable.

A pattern is a token rule (which key may a query attend to); what is computed is its block cover. The integers of
`to_ints` are the wire format of `csrc/pattern/pattern.h`, which also checks a pattern against a geometry; what can
be said without a geometry is said here, at construction. Next: `plan.py`.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

MAX_TOKENS = 2**31 - 1
MAX_KEY_BLOCKS = 2**24
MAX_PARTS = 64
MAX_INT = 2**31 - 1

Window = tuple[int, int, int | None]
Json = dict[str, Any]

ORDER_KINDS = ("frame_major", "token_major", "tiles")
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


def integer(who: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """Returns `value` as an int inside [low, high], or raises the sentence of this house."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{who}: {name} is {type(value).__name__}, expected an integer")
    number = operator.index(value)
    if number < low or (high is not None and number > high):
        limit = f"at least {low}" if high is None else f"{low}..{high}"
        raise ValueError(f"{who}: {name} is {number}, expected {limit}")
    return number


@dataclass(frozen=True)
class Geometry:
    """The token layout of one attention call: [prefix | frames x height x width | suffix].

    Video token (f, r, c) has the sequence index prefix + (f * height + r) * width + c. Blocks are consecutive places
    of `block_q` (`block_k`) tokens; the last one may be short.

    Args:
        frames, height, width: tokens along each axis, at least 1.
        prefix, suffix: other tokens (text, ...) before and after the video, at least 0.
        block_q, block_k: tokens per block, multiples of 16 in 16..1024.

    Raises:
        ValueError: naming the field, what it is and what was expected.
    """

    frames: int
    height: int
    width: int
    prefix: int = 0
    suffix: int = 0
    block_q: int = 128
    block_k: int = 128

    FIELDS: ClassVar[tuple[str, ...]] = (
        "frames",
        "height",
        "width",
        "prefix",
        "suffix",
        "block_q",
        "block_k",
    )

    def __post_init__(self) -> None:
        for name in self.FIELDS:
            low = 1 if name in ("frames", "height", "width") else 0
            object.__setattr__(self, name, integer("geometry", name, getattr(self, name), low))
        for name in ("block_q", "block_k"):
            size = getattr(self, name)
            if size % 16 or not 16 <= size <= 1024:
                raise ValueError(f"geometry: {name} is {size}, expected a multiple of 16 in 16..1024")
        if self.tokens > MAX_TOKENS:
            raise ValueError(f"geometry: there are {self.tokens} tokens, expected fewer than 2^31")
        if self.key_blocks > MAX_KEY_BLOCKS:
            raise ValueError(
                f"geometry: there are {self.key_blocks} key blocks, expected at most {MAX_KEY_BLOCKS}"
            )

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame."""
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        """Tokens of the video."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of the whole sequence."""
        return self.prefix + self.video_tokens + self.suffix

    @property
    def query_blocks(self) -> int:
        """Query blocks, the short last one included."""
        return -(-self.tokens // self.block_q)

    @property
    def key_blocks(self) -> int:
        """Key blocks, the short last one included."""
        return -(-self.tokens // self.block_k)

    def to_ints(self) -> tuple[int, ...]:
        """The seven fields in the order of `csrc/pattern/geometry.h`."""
        return tuple(getattr(self, name) for name in self.FIELDS)

    @classmethod
    def from_ints(cls, ints: Iterable[int]) -> Geometry:
        """The inverse of `to_ints`."""
        values = list(ints)
        if len(values) != len(cls.FIELDS):
            raise ValueError(f"geometry: there are {len(values)} integers, expected {len(cls.FIELDS)}")
        return cls(*values)

    def to_json(self) -> Json:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.FIELDS}

    @classmethod
    def from_json(cls, value: Any, who: str = "geometry") -> Geometry:
        """The inverse of `to_json`; unknown and missing fields are refused."""
        return cls(**closed(who, value, cls.FIELDS))


def closed(who: str, value: Any, required: Sequence[str], optional: Sequence[str] = ()) -> Json:
    """Returns `value` if it is an object with exactly these names, else raises, naming the first stranger."""
    names = list(value) if isinstance(value, dict) else None
    if names is None:
        raise ValueError(f"{who}: it is {json_type(value)}, expected an object")
    for name in names:
        if name not in required and name not in optional:
            raise ValueError(
                f"{who}: unknown field {str(name)[:64]!r}, expected {', '.join((*required, *optional))}"
            )
    for name in required:
        if name not in value:
            raise ValueError(f"{who}: field {name!r} is missing")
    return dict(value)


def json_type(value: Any) -> str:
    """The JSON word for a Python value, with its article."""
    words = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return words.get(
        type(value), f"the number {value}" if isinstance(value, (int, float)) else type(value).__name__
    )


@dataclass(frozen=True)
class Order:
    """A permutation of the video tokens, chosen per head; other tokens keep their places.

    `frame_major` is the model's own order, `token_major` puts all frames of one (row, column) together, `tiles(t,h,w)`
    puts boxes of t x h x w tokens together. It never changes the meaning of full attention.
    """

    kind: str
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ORDER_KINDS:
            raise ValueError(f"order: kind is {self.kind!r}, expected one of {', '.join(ORDER_KINDS)}")
        if (self.tile is None) == (self.kind == "tiles"):
            raise ValueError(
                f"order: tile is {self.tile}, expected sides for 'tiles' and None for the others"
            )
        if self.tile is not None:
            object.__setattr__(self, "tile", _tile("order", self.tile))

    @classmethod
    def frame_major(cls) -> Order:
        """The model's own order."""
        return cls("frame_major")

    @classmethod
    def token_major(cls) -> Order:
        """Position (r * W + c) * F + f: the frames of one place in the picture together."""
        return cls("token_major")

    @classmethod
    def tiles(cls, t: int, h: int, w: int) -> Order:
        """Boxes of t x h x w tokens, one after another; edge boxes are smaller."""
        return cls("tiles", (t, h, w))

    @property
    def name(self) -> str:
        """`frame_major`, `token_major` or `tiles(t,h,w)`."""
        return self.kind if self.tile is None else f"tiles({','.join(map(str, self.tile))})"

    def to_ints(self) -> tuple[int, int, int, int]:
        """Kind and tile, as in `csrc/pattern/order.h`."""
        t, h, w = self.tile or (0, 0, 0)
        return (ORDER_KINDS.index(self.kind), t, h, w)

    @classmethod
    def from_ints(cls, ints: Iterable[int]) -> Order:
        """The inverse of `to_ints`."""
        values = [int(value) for value in ints]
        if len(values) != 4 or not 0 <= values[0] < len(ORDER_KINDS):
            raise ValueError(f"order: the integers are {values[:8]}, expected kind 0..2 and three sides")
        kind, *sides = values
        if ORDER_KINDS[kind] == "tiles":
            return cls("tiles", (sides[0], sides[1], sides[2]))
        if any(sides):
            raise ValueError(f"order: the sides are {sides}, expected zeros for {ORDER_KINDS[kind]}")
        return cls(ORDER_KINDS[kind])

    def to_json(self) -> Json:
        """`kind`, and `tile` for tiles."""
        return {"kind": self.kind} | ({} if self.tile is None else {"tile": list(self.tile)})

    @classmethod
    def from_json(cls, value: Any, who: str = "order") -> Order:
        """The inverse of `to_json`."""
        fields = closed(who, value, ("kind",), ("tile",))
        tile = fields.get("tile")
        if tile is not None and not isinstance(tile, list):
            raise ValueError(f"{who}: tile is {json_type(tile)}, expected a list")
        return cls(fields["kind"], None if tile is None else tuple(tile))


FRAME_MAJOR = Order("frame_major")
TOKEN_MAJOR = Order("token_major")


def _tile(who: str, value: Any) -> tuple[int, int, int]:
    sides = _triple(who, "tile", value, "three sides (t, h, w)")
    t, h, w = (integer(who, "a side of tile", side, 1, MAX_INT) for side in sides)
    return (t, h, w)


def _triple(who: str, name: str, value: Any, expected: str) -> tuple[Any, Any, Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{who}: {name} is {type(value).__name__}, expected {expected}")
    items = tuple(value)
    if len(items) != 3:
        raise ValueError(f"{who}: {name} has {len(items)} entries, expected {expected}")
    return items


def _window(who: str, name: str, value: Any) -> Window:
    width, offset, period = _triple(who, name, value, "a window (width, offset, period or None)")
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


def _remainder(who: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{who}: remainder is {type(value).__name__}, expected a number or None")
    if not math.isfinite(value) or abs(value) > 3.4e38:
        raise ValueError(f"{who}: remainder is {value}, expected a finite number")
    return float(value)


@dataclass(frozen=True)
class Pattern:
    """Where a head looks; made by the class methods named like the kinds.

    `remainder` is the bias of the pseudo keys that stand for what is not visited, None for the plain rule. It is not
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
            raise ValueError(f"pattern: kind is {self.kind!r}, expected one of {', '.join(PATTERN_KINDS)}")
        if not isinstance(self.order, Order):
            raise TypeError(f"{self.kind}: order is {type(self.order).__name__}, expected an Order")
        put = object.__setattr__
        put(self, "sink_frames", integer(self.kind, "sink_frames", self.sink_frames, 0, MAX_INT))
        put(self, "remainder", _remainder(self.kind, self.remainder))
        getattr(self, f"_check_{self.kind}")()
        self._check_strangers()
        if self.sink_frames and self.order.kind == "token_major":
            raise ValueError(
                f"{self.kind}: sink_frames is {self.sink_frames} in token_major order, expected 0: a frame lies in "
                "every key block there, so the cover would be dense"
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
                raise ValueError(f"{self.kind}: {name} is {getattr(self, name)}, expected nothing")

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
                    f"union: part {number} is in {part.order.name} order, expected {self.order.name} like part 0"
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
    def multi_diagonal(cls, *, half_width: int, remainder: float | None = None) -> Pattern:
        """Video keys at most `half_width` tokens away in token_major order: 2F - 1 diagonals in frame_major."""
        return cls("multi_diagonal", TOKEN_MAJOR, half_width=half_width, remainder=remainder)

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
        order = Order("tiles", _tile("periodic_tiles", tile))
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
            raise ValueError(f"{who}: kind is {str(kind)[:64]!r}, expected one of {', '.join(PATTERN_KINDS)}")
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
            in_sequence_order: True shows the caller's order (multi-diagonals as diagonals), False the head's own.

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
