"""Three families: a full plan and dense steps equal the stock pipeline bit for bit; a sparse plan equals a
stock pipeline whose SDPA got the oracle's mask."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, mixed_plan, oracle, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern, SparsePlan  # noqa: E402

pytestmark = pytest.mark.models

#: float32 through two or four steps with guidance; the sparse runs themselves are 1e-2 and more from dense.
TOLERANCE = 2e-5


@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_full_plan_is_stock(name: str) -> None:
    small = tiny.FAMILIES[name]()
    stock = small.run()
    with sparse_vdit.applied(small.pipe, uniform_plan(small, Pattern.full())):
        ours = small.run()
        found = sparse_vdit.explain(small.pipe)
    assert torch.equal(ours, stock)
    assert found.sparse_calls == 0
    assert found.dense_calls.keys() == {"all heads are full: the host's backend"}
    assert torch.equal(small.run(), stock)


@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_dense_warm_up_is_stock(name: str) -> None:
    small = tiny.FAMILIES[name]()
    stock = small.run()
    with sparse_vdit.applied(small.pipe, mixed_plan(small, dense_above=0.0)):
        ours = small.run()
        found = sparse_vdit.explain(small.pipe)
    assert torch.equal(ours, stock)
    assert found.sparse_calls == 0
    assert found.dense_calls["dense warm-up"] > 0


@pytest.mark.parametrize("remainder", [None, -0.5])
@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_sparse_plan_is_the_oracle(name: str, remainder: float | None) -> None:
    small = tiny.FAMILIES[name](size=tiny.SMALL if name in ("cogvideox1.5", "wan2.2") else tiny.LARGE)
    plan = mixed_plan(small, remainder=remainder)
    with oracle(small.pipe, plan) as calls:
        expected = small.run()
    assert calls[0] > 0
    with sparse_vdit.applied(small.pipe, plan):
        ours = small.run()
        found = sparse_vdit.explain(small.pipe)
    assert found.sparse_calls == calls[0]
    assert not found.dense_calls
    assert apart(ours, expected) < TOLERANCE
    assert apart(small.run(), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video", "wan"])
def test_sparse_with_dense_warm_up_is_the_oracle(name: str) -> None:
    """The first step dense, the second sparse: the noise level decides."""
    small = tiny.FAMILIES[name]()
    plan = mixed_plan(small, dense_above=0.95)
    with oracle(small.pipe, plan) as calls:
        expected = small.run()
    with sparse_vdit.applied(small.pipe, plan):
        ours = small.run()
        found = sparse_vdit.explain(small.pipe)
    calls_a_step = plan.model.layers * (2 if name == "wan" else 1)
    assert calls == {None: calls_a_step, 0: calls_a_step}
    assert found.dense_calls["dense warm-up"] == found.sparse_calls == calls_a_step
    assert apart(ours, expected) < TOLERANCE
    assert apart(small.run(), expected) > 10 * TOLERANCE  # one step of two


def three_bins(small: tiny.Tiny) -> SparsePlan:
    """Four steps, each on its own: dense, then bins 2, 1 and 0; the edges lie between the steps' levels."""
    small.run()
    levels = small.pipe.scheduler.timesteps.double() / small.pipe.scheduler.config.num_train_timesteps
    dense_above, upper, lower = ((levels[:-1] + levels[1:]) / 2).tolist()
    return mixed_plan(small, remainder=-0.5, bins=(0.0, lower, upper, 1.0), dense_above=dense_above)


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video", "wan", "wan2.2"])
def test_every_bin_is_the_oracle(name: str) -> None:
    """Three bins of different patterns and remainders, dense above."""
    small = tiny.FAMILIES[name]()
    small.steps = 4
    plan = three_bins(small)
    with oracle(small.pipe, plan) as calls:
        expected = small.run()
    calls_a_step = plan.model.layers * (2 if small.name == "wan" else 1)
    assert calls == dict.fromkeys((None, 2, 1, 0), calls_a_step)
    with sparse_vdit.applied(small.pipe, plan):
        ours = small.run()
        found = sparse_vdit.explain(small.pipe)
    assert found.sparse_calls == 3 * calls_a_step
    assert found.dense_calls == {"dense warm-up": calls_a_step}
    assert apart(ours, expected) < TOLERANCE
    assert apart(small.run(), expected) > 100 * TOLERANCE
