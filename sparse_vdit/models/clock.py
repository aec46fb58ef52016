"""The clock of a pipeline: denoising step and noise level, read from what the transformer is called with.

noise level = max(timestep) / scheduler.config.num_train_timesteps, in 0..1. Nothing here counts calls:
caching hooks skip them, guidance doubles them. The two transformers of one pipeline share a clock.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

#: Schedulers of the supported families train on 1,000 timesteps; used where only a transformer is given.
DEFAULT_TRAIN_TIMESTEPS = 1000


def module_behind(module: Any) -> Any:
    """The module that `torch.compile(module)` wraps, or the module itself."""
    return getattr(module, "_orig_mod", module)


class Clock:
    """Step and noise level of the forward that runs now.

    Attributes:
        step (int): Index of the timestep in the scheduler's list; without a pipeline, the number of timesteps
            since the last one that went against the direction of denoising.
        noise_level (float): 0..1; NaN before the first forward.
    """

    def __init__(self, pipeline: Any = None) -> None:
        self._pipeline = weakref.ref(pipeline) if pipeline is not None else None
        self._train_timesteps = float(DEFAULT_TRAIN_TIMESTEPS)
        if pipeline is not None:
            self._train_timesteps = self._train_timesteps_of(pipeline)
        self._timestep: float | None = None
        self.step = 0
        self.noise_level = float("nan")

    def reset(self) -> None:
        """Forget the last timestep: the next forward opens a new run."""
        self._timestep = None
        self.step = 0

    def belongs_to(self, pipeline: Any) -> bool:
        """Does this clock read this pipeline's scheduler (None: no pipeline's)?"""
        return (self._pipeline() if self._pipeline is not None else None) is pipeline

    def tick(self, transformer: torch.nn.Module, timestep: Any) -> None:
        """Read one forward's timestep: a number or a tensor of shape [], [B] or [B, S]."""
        value = float(timestep.max()) if isinstance(timestep, torch.Tensor) else float(timestep)
        pipeline = self._pipeline_of(transformer)
        if pipeline is not None:
            self._train_timesteps = self._train_timesteps_of(pipeline)
        self.noise_level = value / self._train_timesteps
        self.step = self._step_at(value, timestep, pipeline)
        self._timestep = value

    def _step_at(self, value: float, timestep: Any, pipeline: Any) -> int:
        scheduled = _scheduled_step(value, timestep, pipeline) if pipeline is not None else None
        if scheduled is not None:
            return scheduled
        if self._timestep is None or value > self._timestep:
            return 0
        return self.step + 1 if value < self._timestep else self.step

    def _pipeline_of(self, transformer: torch.nn.Module) -> Any:
        """The pipeline, if it is alive and still holds this transformer (a deep copy does not)."""
        pipeline = self._pipeline() if self._pipeline is not None else None
        if pipeline is None:
            return None
        held = (getattr(pipeline, name, None) for name in ("transformer", "transformer_2"))
        return pipeline if any(module_behind(module) is transformer for module in held) else None

    @staticmethod
    def _train_timesteps_of(pipeline: Any) -> float:
        config = getattr(getattr(pipeline, "scheduler", None), "config", None)
        return float(getattr(config, "num_train_timesteps", None) or DEFAULT_TRAIN_TIMESTEPS)


def _scheduled_step(value: float, timestep: Any, pipeline: Any) -> int | None:
    """Index in the scheduler's own list, or None where the timestep is not one of them.

    HunyuanVideo rounds the timestep to the latents' dtype, so that neighbours may coincide; the pipeline's
    `_current_timestep` is not rounded.
    """
    schedule = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    if not isinstance(schedule, torch.Tensor) or schedule.numel() == 0:
        return None
    dtype = timestep.dtype if isinstance(timestep, torch.Tensor) else schedule.dtype
    current = getattr(pipeline, "_current_timestep", None)
    wanted = value
    if isinstance(current, torch.Tensor) and current.numel() == 1 and float(current.to(dtype)) == value:
        wanted = float(current)
    exact = (schedule == wanted).nonzero()
    if len(exact) == 0:
        exact = (schedule.to(dtype) == value).nonzero()
    return int(exact[0]) if len(exact) else None
