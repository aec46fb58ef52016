"""A stock pipeline whose SDPA is the oracle: the truth that a pipeline under a sparse plan must meet.

`mixed_plan` makes a plan with another pattern in every bin, layer and head; `oracle(pipe, plan)` replaces
F.scaled_dot_product_attention inside the modules that attend over the whole sequence by `masks.attention`,
which knows the token rules and no visit list. Hooks tell it where it is: the layer is the number of the
module that runs (caches skip modules, so calls are not counted), the bin follows from the timestep handed to
the transformer and the plan's edges, by the definition alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kit import masks
from kit.tiny import Tiny
from sparse_vdit import Geometry, Order, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity, TransformerPlan


def geometry_of(tiny: Tiny, block: int = 16) -> Geometry:
    """The geometry of a tiny pipeline's runs."""
    return Geometry(**tiny.layout, block_q=block, block_k=block)


def layer_patterns() -> list[list[Pattern]]:
    """Two heads each: every family, orders other than frame_major, sinks, skip and full among them."""
    tile = {"tile": (2, 4, 4), "time": (1, 0, None)}
    return [
        [Pattern.diagonal(half_width=20, sink_frames=1), Pattern.multi_diagonal(half_width=12)],
        [Pattern.vertical_stripe(key_blocks=[0, 2]), Pattern.periodic_tiles(**tile, space=(1, 1, 2))],
        [
            Pattern.union(
                Pattern.multi_diagonal(half_width=4),
                Pattern.vertical_stripe(key_blocks=[1], order=Order.token_major()),
            ),
            Pattern.skip(),
        ],
        [Pattern.full(), Pattern.diagonal(half_width=0)],
    ]


def mixed_plan(
    tiny: Tiny,
    *,
    remainder: float | None = None,
    bins: Sequence[float] = (0.0, 1.0),
    dense_above: float = 1.0,
    pipe: Any = None,
) -> SparsePlan:
    """A plan that differs by bin, layer and head, for one transformer of a tiny pipeline.

    A bin has the patterns of the next layer of the bin before, and a `remainder` greater by 0.5.
    """
    model = ModelIdentity.from_transformer((pipe or tiny.pipe).transformer)
    rows = layer_patterns()
    table = [
        [rows[(number + layer) % len(rows)] for layer in range(model.layers)]
        for number in range(len(bins) - 1)
    ]
    patterns = list(dict.fromkeys(itertools.chain.from_iterable(itertools.chain.from_iterable(table))))
    choice = np.array([[[patterns.index(pattern) for pattern in row] for row in layers] for layers in table])
    betas = None
    if remainder is not None:
        takes = np.array([pattern.takes_remainder for pattern in patterns])
        values = remainder + 0.5 * np.arange(len(table))[:, None, None]
        betas = np.where(takes[choice], values, np.nan)
    return SparsePlan(
        TransformerPlan(model, geometry_of(tiny), patterns, choice, betas, bins=bins, dense_above=dense_above)
    )


def uniform_plan(tiny: Tiny, pattern: Pattern, **options: Any) -> SparsePlan:
    """One pattern everywhere."""
    return SparsePlan.uniform(tiny.pipe.transformer, geometry_of(tiny), pattern, **options)


def bin_at(part: TransformerPlan, level: float) -> int | None:
    """The interval of noise level that holds `level`; None: the step is dense."""
    if level > part.dense_above:
        return None
    return sum(level >= edge for edge in part.bins[1:-1])


class Oracle:
    """The attention of a plan, at the place where the pipeline is.

    Attributes:
        calls: whole-sequence calls by bin; None: dense steps, left to the stock attention.
    """

    def __init__(self, pipe: Any, plan: SparsePlan) -> None:
        self.calls: Counter[int | None] = Counter()
        self._train_timesteps = pipe.scheduler.config.num_train_timesteps
        self._stock = F.scaled_dot_product_attention
        self._part = next(iter(plan.transformers.values()))
        self._bin: int | None = None
        self._layer: int | None = None
        self._heads: dict[Any, list[Any]] = {}
        self._hooks: list[Any] = []
        for name in ("transformer", "transformer_2"):
            if getattr(pipe, name, None) is not None:
                part = plan.transformers[name] if len(plan.transformers) > 1 else plan.sole
                self._watch(getattr(pipe, name), part)

    def remove(self) -> None:
        """Take the hooks off the pipeline."""
        for hook in self._hooks:
            hook.remove()

    def attention(
        self, query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """In place of F.scaled_dot_product_attention."""
        if self._layer is None:
            return self._stock(query, key, value, attn_mask, *args, **kwargs)
        assert query.shape[2] == key.shape[2] == self._part.geometry.tokens
        self.calls[self._bin] += 1
        if self._bin is None:
            return self._stock(query, key, value, attn_mask, *args, **kwargs)
        out = torch.empty_like(query)
        for sample in range(query.shape[0]):
            kv_len = None if attn_mask is None else int(attn_mask[sample].sum())
            for head in range(query.shape[1]):
                rows = [tensor[sample, head].double().numpy() for tensor in (query, key, value)]
                out[sample, head] = torch.from_numpy(self._one_head(head, rows, kv_len)).to(out.dtype)
        return out

    def _one_head(self, head: int, rows: list[Any], kv_len: int | None) -> Any:
        """rows: query, key, value, each [N, D]."""
        block_mask, place, beta = self._masks()[head]
        scale = rows[0].shape[-1] ** -0.5
        return masks.attention(*rows, self._part.geometry, block_mask, place, scale, kv_len, beta)[0]

    def _masks(self) -> list[Any]:
        """Block mask, places and remainder of every head here."""
        key = (id(self._part), self._bin, self._layer)
        if key not in self._heads:
            heads = range(self._part.model.heads)
            patterns = [self._part.pattern(self._bin, self._layer, head) for head in heads]
            self._heads[key] = [_mask(self._part.geometry, pattern) for pattern in patterns]
        return self._heads[key]

    def _watch(self, transformer: Any, part: TransformerPlan) -> None:
        def enter(module: Any, args: Any, kwargs: Any) -> None:
            level = float(torch.as_tensor(kwargs["timestep"]).max()) / self._train_timesteps
            self._part, self._bin = part, bin_at(part, level)

        self._hooks.append(transformer.register_forward_pre_hook(enter, with_kwargs=True))
        for layer, module in enumerate(attention_modules(transformer)):
            self._watch_layer(module, layer)

    def _watch_layer(self, module: Any, layer: int) -> None:
        def enter(*_: Any) -> None:
            self._layer = layer

        def leave(*_: Any) -> None:
            self._layer = None

        self._hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


@contextmanager
def oracle(pipe: Any, plan: SparsePlan) -> Iterator[Counter[int | None]]:
    """Inside, the pipeline's whole-sequence attention is the oracle's; yields `Oracle.calls`."""
    found = Oracle(pipe, plan)
    stock = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = found.attention
    try:
        yield found.calls
    finally:
        F.scaled_dot_product_attention = stock
        found.remove()


def attention_modules(transformer: Any) -> list[Any]:
    """The modules that attend over the whole sequence, in the model's order."""
    lists = ("transformer_blocks", "single_transformer_blocks", "blocks")
    blocks = [block for name in lists for block in getattr(transformer, name, ())]
    return [block.attn1 if hasattr(block, "attn1") else block.attn for block in blocks]


def _mask(geometry: Geometry, pattern: Pattern) -> tuple[Any, Any, float | None]:
    return masks.block_cover(geometry, pattern), masks.places(geometry, pattern.order), pattern.remainder


def spread(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of the difference."""
    return float((a.double() - b.double()).square().mean().sqrt())


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
