"""observe: the recorder sees every video self-attention and may answer in its place."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, geometry_of, mixed_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import LayerPlan  # noqa: E402

pytestmark = pytest.mark.models


@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_none_is_stock_and_everything_is_seen(name: str) -> None:
    small = tiny.FAMILIES[name](**({"batch": 2} if name == "hunyuan_video" else {}))
    stock = small.run()
    seen: list[tuple[int, int]] = []
    tokens = geometry_of(small).tokens

    def note(step: int, level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> None:
        assert q.shape == k.shape == v.shape == (q.shape[0], 2, tokens, 64)
        assert 0 <= level <= 1
        assert not q.requires_grad
        if name == "hunyuan_video":
            assert dense.kv_len.tolist() == [48 + 10, 48 + 16]
        else:
            assert dense.kv_len is None
        seen.append((step, layer))

    with sparse_vdit.observe(small.pipe, note):
        assert torch.equal(small.run(), stock)
    layers = 4 if name == "hunyuan_video" else 3
    assert {layer for _, layer in seen} == set(range(layers))
    assert {step for step, _ in seen} == set(range(small.steps))
    count = len(seen)
    assert torch.equal(small.run(), stock)
    assert len(seen) == count


def test_the_answer_is_used() -> None:
    """A recorder that answers with the sparse kernel gives what the plan gives."""
    small = tiny.hunyuan_video()
    plan = mixed_plan(small, remainder=0.0)
    with sparse_vdit.applied(small.pipe, plan):
        expected = small.run()

    def answer(step: int, level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        chosen: LayerPlan = plan.layer(0, layer)
        return sparse_vdit.attention(q, k, v, layer=chosen, kv_len=dense.kv_len)

    with sparse_vdit.observe(small.pipe, answer):
        assert apart(small.run(), expected) < 1e-6

    with sparse_vdit.observe(small.pipe, lambda *rest: rest[-1]()):
        ours = small.run()
    assert torch.equal(ours, small.run())


def test_wrong_answers_and_wrong_moments() -> None:
    small = tiny.wan()
    with (
        sparse_vdit.observe(small.pipe, lambda step, level, layer, q, *rest: q[:, :, :3]),
        pytest.raises(
            ValueError, match=r"recorder returned \[1, 2, 3, 64\] torch.float32, expected \[1, 2, 48, 64\]"
        ),
    ):
        small.run()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    with pytest.raises(ValueError, match=r"observe: transformer has a plan or an observer, expected none"):
        sparse_vdit.observe(small.pipe, print)
    sparse_vdit.remove(small.pipe)
    watching = sparse_vdit.observe(small.pipe, lambda *rest: None)
    assert sparse_vdit.explain(small.pipe).notes == (
        "transformer: observed; every call goes to the recorder.",
    )
    sparse_vdit.apply(small.pipe, mixed_plan(small))  # a plan replaces the observer
    assert sparse_vdit.explain(small.pipe).layers
    watching.close()  # and the observer's end does not take the plan away
    assert sparse_vdit.explain(small.pipe).layers


def test_an_observer_comes_back_behind_a_plan_and_still_closes() -> None:
    small = tiny.wan()
    stock = [block.attn1.processor for block in small.pipe.transformer.blocks]
    seen: list[int] = []
    with sparse_vdit.observe(small.pipe, lambda step, level, layer, *rest: seen.append(layer)):
        with sparse_vdit.applied(small.pipe, mixed_plan(small)):
            small.run()
        assert seen == []
        small.run()
        assert len(seen) == 3 * 2 * small.steps
    assert [block.attn1.processor for block in small.pipe.transformer.blocks] == stock
