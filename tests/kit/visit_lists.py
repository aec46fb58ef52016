"""A second reader of visit lists, written from the drawing in csrc/pattern/visits.h, one code at a time.

It is strict: what the drawing does not allow is an AssertionError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Row:
    """One query block: visited key blocks and, if pooled tiles follow, the blocks whose bit is set."""

    visited: list[int] = field(default_factory=list)
    pooled: list[int] = field(default_factory=list)
    tiles: int = 0
    codes: int = 0


def _fields(code: int) -> tuple[int, int, int, int]:
    return code & 0xFFFFFF, code >> 24 & 0xF, code >> 28 & 7, code >> 31


def _visits(words: list[int], geometry: Any, row: Row) -> None:
    short = geometry.key_blocks - 1 if geometry.tokens % geometry.block_k else None
    at = 0
    while at < len(words):
        number, source, form, partial = _fields(words[at])
        assert source == 0
        assert form in (0, 1)
        count = words[at + 1] if form else 1
        assert count >= 2 or not form
        blocks = list(range(number, number + count))
        assert not row.visited or number > row.visited[-1], "ascending, each block once"
        assert blocks[-1] < geometry.key_blocks
        assert partial == (number == short and not form)
        assert not form or blocks[-1] != short, "the short last block is never inside a run"
        joined = bool(row.visited) and number == row.visited[-1] + 1
        assert not joined or number == short, "neighbouring blocks are one run"
        row.visited += blocks
        row.codes += 1
        at += 2 if form else 1


def _pooled(words: list[int], geometry: Any, row: Row) -> None:
    n_words = -(-geometry.block_k // 32)
    before = -1
    for at in range(0, len(words), 1 + n_words):
        number, source, form, partial = _fields(words[at])
        assert source == 3
        assert form == 0
        assert before < number < -(-geometry.key_blocks // geometry.block_k)
        before = number
        bits = sum(word << 32 * i for i, word in enumerate(words[at + 1 : at + 1 + n_words]))
        assert 0 < bits < 1 << geometry.block_k, "tiles without a set bit are left out"
        assert partial == (bits != (1 << geometry.block_k) - 1)
        row.pooled += [number * geometry.block_k + i for i in range(geometry.block_k) if bits >> i & 1]
        row.tiles += 1


def read_row(words: np.ndarray, codes: np.ndarray, geometry: Any) -> Row:
    first, n_words, n_pooled, n_blocks = (int(w) for w in words)
    row = Row()
    if n_words == 0 and n_blocks > 0:
        assert n_pooled == 0
        row.visited = list(range(first, first + n_blocks))
        assert row.visited[-1] < geometry.key_blocks
        return row
    assert first + n_words + n_pooled <= len(codes)
    _visits([int(w) for w in codes[first : first + n_words]], geometry, row)
    _pooled([int(w) for w in codes[first + n_words : first + n_words + n_pooled]], geometry, row)
    assert len(row.visited) == n_blocks
    return row


def read_rows(rows: np.ndarray, codes: np.ndarray, geometry: Any) -> list[Row]:
    """All rows of one pattern, [nq]."""
    assert rows.shape == (geometry.query_blocks, 4)
    return [read_row(words, codes, geometry) for words in rows]


def mask_of(read: list[Row], geometry: Any) -> np.ndarray:
    mask = np.zeros((geometry.query_blocks, geometry.key_blocks), bool)
    for a, row in enumerate(read):
        mask[a, row.visited] = True
    return mask
