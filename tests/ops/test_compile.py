"""`torch.compile` sees one opaque operator: no graph break, no recompile over layers, the same bits."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sparse_vdit import Geometry, LayerPlan, Pattern, UnsupportedError, ops  # noqa: E402

GEOMETRY = Geometry(frames=4, height=6, width=8, prefix=4, suffix=3, block_q=32, block_k=16)
LAYERS = [
    [Pattern.full(), Pattern.diagonal(half_width=15, remainder=0.25)],
    [Pattern.skip(), Pattern.multi_diagonal(half_width=4)],
    [Pattern.diagonal(half_width=31), Pattern.vertical_stripe(key_blocks=[3, 7], remainder=-1.0)],
]
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


class Block(torch.nn.Module):
    """A layer as a processor sees it: its lists are tensors on the module, equal only in their kinds."""

    def __init__(self, patterns: list[Pattern]) -> None:
        super().__init__()
        self.packed = ops.PackedLayer.from_arrays(LayerPlan(GEOMETRY, patterns).packed())
        self.to_qkv = torch.nn.Linear(32, 96)

    def forward(self, x: Any, bin: Any) -> Any:
        q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        out = ops.attention_layer(q, k, v, self.packed, bin, 0.25)
        return x + out.transpose(1, 2).flatten(2)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_layer_in_one_graph(backend: str) -> None:
    torch.manual_seed(0)
    packed = ops.PackedLayer.from_arrays(LayerPlan(GEOMETRY, LAYERS[0]).packed())
    q, k, v = (torch.randn(1, GEOMETRY.tokens, 2, 16).transpose(1, 2) for _ in range(3))
    bin_ = torch.zeros(1, dtype=torch.int64)
    kv_len = torch.tensor([GEOMETRY.tokens - 2])

    def call(q: Any, k: Any, v: Any) -> Any:
        out, lse = ops.attention_layer(q, k, v, packed, bin_, 0.25, kv_len=kv_len, return_lse=True)
        return out, lse

    compiled = torch.compile(call, backend=backend, fullgraph=True)
    for one, other in zip(compiled(q, k, v), call(q, k, v), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_share_one_compilation(backend: str) -> None:
    torch.manual_seed(0)
    blocks = [Block(patterns) for patterns in LAYERS]
    x, bin_ = torch.randn(1, GEOMETRY.tokens, 32), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        expected = x
        for block in blocks:
            expected = block(expected, bin_)
        for block in blocks:
            block.compile(backend=backend, fullgraph=True)
        for _ in range(2):
            got = x
            for block in blocks:
                got = block(got, bin_)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        whole = torch.nn.ModuleList(Block(patterns) for patterns in LAYERS)

        def forward(x: Any, bin: Any) -> Any:
            for block in whole:
                x = block(x, bin)
            return x

        explained = torch._dynamo.explain(forward)(x, bin_)
        assert explained.graph_break_count == 0
        assert explained.graph_count == 1


def test_another_bin_does_not_recompile() -> None:
    from sparse_vdit.plan import pack

    packed = ops.PackedLayer.from_arrays(pack([LayerPlan(GEOMETRY, patterns) for patterns in LAYERS]))
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda q, bin: ops.attention_layer(q, q, q, packed, bin, 0.25), backend=counter)
    q = torch.randn(1, 2, GEOMETRY.tokens, 16)
    for number in (0, 1, 2, 1):
        alone = ops.PackedLayer.from_arrays(LayerPlan(GEOMETRY, LAYERS[number]).packed())
        got = compiled(q, torch.tensor([number]))
        assert torch.equal(got, ops.attention_layer(q, q, q, alone, None, 0.25))
    assert counter.frame_count == 1


def test_export_keeps_the_operator() -> None:
    packed = ops.PackedLayer.from_arrays(LayerPlan(GEOMETRY, LAYERS[0]).packed())

    class Model(torch.nn.Module):
        def forward(self, q: Any) -> Any:
            return ops.attention_layer(q, q, q, packed, torch.zeros(1, dtype=torch.int64), 0.25)

    q = torch.randn(1, 2, GEOMETRY.tokens, 16)
    exported = torch.export.export(Model(), (q,))
    assert "sparse_vdit.attention.default" in str(exported.graph)
    assert torch.equal(exported.module()(q), Model()(q))


def test_grad_is_refused_in_a_compiled_graph_too() -> None:
    packed = ops.PackedLayer.from_arrays(LayerPlan(GEOMETRY, LAYERS[0]).packed())
    q = torch.randn(1, 2, GEOMETRY.tokens, 16, requires_grad=True)
    compiled = torch.compile(lambda q: ops.attention_layer(q, q, q, packed, None, 0.25), backend="aot_eager")
    with pytest.raises(Exception, match="q requires grad, expected inputs without") as caught:
        compiled(q)
    assert isinstance(caught.value, (UnsupportedError, RuntimeError))
