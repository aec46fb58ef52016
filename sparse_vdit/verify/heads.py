"""Attention pictures of a plan's example heads: softmax maps of one dense step, made small while they are computed.

No map of all tokens is ever in memory: of every display row a few query rows are computed against all keys, and the
largest weights of a cell stay. Kept in `heads.safetensors` with the hash of the plan whose orders they are in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import Json, closed, integer, shown
from sparse_vdit.plan import LayerPlan, SparsePlan, TransformerPlan
from sparse_vdit.report.figures import MAP_SIDE, HeadMap
from sparse_vdit.search import Sample

from .source import Source
from .stock import EnoughSteps
from .tensors import load_arrays, save_arrays

FORMAT = "sparse_vdit.heads 1"
FILE_NAME = "heads.safetensors"
HEADS = 6
ROWS_PER_CELL = 4  # query rows computed of a display row

Place = tuple[str, int, int, int]  # transformer, bin, layer, head


@dataclass(frozen=True)
class Picture:
    """The small map of one head.

    Attributes:
        place: transformer, bin, layer, head.
        noise: noise level of the step.
        recall: share of the attention mass in the blocks that the plan computes.
        weights: float32 [n, n], largest softmax weight in every cell, in the head's own order.
    """

    place: Place
    noise: float
    recall: float
    weights: NDArray[np.float32]


def example_heads(plan: SparsePlan, bin_: int, count: int = HEADS) -> list[Place]:
    """Up to `count` heads of one bin, as many kinds of pattern as possible, spread over the layers."""
    waiting: dict[str, list[Place]] = {}
    for name, part in plan.transformers.items():
        for layer, row in enumerate(part.kinds()[min(bin_, part.shape[0] - 1)]):
            for head, kind in enumerate(row):
                place = (name, min(bin_, part.shape[0] - 1), layer, head)
                waiting.setdefault(kind, []).append(place)
    found: list[Place] = []
    while len(found) < count and any(waiting.values()):
        for places in waiting.values():
            if places and len(found) < count:
                found.append(places.pop(len(places) // 2))
    return sorted(found)


def middle_step(plan: SparsePlan, noise: Sequence[float]) -> int:
    """The middle one of the steps that the plan does not leave dense; the middle one of all where it leaves all."""
    parts = list(plan.transformers.values())
    sparse = [
        step for step, level in enumerate(noise) if any(part.bin_of(level) is not None for part in parts)
    ]
    listed = sparse or list(range(len(noise)))
    return listed[len(listed) // 2]


def take_pictures(source: Source, plan: SparsePlan, sample: Sample, noise: Sequence[float]) -> list[Picture]:
    """Runs a dense generation up to the middle sparse step and keeps the maps of example heads there.

    Args:
        source: without a plan.
        plan: whose heads, and in whose orders.
        sample: the generation.
        noise: noise level of every step.
    """
    from sparse_vdit.models import observe

    step = middle_step(plan, noise)
    bins = {name: part.bin_of(noise[step]) for name, part in plan.transformers.items()}
    bin_ = next((found for found in bins.values() if found is not None), 0)
    found: list[Picture] = []
    camera = _Camera(source.pipe, plan, example_heads(plan, bin_), step, found)
    try:
        with observe(source.pipe, camera), camera.watching():
            source.make(sample, source.steps, False)
    except EnoughSteps:
        pass
    return sorted(found, key=lambda picture: picture.place)


class _Camera:
    """A recorder that keeps the maps of some heads at one step."""

    def __init__(
        self, pipe: Any, plan: SparsePlan, places: Sequence[Place], step: int, found: list[Picture]
    ) -> None:
        self.pipe, self.plan, self.places, self.step, self.found = pipe, plan, places, step, found
        self.current = next(iter(plan.transformers))

    def watching(self) -> Any:
        """Lets the camera know which transformer attends."""
        from contextlib import ExitStack

        from sparse_vdit.models.install import transformers_of

        stack = ExitStack()
        for name, module in transformers_of("verify", self.pipe).items():
            hook = module.register_forward_pre_hook(lambda *_, name=name: setattr(self, "current", name))
            stack.callback(hook.remove)
        return stack

    def __call__(self, step: int, noise_level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> None:
        if step > self.step:
            raise EnoughSteps
        if step < self.step:
            return
        taken = {picture.place for picture in self.found}
        for place in self.places:
            if place[0] != self._name() or place[2] != layer or place in taken:
                continue
            sheet = self.plan.for_transformer(place[0]).layer(place[1], layer)
            length = None if dense.kv_len is None else int(dense.kv_len[-1])
            query, key = (tensor[-1, place[3]].detach().float().cpu().numpy() for tensor in (q, k))
            weights, recall = small_map(sheet, place[3], query, key, length)
            self.found.append(Picture(place, float(noise_level), recall, weights))

    def _name(self) -> str:
        """A plan of one transformer may serve both experts."""
        return self.current if self.current in self.plan.transformers else next(iter(self.plan.transformers))


def small_map(
    sheet: LayerPlan, head: int, q: NDArray[np.float32], k: NDArray[np.float32], kv_len: int | None = None
) -> tuple[NDArray[np.float32], float]:
    """The attention of one head in its own order, at most `MAP_SIDE` cells wide, and the recall of its blocks.

    Args:
        sheet: the layer's plan.
        head: which.
        q, k: float32 [N, D], in the model's order.
        kv_len: keys at or beyond it take no part.
    """
    geometry = sheet.geometry
    n = geometry.tokens
    tokens = np.argsort(sheet.places(head))  # place -> sequence index
    edges = np.arange(0, n, -(-n // MAP_SIDE))
    mask = sheet.block_mask(head)
    weights = np.zeros((len(edges), len(edges)), dtype=np.float32)
    inside = total = 0.0
    keys = k[tokens].T * np.float32(q.shape[-1] ** -0.5)
    dead = tokens >= kv_len if kv_len is not None else None
    for cell, (start, stop) in enumerate(zip(edges, [*edges[1:], n], strict=True)):
        rows = np.unique(np.linspace(start, stop - 1, min(ROWS_PER_CELL, stop - start)).astype(int))
        logits = q[tokens[rows]] @ keys
        if dead is not None:
            logits[:, dead] = -np.inf
        logits -= logits.max(axis=1, keepdims=True)
        soft = np.exp(logits)
        soft /= soft.sum(axis=1, keepdims=True)
        weights[cell] = np.maximum.reduceat(soft.max(axis=0), edges)
        blocks = np.add.reduceat(soft, np.arange(0, n, geometry.block_k), axis=1)
        inside += float(blocks[mask[rows // geometry.block_q]].sum())
        total += len(rows)
    return weights, inside / total


def head_maps(plan: SparsePlan, pictures: Sequence[Picture]) -> list[HeadMap]:
    """The pictures as `report.figures.attention_maps` draws them."""
    return [_head_map(plan.for_transformer(picture.place[0]), picture) for picture in pictures]


def _head_map(part: TransformerPlan, picture: Picture) -> HeadMap:
    name, bin_, layer, head = picture.place
    sheet, geometry = part.layer(bin_, layer), part.geometry
    order = sheet.order(head)
    borders = range(geometry.frames + 1) if order.kind == "frame_major" and geometry.frames <= 64 else ()
    return HeadMap(
        title=f"layer {layer}, head {head}" + (", second expert" if name == "transformer_2" else ""),
        family=part.kinds()[bin_][layer][head],
        order=order.name,
        density=sheet.density(head),
        recall=picture.recall,
        weights=picture.weights,
        mask=sheet.block_mask(head),
        blocks=(geometry.block_q, geometry.block_k),
        borders=tuple(geometry.prefix + frame * geometry.frame_tokens for frame in borders),
        tokens=geometry.tokens,
    )


def save_pictures(folder: str | os.PathLike[str], plan: SparsePlan, pictures: Sequence[Picture]) -> Path:
    """Writes `folder/heads.safetensors`, the old file or the new one."""
    about: Json = {
        "plan_hash": plan.hash,
        "pictures": [
            {"place": list(picture.place), "noise": picture.noise, "recall": picture.recall}
            for picture in pictures
        ],
    }
    arrays = {f"{number:03d}": picture.weights for number, picture in enumerate(pictures)}
    return save_arrays(Path(folder) / FILE_NAME, FORMAT, about, arrays)


def load_pictures(folder: str | os.PathLike[str], plan: SparsePlan) -> list[Picture]:
    """Reads `folder/heads.safetensors`; empty if there is none, or if it is of another plan.

    Raises:
        ValueError: a file that cannot be read; one sentence.
    """
    found = load_arrays(Path(folder) / FILE_NAME, FORMAT, ("plan_hash", "pictures"))
    if found is None or found[0]["plan_hash"] != plan.hash:
        return []
    listed, arrays = found[0]["pictures"], found[1]
    if not isinstance(listed, list) or len(listed) > 64:
        raise ValueError("heads: pictures is no list of at most 64, expected one")
    return [_picture(plan, entry, arrays.get(f"{number:03d}")) for number, entry in enumerate(listed)]


def _picture(plan: SparsePlan, value: Any, weights: NDArray[Any] | None) -> Picture:
    fields = closed("heads.picture", value, ("place", "noise", "recall"))
    place = fields["place"]
    if not isinstance(place, list) or len(place) != 4 or place[0] not in plan.transformers:
        raise ValueError(f"heads: a place is {shown(place)}, expected [transformer, bin, layer, head]")
    for what, number, count in zip(
        ("bin", "layer", "head"), place[1:], plan.for_transformer(place[0]).shape, strict=True
    ):
        integer("heads", what, number, 0, count - 1)
    good = weights is not None and weights.dtype == np.float32 and weights.ndim == 2
    if not good or weights is None or max(weights.shape) > MAP_SIDE or not np.isfinite(weights).all():
        raise ValueError(
            f"heads: a map is missing or not finite float32 of at most {MAP_SIDE} cells, expected one"
        )
    for name in ("noise", "recall"):
        if isinstance(fields[name], bool) or not isinstance(fields[name], (int, float)):
            raise ValueError(f"heads: {name} is {shown(fields[name])}, expected a number")
    return Picture((place[0], *place[1:]), float(fields["noise"]), float(fields["recall"]), weights)
