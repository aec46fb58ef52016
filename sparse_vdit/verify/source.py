"""A pipeline and how it makes a video: `Source`, the one thing that search and verification ask for.

`make(sample, steps, decode)` generates with whatever attention the pipeline has now and returns the frames
[F, 3, H, W] in 0..1 (decode), or anything at all (not decode: the latents suffice). `stock_source` makes one of a
pipeline of diffusers; others are two lines of Python. Next: `stock.py`.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_vdit.geometry import integer, shown
from sparse_vdit.report.compare import Run
from sparse_vdit.search import Sample

Make = Callable[[Sample, int, bool], Any]

#: Arguments that every call sets itself.
OWN = ("prompt", "generator", "num_inference_steps", "output_type", "return_dict", "callback_on_step_end")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Source:
    """A pipeline, and a callable that runs it.

    Args:
        pipe: a diffusers pipeline, or anything with a `transformer` that `sparse_vdit.apply` takes.
        make: `make(sample, steps, decode)`: one generation.
        steps: denoising steps of a video.

    Example:
        >>> source = Source(pipe, lambda sample, steps, decode: my_loop(pipe, sample.prompt, sample.seed, steps), 30)
    """

    pipe: Any
    make: Make
    steps: int

    def __post_init__(self) -> None:
        integer("source", "steps", self.steps, 1, 10_000)

    def record(self, pipe: Any, sample: Sample) -> object:
        """One generation for `search.record` (its `generate`); nothing is decoded."""
        return self.make(sample, self.steps, False)

    def run(self, sample: Sample) -> Run:
        """One video with the seconds that the transformers took in every step.

        Raises:
            ValueError: frames of another shape, or not finite.
        """
        with step_times(self.pipe) as times:
            video = np.asarray(self.make(sample, self.steps, True), dtype=np.float32)
        if video.ndim != 4 or video.shape[1] != 3:
            raise ValueError(
                f"verify: the frames have shape {video.shape}, expected [frames, 3, height, width]"
            )
        if not np.isfinite(video).all():
            raise ValueError("verify: the frames hold a number that is not finite, expected numbers in 0..1")
        steps = sorted(times)
        return Run(video, tuple(times[step][0] for step in steps), tuple(times[step][1] for step in steps))


@contextmanager
def step_times(pipe: Any) -> Iterator[dict[int, tuple[float, float]]]:
    """Yields a dictionary that fills with step -> (seconds of all transformer calls, noise level)."""
    from sparse_vdit.models.clock import Clock
    from sparse_vdit.models.families import forward_arguments
    from sparse_vdit.models.install import transformers_of

    found: dict[int, tuple[float, float]] = {}
    clock, start = Clock(pipe), [0.0]

    def before(module: Any, args: Any, kwargs: Any) -> None:
        clock.tick(module, forward_arguments(module, args, kwargs)["timestep"])
        start[0] = time.perf_counter()

    def after(*_: Any) -> None:
        seconds = time.perf_counter() - start[0]
        before_it = found.get(clock.step, (0.0, 0.0))[0]
        found[clock.step] = (before_it + seconds, min(max(clock.noise_level, 0.0), 1.0))

    hooks: list[Any] = []
    try:
        for module in transformers_of("verify", pipe).values():
            hooks += [
                module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
                module.register_forward_hook(after),
            ]
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def open_pipeline(model: str | os.PathLike[str], *, dtype: str = "bfloat16") -> Any:
    """Loads a diffusers pipeline from a folder or the hub; never unpickles, never runs code of a repository.

    Args:
        model: a folder with model_index.json, or a hub id.
        dtype: of the weights.

    Raises:
        ValueError: `source: 'x' has no model_index.json, ...`; an unknown dtype.
    """
    import torch
    from diffusers import DiffusionPipeline

    if dtype not in DTYPES:
        raise ValueError(f"source: dtype is {shown(dtype)}, expected one of {', '.join(DTYPES)}")
    where = os.fspath(model)
    if os.path.isdir(where) and not os.path.isfile(os.path.join(where, "model_index.json")):
        raise ValueError(f"source: {where!r} has no model_index.json, expected a pipeline saved by diffusers")
    pipe = DiffusionPipeline.from_pretrained(where, torch_dtype=getattr(torch, dtype), use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_source(pipe: Any, *, steps: int, settings: Mapping[str, Any] | None = None) -> Source:
    """The source of a text-to-video pipeline of diffusers.

    Args:
        pipe: the pipeline.
        steps: denoising steps.
        settings: arguments of every call: height, width, num_frames, guidance_scale, ...

    Raises:
        ValueError: the pipeline has no such argument, or sets it itself.
    """
    given = dict(settings or {})
    known = inspect.signature(pipe.__call__).parameters
    for name in given:
        if name in OWN:
            raise ValueError(f"source: {name} is among the settings, expected it to be left to the search")
        if name not in known:
            raise ValueError(
                f"source: {type(pipe).__name__} takes no {name}, expected some of "
                f"{', '.join(sorted(set(known) - set(OWN)))}"
            )

    def make(sample: Sample, steps: int, decode: bool) -> Any:
        import torch

        if decode and getattr(pipe, "vae", None) is None:
            raise ValueError("source: the pipeline has no vae, expected one to decode videos with")
        found = pipe(
            prompt=sample.prompt,
            num_inference_steps=steps,
            generator=torch.Generator("cpu").manual_seed(sample.seed),
            output_type="np" if decode else "latent",
            **given,
        ).frames
        return np.moveaxis(np.asarray(found[0], dtype=np.float32), -1, 1) if decode else None

    return Source(pipe, make, steps)


def projections_of(pipe: Any) -> dict[str, Any]:
    """Factors of every layer's output projection, float32 [layers, heads, D, D], for `Recorder(projections=)`.

    Raises:
        ValueError: a layer has no `to_out` of its own (single-stream blocks of HunyuanVideo project later).
    """
    from sparse_vdit.models.families import family_of
    from sparse_vdit.models.install import transformers_of
    from sparse_vdit.search.probe import output_factors

    found = {}
    for name, module in transformers_of("search", pipe).items():
        layers = []
        for layer, attention in enumerate(family_of("search", module).modules(module)):
            projection = getattr(attention, "to_out", None)
            if projection is None:
                raise ValueError(
                    f"search: layer {layer} of {name} has no output projection of its own, expected the measure "
                    "relative"
                )
            layers.append(output_factors(projection[0].weight.detach().float().cpu(), attention.heads))
        found[name] = np.stack(layers)
    return found
