"""`LayerPlan`: one pattern per head of a layer, with the visit list that the engines read.

The visits of the distinct patterns are made once, by one call into C, and shared by all heads (and, inside a
`SparsePlan`, by all layers and bins). The layouts are those of `csrc/pattern/visits.h`. Next: `sparse.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.pattern import Geometry, Order, Pattern, checked_remainder

MAX_HEADS = 256
MAX_ROWS = 2**27  # patterns x query blocks of a pool: 2 GiB, what the largest geometry needs for one pattern
HEAD_REMAINDER = 1  # SV_HEAD_REMAINDER in csrc/attention/attention.h
NO_ITEM = -1  # a row of `items` that the engines stop at


@dataclass(frozen=True)
class PackedArrays:
    """What one attention call needs, in the layout of the torch operator; arrays are shared, not copied.

    items int32 [bins, n, 4] (rows behind a bin's own filled with -1), codes int32 [n_codes], heads int32
    [bins, H, 2] (row of `tokens` or -1, flags), betas float32 [bins, H], tokens int32 [n_orders, N].
    """

    items: NDArray[np.int32]
    codes: NDArray[np.int32]
    heads: NDArray[np.int32]
    betas: NDArray[np.float32]
    tokens: NDArray[np.int32]
    geometry: tuple[int, ...]


class VisitPool:
    """Visits of distinct patterns (or block masks) and the maps of their orders, made on first use.

    `remainder[p]` says whether any head uses pattern p with a remainder; its rows then hold the pooled
    tiles too.
    """

    def __init__(
        self,
        geometry: Geometry,
        orders: Sequence[Order],
        remainder: Sequence[bool],
        patterns: Sequence[NDArray[np.int64]] | None = None,
        masks: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        self.geometry = geometry
        self.remainder = np.array(remainder, dtype=bool)
        self._patterns, self._masks = patterns, masks
        distinct = list(dict.fromkeys(order for order in orders if order.kind != "frame_major"))
        self.orders = tuple(distinct)
        self.order_rows = [distinct.index(order) if order in distinct else -1 for order in orders]
        self._visits: tuple[NDArray[np.uint32], NDArray[np.uint32]] | None = None
        self._tokens: NDArray[np.int32] | None = None
        self._densities: list[float | None] = [None] * len(orders)

    @classmethod
    def of_patterns(
        cls, geometry: Geometry, patterns: Sequence[Pattern], remainder: Sequence[bool]
    ) -> VisitPool:
        """The pool of distinct patterns, each checked against the geometry by C."""
        wires = [pattern.to_ints() for pattern in patterns]
        for pattern, wire in zip(patterns, wires, strict=True):
            _C.pattern_check(geometry.to_ints(), wire, pattern.kind)
        return cls(geometry, [pattern.order for pattern in patterns], remainder, patterns=wires)

    @property
    def visits(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Rows uint32 [P, nq, 4] and codes uint32 [n]."""
        if self._visits is None:
            ints = self.geometry.to_ints()
            rows_asked = len(self.remainder) * self.geometry.query_blocks
            if rows_asked > MAX_ROWS:
                raise ValueError(
                    f"visits: {len(self.remainder)} patterns of {self.geometry.query_blocks} query blocks have "
                    f"{rows_asked} rows, expected at most {MAX_ROWS}"
                )
            if self._masks is not None:
                rows, codes = _C.visits_from_masks(ints, list(self._masks), self.remainder)
            else:
                rows, codes = _C.visits(ints, list(self._patterns or ()), self.remainder)
            rows.flags.writeable = codes.flags.writeable = False
            self._visits = (rows, codes)
        return self._visits

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Sequence index at each place, int32 [n_orders, N]; frame_major has no row."""
        if self._tokens is None:
            ints = self.geometry.to_ints()
            maps = [_C.tokens(ints, order.to_ints()) for order in self.orders]
            shape = (len(maps), self.geometry.tokens)
            tokens = np.ascontiguousarray(
                np.stack(maps) if maps else np.zeros(shape, np.int32), dtype=np.int32
            )
            tokens.flags.writeable = False
            self._tokens = tokens
        return self._tokens

    def density(self, number: int) -> float:
        """Visited token pairs over all token pairs, of one distinct pattern."""
        known = self._densities[number]
        if known is None:
            rows, codes = self.visits
            pairs = _C.visited_pairs(self.geometry.to_ints(), rows[number], codes)
            known = self._densities[number] = float(pairs) / float(self.geometry.tokens) ** 2
        return known

    def block_mask(self, number: int) -> NDArray[np.bool_]:
        """bool [nq, nk] of one distinct pattern."""
        rows, codes = self.visits
        mask: NDArray[np.bool_] = _C.block_mask(self.geometry.to_ints(), rows[number], codes)
        return mask


class LayerPlan:
    """One pattern per head.

    Args:
        geometry: the token layout.
        patterns: one `Pattern` per head, 1 to 256.

    Raises:
        ValueError: `layer: there are 300 heads, expected 1..256`, or a pattern that the geometry does not
            allow.

    Example:
        >>> geometry = Geometry(frames=4, height=8, width=8, prefix=8, block_q=64, block_k=64)
        >>> layer = LayerPlan(geometry, [Pattern.full(), Pattern.diagonal(half_width=63, remainder=0.0)])
        >>> layer.density(0)
        1.0
    """

    def __init__(self, geometry: Geometry, patterns: Sequence[Pattern]) -> None:
        if not isinstance(geometry, Geometry):
            raise TypeError(f"layer: geometry is {type(geometry).__name__}, expected a Geometry")
        patterns = _listed("patterns", patterns)
        _check_heads(len(patterns))
        for head, pattern in enumerate(patterns):
            if not isinstance(pattern, Pattern):
                raise TypeError(
                    f"layer: the pattern of head {head} is {type(pattern).__name__}, expected a Pattern"
                )
        rules = [pattern.without_remainder() for pattern in patterns]
        distinct = list(dict.fromkeys(rules))
        numbers = {rule: number for number, rule in enumerate(distinct)}
        choice = [numbers[rule] for rule in rules]
        remainders = [pattern.remainder for pattern in patterns]
        pooled = [False] * len(distinct)
        for number, beta in zip(choice, remainders, strict=True):
            pooled[number] |= beta is not None
        self._fill(VisitPool.of_patterns(geometry, distinct, pooled), choice, remainders, patterns)

    def _fill(
        self,
        pool: VisitPool,
        choice: Sequence[int],
        remainders: Sequence[float | None],
        patterns: tuple[Pattern, ...],
    ) -> None:
        self.geometry = pool.geometry
        self.patterns = patterns
        self.remainders = tuple(remainders)
        self._pool = pool
        self._choice = np.array(choice, dtype=np.int32)
        self._remainder = np.array([beta is not None for beta in remainders], dtype=bool)
        self._items: NDArray[np.uint32] | None = None
        self._packed: PackedArrays | None = None
        self._on_device: dict[str, Any] = {}

    @classmethod
    def from_pool(
        cls,
        pool: VisitPool,
        choice: Sequence[int],
        remainders: Sequence[float | None],
        patterns: tuple[Pattern, ...],
    ) -> LayerPlan:
        """A layer over the visits of a whole plan: `choice` [H] numbers the pool's patterns."""
        _check_heads(len(choice))
        layer = cls.__new__(cls)
        layer._fill(pool, choice, remainders, patterns)
        return layer

    @classmethod
    def from_block_masks(
        cls,
        geometry: Geometry,
        masks: Sequence[Any],
        orders: Sequence[Order] | None = None,
        remainders: Sequence[float | None] | None = None,
    ) -> LayerPlan:
        """A layer from explicit block masks, for controls and tests; a plan of such layers is never saved.

        Args:
            geometry: the token layout.
            masks: one bool [ceil(N / block_q), ceil(N / block_k)] per head, in the head's own order.
            orders: the order of each head, default frame_major.
            remainders: the bias of each head, default None = plain.
        """
        if not isinstance(geometry, Geometry):
            raise TypeError(f"layer: geometry is {type(geometry).__name__}, expected a Geometry")
        masks = _listed("masks", masks)
        heads = len(masks)
        _check_heads(heads)
        orders = [Order.frame_major()] * heads if orders is None else list(orders)
        betas = (
            [None] * heads
            if remainders is None
            else [checked_remainder("layer", beta) for beta in remainders]
        )
        for name, values in (("orders", orders), ("remainders", betas)):
            if len(values) != heads:
                raise ValueError(f"layer: there are {len(values)} {name}, expected {heads} (= the masks)")
        for head, order in enumerate(orders):
            if not isinstance(order, Order):
                raise TypeError(
                    f"layer: the order of head {head} is {type(order).__name__}, expected an Order"
                )
        checked = [_mask(geometry, head, mask) for head, mask in enumerate(masks)]
        pool = VisitPool(geometry, orders, [beta is not None for beta in betas], masks=checked)
        return cls.from_pool(pool, range(heads), betas, ())

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self._choice)

    @property
    def has_masks(self) -> bool:
        """Whether it was made from block masks instead of patterns."""
        return not self.patterns

    @property
    def rows(self) -> NDArray[np.uint32]:
        """uint32 [P, nq, 4], the visits of each distinct pattern."""
        return self._pool.visits[0]

    @property
    def codes(self) -> NDArray[np.uint32]:
        """uint32 [n], the code words the rows point into."""
        return self._pool.visits[1]

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32 [n_orders, N], the sequence index at each place of each order that is not frame_major."""
        return self._pool.tokens

    @property
    def choice(self) -> NDArray[np.int32]:
        """int32 [H], which row set each head reads."""
        return self._choice

    @cached_property
    def head_table(self) -> NDArray[np.int32]:
        """int32 [H, 2]: row of `tokens` or -1 (the caller's own order), and flags (1 = remainder)."""
        orders = [self._pool.order_rows[number] for number in self._choice]
        flags = np.where(self._remainder, HEAD_REMAINDER, 0)
        return _frozen(np.ascontiguousarray(np.stack([orders, flags], axis=1), dtype=np.int32))

    @cached_property
    def betas(self) -> NDArray[np.float32]:
        """float32 [H], the bias of each head; 0 where it has no remainder."""
        return _frozen(np.array([beta or 0.0 for beta in self.remainders], dtype=np.float32))

    def items(self) -> NDArray[np.uint32]:
        """uint32 [n, 4], the work items of all heads, longest first; skipped heads have none."""
        if self._items is None:
            items = _C.items(self.geometry.to_ints(), self.rows, self._choice, self._remainder)
            items.flags.writeable = False
            self._items = items
        return self._items

    def block_mask(self, head: int) -> NDArray[np.bool_]:
        """What is computed: bool [ceil(N / block_q), ceil(N / block_k)], in the head's own order."""
        return self._pool.block_mask(int(self._choice[self._head(head)]))

    def places(self, head: int) -> NDArray[np.int64]:
        """int64 [N], the place of each sequence index in the head's order."""
        row = self._pool.order_rows[self._choice[self._head(head)]]
        order = Order.frame_major() if row < 0 else self._pool.orders[row]
        places: NDArray[np.int64] = _C.places(self.geometry.to_ints(), order.to_ints())
        return places

    def order(self, head: int) -> Order:
        """The order of a head."""
        row = self._pool.order_rows[self._choice[self._head(head)]]
        return Order.frame_major() if row < 0 else self._pool.orders[row]

    def density(self, head: int | None = None) -> float:
        """Share of token pairs that is computed, of one head or (None) the mean over heads."""
        if head is None:
            return float(np.mean([self._pool.density(int(number)) for number in self._choice]))
        return self._pool.density(int(self._choice[self._head(head)]))

    def _head(self, head: int) -> int:
        if isinstance(head, bool) or not hasattr(head, "__index__"):
            raise TypeError(f"layer: head is {type(head).__name__}, expected an integer")
        if not -self.heads <= head < self.heads:
            raise IndexError(f"layer: head is {head}, expected 0..{self.heads - 1}")
        return head

    def packed(self) -> PackedArrays:
        """The arrays of the torch operator, with one bin; made once, read-only."""
        if self._packed is None:
            self._packed = pack([self])
        return self._packed

    def on_device(self, device: str, make: Callable[[], Any]) -> Any:
        """What `make` makes of this layer on a device, made once: a layer never changes."""
        if device not in self._on_device:
            self._on_device[device] = make()
        return self._on_device[device]

    def __repr__(self) -> str:
        kinds = "block masks" if self.has_masks else ", ".join(pattern.name for pattern in self.patterns[:4])
        return f"LayerPlan({self.heads} heads: {kinds}{', ...' if len(self.patterns) > 4 else ''})"


def pack(layers: Sequence[LayerPlan]) -> PackedArrays:
    """The arrays of the torch operator for one layer, `layers[b]` = what it does in bin b.

    Layers that share a pool share its codes and tokens; the codes of others are put behind one another.
    """
    pools = list({id(layer._pool): layer._pool for layer in layers}.values())
    codes, tokens, first_code, first_order = [], [], {}, {}
    n_codes = n_orders = 0
    for pool in pools:
        first_code[id(pool)], first_order[id(pool)] = n_codes, n_orders
        codes.append(pool.visits[1])
        tokens.append(pool.tokens)
        n_codes, n_orders = n_codes + len(codes[-1]), n_orders + len(tokens[-1])
    listed = [_shifted(layer.items(), first_code[id(layer._pool)]) for layer in layers]
    items = np.full((len(layers), max(len(rows) for rows in listed), 4), NO_ITEM, dtype=np.int32)
    for bin_, rows in enumerate(listed):
        items[bin_, : len(rows)] = rows.view(np.int32)
    heads = np.stack([layer.head_table for layer in layers])
    for bin_, layer in enumerate(layers):
        heads[bin_, :, 0] += np.where(heads[bin_, :, 0] >= 0, first_order[id(layer._pool)], 0).astype(
            np.int32
        )
    return PackedArrays(
        items=_frozen(items),
        codes=_frozen((codes[0] if len(codes) == 1 else np.concatenate(codes)).view(np.int32)),
        heads=_frozen(heads),
        betas=_frozen(np.stack([layer.betas for layer in layers])),
        tokens=_frozen(tokens[0] if len(tokens) == 1 else np.concatenate(tokens)),
        geometry=layers[0].geometry.to_ints(),
    )


def _shifted(items: NDArray[np.uint32], first_code: int) -> NDArray[np.uint32]:
    """Items whose lists start `first_code` words later; ranges (kind 1) hold key blocks and stay."""
    if first_code == 0:
        return items
    moved = items.copy()
    moved[moved[:, 0] >> 24 == 0, 2] += np.uint32(first_code)
    return moved


def _listed(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes, Pattern)) or not hasattr(values, "__iter__"):
        raise TypeError(f"layer: {name} is {type(values).__name__}, expected one per head")
    return tuple(values)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _check_heads(heads: int) -> None:
    if not 1 <= heads <= MAX_HEADS:
        raise ValueError(f"layer: there are {heads} heads, expected 1..{MAX_HEADS}")


def _mask(geometry: Geometry, head: int, mask: Any) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"layer: the mask of head {head} is {array.dtype}, expected bool")
    expected = (geometry.query_blocks, geometry.key_blocks)
    if array.shape != expected:
        raise ValueError(f"layer: the mask of head {head} has shape {array.shape}, expected {expected}")
    return np.ascontiguousarray(array)
