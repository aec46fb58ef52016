"""Exact visited-block counts at real grids, from the token rule of `masks.py`, one query block at a time.

    python tests/kit/block_counts.py        # rewrites block_counts.json beside it: ten minutes on one core

For the tokens of a query block the rule is asked against every key token of the sequence, then blocks are
counted. Query tokens for which the rule cannot differ (tokens of one box) are asked once. Nothing here reads
a visit list or calls the package.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from kit import masks

FILE = Path(__file__).with_suffix(".json")
Spec = dict[str, Any]

GRIDS: dict[str, Spec] = {
    "11x48x85+226 (text first)": {"frames": 11, "height": 48, "width": 85, "prefix": 226},
    "33x45x80+256 (text last)": {"frames": 33, "height": 45, "width": 80, "suffix": 256},
    "21x45x80": {"frames": 21, "height": 45, "width": 80, "block_q": 192},
    "21x30x52": {"frames": 21, "height": 30, "width": 52, "block_q": 64, "block_k": 64},
}


def geometry_of(spec: Spec) -> SimpleNamespace:
    return SimpleNamespace(**{"prefix": 0, "suffix": 0, "block_q": 128, "block_k": 128, **spec})


def tiles(*tile: int) -> Spec:
    return {"kind": "tiles", "tile": list(tile)}


def periodic(tile: list[int], **fields: Any) -> Spec:
    return {"kind": "periodic_tiles", "order": tiles(*tile), **fields}


def specs(grid: Spec) -> list[Spec]:
    """The patterns counted at a grid: every family, both forms of tiles, sinks, unions."""
    frames, frame_tokens = grid["frames"], grid["height"] * grid["width"]
    tokens = frames * frame_tokens + grid.get("prefix", 0) + grid.get("suffix", 0)
    n_blocks = -(-tokens // grid.get("block_k", 128))
    token_major = {"kind": "token_major", "tile": None}
    band = {"kind": "multi_diagonal", "order": token_major, "half_width": 9 * frames + 1}
    radial = [
        periodic([1, 5, 4], time=[1, d, None], space=[max(1, 24 >> d.bit_length()), 0, None])
        for d in range(5)
    ]
    one_token = [periodic([1, 1, 1], time=[2, 1, 4], rows=[3, 0, 10], columns=[2, 5, None])]
    return [
        *(one_token if tokens < 40_000 else []),  # a box for every token: too slow to count at the others
        {"kind": "full"},
        {"kind": "skip"},
        {"kind": "diagonal", "half_width": frame_tokens // 2},
        {"kind": "diagonal", "half_width": 2 * frame_tokens - 1, "sink_frames": 1},
        {"kind": "multi_diagonal", "order": token_major, "half_width": 40 * frames},
        {"kind": "vertical_stripe", "key_blocks": list(range(3, n_blocks, 9)), "sink_frames": 2},
        {"kind": "vertical_stripe", "order": token_major, "key_blocks": [0, 1, n_blocks - 2, n_blocks - 1]},
        periodic([3, 5, 8], time=[2, 0, None], space=[9, 0, None], sink_frames=1),
        periodic([2, 4, 5], time=[1, 3, 5], rows=[2, 1, None], columns=[2, 3, 7]),
        periodic([4, 16, 16], time=[2, 0, None], rows=[2, 0, None], columns=[2, 0, None], sink_frames=3),
        {"kind": "union", "parts": [{"kind": "diagonal", "half_width": 700}], "sink_frames": 1},
        {
            "kind": "union",
            "order": token_major,
            "parts": [band, {"kind": "vertical_stripe", "order": token_major, "key_blocks": [5, 17, 40]}],
        },
        {"kind": "union", "order": tiles(1, 5, 4), "parts": radial},
    ]


def pattern_of(spec: Spec) -> SimpleNamespace:
    """A spec as an object with the attributes that `masks.py` asks for."""
    fields: Spec = dict.fromkeys(("half_width", "key_blocks", "time", "space", "rows", "columns"))
    fields |= {"order": {"kind": "frame_major", "tile": None}, "sink_frames": 0, "parts": [], **spec}
    fields["order"] = SimpleNamespace(**fields["order"])
    fields["parts"] = [pattern_of(part) for part in fields["parts"]]
    return SimpleNamespace(**fields)


class Keys:
    """Where every video token lies, by video index; the rule for a few queries against all keys."""

    def __init__(self, geometry: Any, pattern: Any) -> None:
        self.geometry, self.pattern = geometry, pattern
        self.x = masks.positions(geometry, pattern.order).astype(np.int32)
        self.key_block = (geometry.prefix + self.x) // geometry.block_k
        if pattern.order.kind == "tiles":
            bt, br, bc = masks.boxes(geometry, pattern.order.tile)
            per_row = -(-geometry.width // pattern.order.tile[2])
            self.box = np.stack([bt, br, bc, br * per_row + bc]).astype(np.int32)  # [4, V]

    def kept(self, part: Any, queries: np.ndarray) -> np.ndarray:
        """Keys that at least one of the queries (video indices) keeps under the rule of `part`, [V]."""
        if part.kind == "full":
            return np.ones(len(self.x), bool)
        if part.kind in ("diagonal", "multi_diagonal"):
            apart = np.abs(self.x[queries][:, None] - self.x[None, :])
            return (apart <= part.half_width).any(axis=0)
        if part.kind == "vertical_stripe":
            return np.isin(self.key_block, part.key_blocks)
        if part.kind == "periodic_tiles":
            return self._near(part, np.unique(self.box[:, queries], axis=1))
        if part.kind == "union":
            return np.any([self.kept(p, queries) for p in part.parts], axis=0)
        raise ValueError(f"block_counts: no rule for {part.kind!r}")

    def _near(self, part: Any, boxes: np.ndarray) -> np.ndarray:
        axes = {0: part.time, 1: part.rows, 2: part.columns, 3: part.space}
        out = np.zeros(len(self.x), bool)
        for box in boxes.T:
            kept = np.ones(len(self.x), bool)
            for axis, window in axes.items():
                if window is not None:
                    kept &= masks.near(self.box[axis] - box[axis], window)
            out |= kept
        return out


def rows_of(geometry: Any, pattern: Any) -> np.ndarray:
    """The block cover, [nq, nk], one query block after another."""
    n, block_q, block_k = masks.tokens(geometry), geometry.block_q, geometry.block_k
    n_video = geometry.frames * geometry.height * geometry.width
    place = masks.places(geometry, pattern.order)
    token_at = np.argsort(place)
    keys = Keys(geometry, pattern)
    frame, _, _ = masks.coordinates(geometry)
    sinks = frame < pattern.sink_frames
    cover = np.zeros((-(-n // block_q), -(-n // block_k)), bool)
    for a in range(0 if pattern.kind == "skip" else len(cover)):
        queries = token_at[a * block_q : (a + 1) * block_q] - geometry.prefix
        kept = np.ones(n, bool)  # keys by sequence index: other tokens are dense
        if ((queries >= 0) & (queries < n_video)).all():
            video = keys.kept(pattern, queries) | sinks
            video[queries] = True  # itself
            kept[geometry.prefix : geometry.prefix + n_video] = video
        cover[a] = np.logical_or.reduceat(kept[token_at], np.arange(0, n, block_k))
    return cover


def digest(cover: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(cover).tobytes()).hexdigest()[:16]


def count(grid: Spec, spec: Spec) -> Spec:
    geometry = geometry_of(grid)
    cover = rows_of(geometry, pattern_of(spec))
    return {
        "geometry": grid,
        "pattern": spec,
        "visited_blocks": int(cover.sum()),
        "density": masks.density(geometry, cover),
        "digest": digest(cover),
    }


def main() -> None:
    out = []
    for name, grid in GRIDS.items():
        for spec in specs(grid):
            start = time.monotonic()
            out.append(count(grid, spec))
            print(
                f"{name} {spec['kind']}: {out[-1]['visited_blocks']}, {time.monotonic() - start:.0f} s",
                flush=True,
            )
    FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in out) + "\n]\n")


if __name__ == "__main__":
    main()
