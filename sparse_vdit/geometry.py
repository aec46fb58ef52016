"""The token layout of an attention call and the order of its tokens: `Geometry` and `Order`, frozen values.

The integers of `to_ints` are the wire formats of `csrc/pattern/geometry.h` and `csrc/pattern/order.h`. Here
are
also the two checks that every reader of plain values uses: `integer` and `closed`. Next: `pattern.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

MAX_TOKENS = 2**31 - 1
MAX_KEY_BLOCKS = 2**24
MAX_INT = 2**31 - 1

Json = dict[str, Any]

ORDER_KINDS = ("frame_major", "token_major", "tiles")


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

    Video token (f, r, c) has the sequence index prefix + (f * height + r) * width + c. Blocks are
    consecutive places of `block_q` (`block_k`) tokens; the last one may be short.

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
                f"{who}: unknown field {shown(name)}, expected {', '.join((*required, *optional))}"
            )
    for name in required:
        if name not in value:
            raise ValueError(f"{who}: field {name!r} is missing, expected {', '.join(required)}")
    return dict(value)


def shown(value: Any) -> str:
    """A value inside a sentence, cut after 64 letters."""
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."


def json_type(value: Any) -> str:
    """The JSON word for a Python value, with its article."""
    words = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return words.get(
        type(value), f"the number {value}" if isinstance(value, (int, float)) else type(value).__name__
    )


@dataclass(frozen=True)
class Order:
    """A permutation of the video tokens, chosen per head; other tokens keep their places.

    `frame_major` is the model's own order, `token_major` puts all frames of one (row, column) together,
    `tiles(t,h,w)` puts boxes of t x h x w tokens together. It never changes the meaning of full attention.
    """

    kind: str
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ORDER_KINDS:
            raise ValueError(f"order: kind is {shown(self.kind)}, expected one of {', '.join(ORDER_KINDS)}")
        if (self.tile is None) == (self.kind == "tiles"):
            raise ValueError(
                f"order: tile is {shown(self.tile)}, expected sides for 'tiles' and None for the others"
            )
        if self.tile is not None:
            object.__setattr__(self, "tile", checked_tile("order", self.tile))

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


def checked_tile(who: str, value: Any) -> tuple[int, int, int]:
    sides = triple(who, "tile", value, "three sides (t, h, w)")
    t, h, w = (integer(who, "a side of tile", side, 1, MAX_INT) for side in sides)
    return (t, h, w)


def triple(who: str, name: str, value: Any, expected: str) -> tuple[Any, Any, Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{who}: {name} is {type(value).__name__}, expected {expected}")
    items = tuple(value)
    if len(items) != 3:
        raise ValueError(f"{who}: {name} has {len(items)} entries, expected {expected}")
    return items
