"""What the stock pipeline does, found by running its first steps: token layout, times, noise levels.

`Stock` is all that a plan needs to know of a pipeline besides the errors; its file `stock.json` stands beside
`errors.safetensors`, so that plans are made again without the model. Untrusted, like every file here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vdit.attention import attention
from sparse_vdit.geometry import Json, closed, integer, shown
from sparse_vdit.pattern import Geometry, Pattern
from sparse_vdit.plan import LayerPlan
from sparse_vdit.plan.file import checked_provenance, layout, write_atomic
from sparse_vdit.plan.transformer import checked_name
from sparse_vdit.search import Sample
from sparse_vdit.search.cost import CostModel, StepTimer
from sparse_vdit.search.schedule import schedule_of
from sparse_vdit.search.weights import weights_of

from .document import read_document
from .source import DTYPES, Source

FORMAT, FORMAT_VERSION = "sparse_vdit.stock", 1
FILE_NAME = "stock.json"
TRIED_STEPS = 4  # the first warms up, the end of the last is not seen
TURNS = 3  # of our kernel and the host's on the same tensors
MAX_STEPS = 10_000
LAYOUT = ("frames", "height", "width", "prefix", "suffix")


@dataclass(frozen=True)
class Stock:
    """A dense step of a pipeline.

    Args:
        layout: frames, height, width of the latent tokens, other tokens before (prefix) and after (suffix).
        batch: samples of a step over all its calls (2 with guidance).
        dtype: of queries, keys and values.
        levels: noise level of every step, by the name of the transformer that takes it.
        attention_ms: attention of a step, all layers, as the host computes it.
        rest_ms: the step without it.
        settings: what it was measured with.
        dense_ratio: the host's attention over our own full kernel on the same tensors, in turns; None: not measured.
        weights: `search.weights.weights_hash` by transformer; None: not noted, as in older files.

    Raises:
        ValueError: `stock: attention_ms is nan, expected a finite number above 0`.
    """

    layout: Mapping[str, int]
    batch: int
    dtype: str
    levels: Mapping[str, tuple[float, ...]]
    attention_ms: float
    rest_ms: float
    settings: Json = field(default_factory=dict)
    dense_ratio: float | None = None
    weights: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "layout", {name: integer("stock", name, self.layout[name], 0) for name in LAYOUT})
        put(self, "batch", integer("stock", "batch", self.batch, 1, 65535))
        if self.dtype not in DTYPES:
            raise ValueError(f"stock: dtype is {shown(self.dtype)}, expected one of {', '.join(DTYPES)}")
        put(self, "levels", {checked_name(n): _levels(n, listed) for n, listed in self.levels.items()})
        if not 1 <= sum(map(len, self.levels.values())) <= MAX_STEPS:
            raise ValueError(f"stock: there are no or too many steps, expected 1..{MAX_STEPS}")
        for name in ("attention_ms", "rest_ms"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"stock: {name} is {type(value).__name__}, expected a number")
            if not math.isfinite(value) or value < 0 or (name == "attention_ms" and value == 0):
                raise ValueError(f"stock: {name} is {value}, expected a finite number, attention_ms above 0")
            put(self, name, float(value))
        put(self, "settings", checked_provenance(self.settings))
        ratio = self.dense_ratio
        if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, (int, float))):
            raise TypeError(f"stock: dense_ratio is {type(ratio).__name__}, expected a number or null")
        if ratio is not None and not (math.isfinite(ratio) and ratio > 0):
            raise ValueError(f"stock: dense_ratio is {ratio}, expected a finite number above 0")
        if self.weights is not None:
            put(self, "weights", _weights(self.weights))

    @property
    def step_ms(self) -> float:
        """A whole dense step."""
        return self.attention_ms + self.rest_ms

    @property
    def share(self) -> float:
        """Attention's part of it."""
        return self.attention_ms / self.step_ms

    @property
    def ceiling(self) -> float:
        """Speed-up of a step if attention took no time."""
        return self.step_ms / self.rest_ms if self.rest_ms > 0 else math.inf

    @property
    def steps(self) -> int:
        """Denoising steps of a generation."""
        return sum(map(len, self.levels.values()))

    def geometry(self, block_q: int, block_k: int) -> Geometry:
        """The token layout with blocks.

        Raises:
            ValueError: the blocks are not legal.
        """
        return Geometry(**self.layout, block_q=block_q, block_k=block_k)

    def on(self, cost: Mapping[str, CostModel], layers: Mapping[str, int]) -> Stock:
        """The same step on the machine that the prices are of, where `dense_ratio` was measured.

        A step is timed while other work may slow it, prices are of a calm machine: attention is then as priced,
        times `dense_ratio`, and the rest in the proportion to it that was seen.

        Args:
            cost: prices by transformer.
            layers: of each.
        """
        if self.dense_ratio is None:
            return self
        shares = {name: len(listed) / self.steps for name, listed in self.levels.items() if name in cost}
        priced = sum(share * cost[name].dense_layer_ms * layers[name] for name, share in shares.items())
        attention = priced * self.dense_ratio
        if attention <= 0:
            return self
        rest = attention * self.rest_ms / self.attention_ms
        return replace(self, attention_ms=attention, rest_ms=rest, dense_ratio=None)

    def __str__(self) -> str:
        at = self.layout
        ceiling = f"{self.ceiling:.2f}x" if math.isfinite(self.ceiling) else "none"
        return (
            f"{at['frames']} x {at['height']} x {at['width']} video tokens, {at['prefix']} before, "
            f"{at['suffix']} after; "
            f"{self.batch} sample{'s' * (self.batch > 1)} a step, {self.dtype}; a dense step takes "
            f"{self.step_ms:.0f} ms, attention is {self.share:.0%} of it, ceiling {ceiling}"
        )

    def to_json(self) -> Json:
        """The document of the file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "layout": dict(self.layout),
            "batch": self.batch,
            "dtype": self.dtype,
            "levels": {name: list(listed) for name, listed in self.levels.items()},
            "attention_ms": self.attention_ms,
            "rest_ms": self.rest_ms,
            "settings": self.settings,
            "dense_ratio": self.dense_ratio,
            "weights": None if self.weights is None else dict(self.weights),
        }

    @classmethod
    def from_json(cls, value: Any) -> Stock:
        """The inverse of `to_json`; every field is checked."""
        names = [name for name in cls.__dataclass_fields__ if name != "weights"]
        required = ("format", "format_version", *names)
        fields: Json = {"weights": None, **closed("stock", value, required, ("weights",))}
        for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
            if isinstance(fields[name], bool) or fields[name] != expected:
                raise ValueError(f"stock: {name} is {shown(fields[name])}, expected {expected!r}")
        closed("stock.layout", fields["layout"], LAYOUT)
        if not isinstance(fields["levels"], dict) or len(fields["levels"]) > 4:
            raise ValueError("stock: levels is no object of at most 4 transformers, expected one")
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `folder/stock.json`, the old file or the new one."""
        return write_atomic(folder, FILE_NAME, layout(self.to_json()))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Stock:
        """Reads `folder/stock.json`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: one sentence.
        """
        return cls.from_json(read_document("stock", folder, FILE_NAME, "one written by sparse-vdit search"))


def _weights(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(
        isinstance(text, str) and len(text) == 64 for text in given.values()
    ):
        raise ValueError(f"stock: weights is {shown(given)}, expected a SHA-256 by transformer")
    return {checked_name(name): text for name, text in given.items()}


def _levels(name: str, listed: Any) -> tuple[float, ...]:
    if not isinstance(listed, (list, tuple)) or not all(
        isinstance(level, (int, float)) and not isinstance(level, bool) and -1e-6 <= level <= 1 + 1e-6
        for level in listed
    ):
        raise ValueError(f"stock: the levels of {name} are {shown(listed)}, expected numbers in 0..1")
    return tuple(min(max(float(level), 0.0), 1.0) for level in listed)


class EnoughSteps(Exception):
    """Ends a generation that has shown what was wanted; never leaves this room."""


class _Trial:
    """A recorder that times attention, counts samples, and ends the generation after some steps."""

    def __init__(self, pipe: Any, steps: int) -> None:
        self.pipe, self.steps = pipe, steps
        self.timer, self.samples, self.dtype = StepTimer(), 0, ""
        self.levels: tuple[float, ...] = ()
        self.layouts: list[Any] = []
        self.ratio: float | None = None

    def __call__(self, step: int, noise_level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        schedule = schedule_of(self.pipe)
        self.levels = schedule.levels if schedule is not None else (*self.levels, noise_level)[: step + 1]
        if step >= self.steps:
            raise EnoughSteps
        if step == 0 and layer == 0:
            self.samples += len(q)
        self.dtype = str(q.dtype).removeprefix("torch.")
        out = self.timer(step, noise_level, layer, q, k, v, dense)
        if self.layouts and step == TRIED_STEPS - 1 and self.ratio is None:  # its end is not timed
            geometry = Geometry(**_layout_of(self.layouts))
            full = LayerPlan(geometry, [Pattern.full()] * q.shape[1])
            ours = partial(attention, q, k, v, layer=full, kv_len=dense.kv_len)
            self.ratio = _least_seconds(dense, ours)
        return out


def _least_seconds(host: Callable[[], object], ours: Callable[[], object]) -> float:
    """Least time of the host's attention over that of our full kernel, in turns."""
    seconds = np.full((2, TURNS), np.inf)
    for turn in range(TURNS):
        for way, call in enumerate((host, ours)):
            start = time.perf_counter()
            call()
            seconds[way, turn] = time.perf_counter() - start
    return float(seconds[0].min() / seconds[1].min())


def _layout_of(layouts: list[Any]) -> dict[str, int]:
    return {name: getattr(layouts[0], name) for name in LAYOUT}


def try_out(source: Source, sample: Sample, settings: Mapping[str, Any] | None = None) -> Stock:
    """Runs the first steps of a dense generation and looks.

    Args:
        source: without a plan.
        sample: whose generation is begun.
        settings: to note down.

    Raises:
        UnsupportedError: a transformer that `sparse_vdit.apply` does not know.
    """
    layouts: list[Any] = []
    hooks = _layout_hooks(source.pipe, layouts)
    try:
        trial = _begin(source, sample, max(source.steps, TRIED_STEPS), TRIED_STEPS, layouts)
        listed = (
            trial.levels if source.steps >= TRIED_STEPS else _begin(source, sample, source.steps, 0).levels
        )
    finally:
        for hook in hooks:
            hook.remove()
    return Stock(
        layout=_layout_of(layouts),
        batch=trial.samples,
        dtype=trial.dtype,
        levels=_by_transformer(source.pipe, listed),
        attention_ms=trial.timer.dense_ms,
        rest_ms=trial.timer.rest_ms,
        settings=dict(settings or {}),
        dense_ratio=trial.ratio,
        weights=weights_of(source.pipe),
    )


def _begin(
    source: Source, sample: Sample, steps: int, wanted: int, layouts: list[Any] | None = None
) -> _Trial:
    """The first `wanted` of `steps` steps; 0: until the first attention."""
    from sparse_vdit.models import observe

    trial = _Trial(source.pipe, wanted)
    trial.layouts = layouts if layouts is not None else []
    try:
        with observe(source.pipe, trial):
            source.make(sample, steps, False)
    except EnoughSteps:
        pass
    if not trial.levels:
        raise ValueError("stock: the generation attended nowhere, expected it to")
    return trial


def _layout_hooks(pipe: Any, found: list[Any]) -> list[Any]:
    from sparse_vdit.models.families import family_of, forward_arguments
    from sparse_vdit.models.install import transformers_of

    def look(module: Any, args: Any, kwargs: Any) -> None:
        if not found:
            found.append(family_of("stock", module).layout(module, forward_arguments(module, args, kwargs)))

    return [
        module.register_forward_pre_hook(look, with_kwargs=True)
        for module in transformers_of("stock", pipe).values()
    ]


def _by_transformer(pipe: Any, levels: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """Wan 2.2 hands steps from its boundary on to the first expert, the others to the second."""
    bound = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
    two = getattr(pipe, "transformer", None) is not None and getattr(pipe, "transformer_2", None) is not None
    if not two or bound is None:
        return {"transformer": levels}
    high = tuple(level for level in levels if level >= bound)
    return {"transformer": high, "transformer_2": levels[len(high) :]}
