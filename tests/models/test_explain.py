"""explain: what ran, what would run, and the reason of every dense call, in words and as data."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import mixed_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import _C, Pattern, SparsePlan  # noqa: E402

pytestmark = pytest.mark.models


def test_before_and_after_a_run() -> None:
    small = tiny.hunyuan_video()
    assert not sparse_vdit.explain(small.pipe).layers
    plan = mixed_plan(small, remainder=0.5, dense_above=0.95)
    sparse_vdit.apply(small.pipe, plan)
    before = sparse_vdit.explain(small.pipe)
    assert before.sparse_calls == 0
    assert before.dense_calls == {}
    small.run()
    after = sparse_vdit.explain(small.pipe)
    assert after.sparse_calls == 4
    assert after.dense_calls == {"dense warm-up": 4}
    kernel = _C.attention_engine("float32", 64)
    for number, layer in enumerate(after.layers):
        assert (layer.transformer, layer.bin, layer.layer) == ("transformer", 0, number)
        assert layer.kernel == kernel
        assert layer.visited == pytest.approx(plan.layer(0, number).density())
        assert [head.pattern for head in layer.heads] == [p.name for p in plan.layer(0, number).patterns]
    assert after.layers[3].heads[0].visited == 1
    assert after.layers[3].heads[1].remainder == 0.5
    assert after.layers[2].heads[1].visited == 0
    assert any("left to the host: the text refiner." in note for note in after.notes)
    assert any("2 forwards, 1 of them dense warm-up" in note for note in after.notes)
    assert any("3x4x4 video + 0 before + 16 after" in note for note in after.notes)
    assert json.loads(json.dumps(after.to_json()))["sparse_calls"] == 4
    text = str(after)
    assert "4 (dense warm-up)" not in text
    assert "1 (dense warm-up)" in text
    assert kernel in text


def test_layers_whose_heads_are_all_full() -> None:
    small = tiny.wan()
    part = mixed_plan(small).sole
    layers = [part.layer(0, 0), part.layer(0, 1), sparse_vdit.LayerPlan(part.geometry, [Pattern.full()] * 2)]
    plan = SparsePlan.from_layers(part.model, [layers])
    sparse_vdit.apply(small.pipe, plan)
    small.run()
    found = sparse_vdit.explain(small.pipe)
    assert found.layers[2].kernel == "host: default backend"
    assert found.layers[2].dense_calls == {"all heads are full: the host's backend": 4}
    assert found.layers[2].sparse_calls == 0
    assert found.sparse_calls == 8
    assert "transformer: layers [2] are full in every bin and run on the host's backend." in found.notes


def test_weights_in_a_storage_format() -> None:
    """What q, k and v will be is known from the first call on."""
    small = tiny.wan()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    small.pipe.transformer.double()
    kernels = {layer.kernel for layer in sparse_vdit.explain(small.pipe).layers}
    assert kernels == {"not known before the first call (float64 weights)"}
    with pytest.raises(TypeError, match="float64, expected float32, float16 or bfloat16"):
        small.run(**{key: value.double() for key, value in small.inputs.items() if "embeds" in key})
    small.pipe.transformer.float()
    small.run()
    kernels = {layer.kernel for layer in sparse_vdit.explain(small.pipe).layers}
    assert kernels == {_C.attention_engine("float32", 64)}


def test_block_masks_are_named_so() -> None:
    import numpy as np

    small = tiny.wan()
    part = mixed_plan(small).sole
    mask = np.eye(3, dtype=bool)
    layer = sparse_vdit.LayerPlan.from_block_masks(part.geometry, [mask, mask])
    sparse_vdit.apply(small.pipe, SparsePlan.from_layers(part.model, [[layer] * 3]))
    small.run()
    found = sparse_vdit.explain(small.pipe)
    assert found.sparse_calls == 12
    assert {head.pattern for layer in found.layers for head in layer.heads} == {"block mask"}
    assert found.layers[0].visited == pytest.approx(1 / 3)
