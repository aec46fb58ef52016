"""Step and noise level come from what the transformer is called with, whatever calls it, however often."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit.models.clock import Clock  # noqa: E402

pytestmark = pytest.mark.models


def observed(small: tiny.Tiny, **changes: Any) -> list[tuple[int, float]]:
    """(step, noise level) of the first layer's calls."""
    seen: list[tuple[int, float]] = []

    def note(step: int, noise_level: float, layer: int, *rest: Any) -> None:
        if layer == 0:
            seen.append((step, noise_level))

    with sparse_vdit.observe(small.pipe, note):
        small.run(**changes)
    return seen


@pytest.mark.parametrize(
    ("name", "calls"), [("cogvideox", 1), ("hunyuan_video", 1), ("wan", 2), ("wan2.2", 2)]
)
def test_steps_and_levels_of_a_run(name: str, calls: int) -> None:
    small = tiny.FAMILIES[name]()
    seen = observed(small, num_inference_steps=4)
    timesteps = small.pipe.scheduler.timesteps.tolist()
    assert len(timesteps) == 4
    expected = [(step, t / 1000) for step, t in enumerate(timesteps) for _ in range(calls)]
    assert seen == [(step, pytest.approx(level, abs=1e-6)) for step, level in expected]
    assert [step for step, _ in observed(small, num_inference_steps=1)] == [0] * calls
    assert [step for step, _ in observed(small, num_inference_steps=1)] == [0] * calls


def test_rounded_timesteps_keep_their_steps() -> None:
    """HunyuanVideo hands on the timestep in the latents' dtype: in bfloat16 neighbours near 1000 coincide."""

    class Pipeline:
        transformer = torch.nn.Identity()
        scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
        _current_timestep: Any = None

    pipeline = Pipeline()
    pipeline.scheduler.set_timesteps(50)
    clock, seen = Clock(pipeline), []
    for timestep in pipeline.scheduler.timesteps:
        pipeline._current_timestep = timestep
        for _ in range(2):  # guidance
            clock.tick(pipeline.transformer, timestep.expand(1).to(torch.bfloat16))
        seen.append((clock.step, clock.noise_level))
    assert [step for step, _ in seen] == list(range(50))
    assert len({level for _, level in seen}) < 50

    # A stale pipeline.current_timestep (after an exception, in a loop by hand) is not believed.
    clock.tick(pipeline.transformer, pipeline.scheduler.timesteps[:1])
    assert clock.step == 0


def test_timestep_per_token_takes_the_maximum() -> None:
    """Wan 2.2 TI2V: [B, S] timesteps, zero where the first frame is given."""
    clock = Clock()
    transformer = torch.nn.Identity()
    clock.tick(transformer, torch.tensor([[0.0, 0.0, 750.0], [0.0, 750.0, 750.0]]))
    assert clock.noise_level == 0.75


def test_without_a_pipeline_the_direction_tells() -> None:
    clock = Clock()
    transformer = torch.nn.Identity()
    seen = []
    for timestep in (999, 999, 500, 500, 1, 999, 10, 999, 999.0, 998):
        clock.tick(transformer, torch.tensor([timestep]))
        seen.append(clock.step)
    assert seen == [0, 0, 1, 1, 2, 0, 1, 0, 0, 1]
    clock.reset()
    clock.tick(transformer, 7)
    assert (clock.step, clock.noise_level) == (0, 0.007)


def test_positional_arguments_and_a_missing_timestep() -> None:
    small = tiny.wan()
    seen: list[float] = []
    transformer = small.pipe.transformer
    sparse_vdit.observe(transformer, lambda step, level, *rest: seen.append(level))
    latents = torch.randn(1, 16, 3, 8, 8)
    with torch.no_grad():
        transformer(latents, torch.tensor([250]), small.inputs["prompt_embeds"])
    assert seen == [0.25] * 3
    with pytest.raises(ValueError, match="WanTransformer3DModel is called without timestep"), torch.no_grad():
        transformer(latents, None, small.inputs["prompt_embeds"])


def test_scheduler_changed_after_apply() -> None:
    small = tiny.wan()
    seen: list[float] = []
    with sparse_vdit.observe(small.pipe, lambda step, level, *rest: seen.append(level)):
        small.pipe.scheduler = type(small.pipe.scheduler)(num_train_timesteps=500, shift=7.0)
        small.run(num_inference_steps=2)
    levels = small.pipe.scheduler.timesteps / 500
    assert sorted(set(seen), reverse=True) == pytest.approx(levels.tolist())
