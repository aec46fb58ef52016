"""Three families: a full plan and dense steps equal the stock pipeline bit for bit; a sparse plan equals a
stock pipeline whose SDPA got the oracle's mask."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, mixed_plan, oracle, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402

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
    with oracle(plan) as calls:
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
    with sparse_vdit.applied(small.pipe, plan):
        ours = small.run()
        found = sparse_vdit.explain(small.pipe)
    layers, warm_up = plan.model.layers, found.dense_calls["dense warm-up"]
    assert warm_up == found.sparse_calls == layers * (2 if name == "wan" else 1)
    assert not torch.equal(ours, small.run())
