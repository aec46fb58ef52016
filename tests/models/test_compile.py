"""torch.compile: no graph break, no recompile over three layers; one graph for dense, one for sparse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, mixed_plan, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402
from sparse_vdit.models.attend import SparseProcessor  # noqa: E402

pytestmark = [pytest.mark.models, pytest.mark.slow]

NAMES = ["cogvideox", "hunyuan_video", "wan"]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """An aot_eager backend that counts the graphs it is given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.count += 1
        return aot_eager(graph, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_whole_model(name: str) -> None:
    """fullgraph: any break is an error. Layers differ by pattern, steps by level; dense is another graph."""
    small = tiny.FAMILIES[name]()
    small.steps = 4
    plan = mixed_plan(small, remainder=0.5, dense_above=0.97)
    sparse_vdit.apply(small.pipe, plan)
    expected = small.run()
    eager = sparse_vdit.explain(small.pipe)
    assert eager.sparse_calls > 0
    assert eager.dense_calls["dense warm-up"] > 0

    sparse_vdit.remove(small.pipe)
    sparse_vdit.apply(small.pipe, plan)
    graphs, module = Graphs(), small.pipe.transformer
    small.pipe.transformer = torch.compile(module, fullgraph=True, backend=graphs)
    ours = small.run()
    assert apart(ours, expected) < 1e-5
    assert graphs.count == 2  # dense, sparse
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(small.run(), ours)
    assert graphs.count == 2
    counted = sparse_vdit.explain(small.pipe)
    assert counted.sparse_calls == 2 * eager.sparse_calls
    assert counted.dense_calls["dense warm-up"] == 2 * eager.dense_calls["dense warm-up"]
    sparse_vdit.remove(small.pipe)
    assert not any(isinstance(found, SparseProcessor) for found in module.attn_processors.values())


def test_more_bins_are_not_more_graphs() -> None:
    small = tiny.wan()
    small.steps = 5
    model = mixed_plan(small).model
    part = mixed_plan(small).sole
    layers = [[uniform_plan(small, Pattern.diagonal(half_width=w)).layer(0, 0)] * 3 for w in (0, 7, 20)]
    plan = sparse_vdit.SparsePlan.from_layers(model, layers, bins=(0.0, 0.7, 0.9, 1.0))
    assert part.geometry == plan.geometry
    sparse_vdit.apply(small.pipe, plan)
    expected = small.run()
    graphs = Graphs()
    small.pipe.transformer = torch.compile(small.pipe.transformer, fullgraph=True, backend=graphs)
    assert apart(small.run(), expected) < 1e-5
    assert graphs.count == 1
    assert {layer.bin for layer in sparse_vdit.explain(small.pipe).layers if layer.sparse_calls} == {0, 1, 2}


@pytest.mark.parametrize("name", NAMES)
def test_block_by_block(name: str) -> None:
    """Blocks compiled one by one share their graphs: as many as the stock model makes, plus none."""
    small = tiny.FAMILIES[name]()

    def compiled_graphs() -> int:
        torch._dynamo.reset()
        graphs = Graphs()
        for block in blocks:
            block.compile(fullgraph=True, backend=graphs)
        small.run()
        for block in blocks:
            block._compiled_call_impl = None
        return graphs.count

    transformer = small.pipe.transformer
    groups = ("transformer_blocks", "single_transformer_blocks", "blocks")
    blocks = [block for group in groups for block in getattr(transformer, group, [])]
    assert len(blocks) >= 3
    stock = compiled_graphs()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    assert compiled_graphs() == stock
    assert sparse_vdit.explain(small.pipe).sparse_calls > 0


@pytest.mark.parametrize("way", ["wrapped", "block by block"])
def test_compiled_and_run_before_apply(way: str) -> None:
    """A graph of the stock model is not used for a plan, nor one plan's for another's, nor a plan's after."""
    small = tiny.wan(layers=1)
    plans = [mixed_plan(small), uniform_plan(small, Pattern.diagonal(half_width=0))]
    dense, expected = small.run(), []
    for plan in plans:
        with sparse_vdit.applied(small.pipe, plan):
            expected.append(small.run())
    if way == "wrapped":
        small.pipe.transformer = torch.compile(small.pipe.transformer, backend="aot_eager")
    else:
        small.pipe.transformer.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    assert apart(small.run(), dense) < 1e-5
    for plan, wanted in zip(plans, expected, strict=True):
        sparse_vdit.apply(small.pipe, plan)
        assert apart(small.run(), wanted) < 1e-5
        assert sparse_vdit.explain(small.pipe).sparse_calls == 2 * small.steps
    sparse_vdit.remove(small.pipe)
    assert apart(small.run(), dense) < 1e-5


def test_observer_breaks_no_result() -> None:
    small = tiny.wan()
    expected = small.run()
    seen: list[int] = []
    module = small.pipe.transformer
    small.pipe.transformer = torch.compile(module, backend="aot_eager")
    with sparse_vdit.observe(small.pipe, lambda step, level, layer, *rest: seen.append(layer)):
        assert apart(small.run(), expected) < 1e-5
    assert set(seen) == {0, 1, 2}
