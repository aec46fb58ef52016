"""apply, remove, applied: identity, idempotence, independence, and every refusal with its sentence."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import mixed_plan, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Geometry, Pattern, SparsePlan, UnsupportedError  # noqa: E402
from sparse_vdit.models.attend import SITE, SparseProcessor  # noqa: E402

pytestmark = pytest.mark.models

NAMES = ["cogvideox", "hunyuan_video", "wan", "wan2.2"]


def processors(pipe: Any) -> dict[str, Any]:
    """Every processor of a pipeline, by path."""
    return {
        f"{name}.{path}": module.processor
        for name in ("transformer", "transformer_2")
        if getattr(pipe, name, None) is not None
        for path, module in getattr(pipe, name).named_modules()
        if hasattr(module, "processor")
    }


def same_objects(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[path] is b[path] for path in a)


def ours(pipe: Any) -> set[str]:
    return {path for path, processor in processors(pipe).items() if isinstance(processor, SparseProcessor)}


def attributes(pipe: Any) -> list[set[str]]:
    """Attributes and hooks of every module: what an installation may leave behind."""
    return [
        {*module.__dict__, *map(str, module._forward_pre_hooks), *map(str, module._forward_hooks)}
        for name in ("transformer", "transformer_2")
        if getattr(pipe, name, None) is not None
        for module in getattr(pipe, name).modules()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_remove_restores_the_same_objects(name: str) -> None:
    small = tiny.FAMILIES[name]()
    before, found_before = processors(small.pipe), attributes(small.pipe)
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    expected = {
        "cogvideox": 3,
        "hunyuan_video": 4,
        "wan": 3,
        "wan2.2": 6,
    }[name]
    assert len(ours(small.pipe)) == expected
    assert not any("attn2" in path or "refiner" in path for path in ours(small.pipe))
    sparse_vdit.remove(small.pipe)
    assert same_objects(processors(small.pipe), before)
    assert attributes(small.pipe) == found_before
    sparse_vdit.remove(small.pipe)  # a second time does nothing
    assert same_objects(processors(small.pipe), before)


def test_same_plan_is_no_change_and_another_replaces() -> None:
    small = tiny.wan()
    stock = processors(small.pipe)
    plan = mixed_plan(small)
    sparse_vdit.apply(small.pipe, plan)
    first = processors(small.pipe)
    small.run()
    sparse_vdit.apply(small.pipe, SparsePlan.from_json(plan.to_json()))
    assert same_objects(processors(small.pipe), first)
    assert sparse_vdit.explain(small.pipe).sparse_calls > 0  # the tally went on
    sparse_vdit.apply(small.pipe, uniform_plan(small, Pattern.full()))
    assert sparse_vdit.explain(small.pipe).sparse_calls == 0
    small.run()
    assert sparse_vdit.explain(small.pipe).sparse_calls == 0
    sparse_vdit.remove(small.pipe)
    assert same_objects(processors(small.pipe), stock)


def test_applied_goes_back_to_what_was_there() -> None:
    small = tiny.wan()
    outer, inner = mixed_plan(small), uniform_plan(small, Pattern.full())
    dense = small.run()
    with sparse_vdit.applied(small.pipe, outer) as pipe:
        assert pipe is small.pipe
        sparse = small.run()
        calls = sparse_vdit.explain(small.pipe).sparse_calls
        with sparse_vdit.applied(small.pipe, inner):
            assert torch.equal(small.run(), dense)
        assert sparse_vdit.explain(small.pipe).sparse_calls == calls > 0  # its own tally
        assert torch.equal(small.run(), sparse)
        with sparse_vdit.applied(small.pipe, outer):
            assert torch.equal(small.run(), sparse)
        assert torch.equal(small.run(), sparse)
    assert torch.equal(small.run(), dense)
    with pytest.raises(RuntimeError, match="stop"), sparse_vdit.applied(small.pipe, outer):
        raise RuntimeError("stop")
    assert not ours(small.pipe)


def test_two_pipelines_are_independent() -> None:
    one, other = tiny.wan(), tiny.wan()
    dense = other.run()
    sparse_vdit.apply(one.pipe, mixed_plan(one))
    assert torch.equal(other.run(), dense)
    sparse = one.run()
    sparse_vdit.apply(other.pipe, uniform_plan(other, Pattern.diagonal(half_width=0)))
    assert torch.equal(one.run(), sparse)
    sparse_vdit.remove(one.pipe)
    assert torch.equal(one.run(), dense)
    assert not torch.equal(other.run(), dense)


def test_a_transformer_alone() -> None:
    small = tiny.hunyuan_video()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    expected = small.run()
    sparse_vdit.remove(small.pipe.transformer)
    sparse_vdit.apply(small.pipe.transformer, mixed_plan(small).for_transformer())
    assert torch.equal(small.run(), expected)


def test_two_pipelines_around_one_transformer() -> None:
    """The clock follows the pipeline that was named last; nothing else is done twice."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    small = tiny.wan()
    plan = mixed_plan(small, dense_above=0.95)
    sparse_vdit.apply(small.pipe, plan)
    stock = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer_2": None}
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=500, shift=7.0)
    other = WanPipeline(**stock, transformer=small.pipe.transformer, scheduler=scheduler)
    first = processors(small.pipe)
    sparse_vdit.apply(other, plan)
    assert same_objects(processors(other), first)
    small.run(other)
    assert sparse_vdit.explain(other).dense_calls == {"dense warm-up": 2 * 3}
    sparse_vdit.apply(other.transformer, plan)  # by itself: the clock stays
    small.run(other)
    assert sparse_vdit.explain(other).dense_calls == {"dense warm-up": 4 * 3}


def test_exception_inside_a_run() -> None:
    small = tiny.cogvideox()
    sparse_vdit.apply(small.pipe, mixed_plan(small, dense_above=0.9))
    expected = small.run()

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        small.run(callback_on_step_end=stop)
    assert torch.equal(small.run(), expected)


def test_deepcopy_is_on_its_own() -> None:
    small = tiny.wan(2)
    dense = small.run()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    sparse = small.run()
    calls = sparse_vdit.explain(small.pipe).sparse_calls
    twin = copy.deepcopy(small.pipe)
    assert torch.equal(small.run(twin), sparse)
    assert sparse_vdit.explain(small.pipe).sparse_calls == calls
    assert sparse_vdit.explain(twin).sparse_calls == 2 * calls
    with torch.no_grad():
        twin.transformer.proj_out.weight.zero_()
        twin.transformer_2.proj_out.weight.zero_()
    assert not torch.equal(small.run(twin), sparse)  # it runs its own weights
    sparse_vdit.remove(twin)
    assert not ours(twin)
    assert torch.equal(small.run(), sparse)
    sparse_vdit.remove(small.pipe)
    assert torch.equal(small.run(), dense)


def test_save_pretrained_knows_nothing(tmp_path: Any) -> None:
    small = tiny.wan()
    dense = small.run()
    small.pipe.save_pretrained(tmp_path / "stock")
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    small.run()
    small.pipe.save_pretrained(tmp_path / "ours")
    files = [
        path.relative_to(tmp_path / "stock") for path in (tmp_path / "stock").rglob("*") if path.is_file()
    ]
    assert len(files) >= 4
    for file in files:
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes(), file
    loaded = type(small.pipe.transformer).from_pretrained(tmp_path / "ours" / "transformer")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, small.pipe.transformer.state_dict()[name])
    small.pipe.transformer = copy.deepcopy(loaded)  # deepcopy: memory-mapped weights are unaligned
    assert not ours(small.pipe)
    assert torch.allclose(small.run(), dense, atol=1e-4)


def test_set_attention_backend_reaches_the_dense_path() -> None:
    small = tiny.wan()
    dense = small.run()
    stock = [block.attn1.processor for block in small.pipe.transformer.blocks]
    sparse_vdit.apply(small.pipe, uniform_plan(small, Pattern.full()))
    small.pipe.transformer.set_attention_backend("_native_math")
    try:
        layers = sparse_vdit.explain(small.pipe).layers
        assert {layer.kernel for layer in layers} == {"host: _native_math"}
        assert torch.allclose(small.run(), dense, atol=1e-4)
        sparse_vdit.remove(small.pipe)
        assert {str(processor._attention_backend.value) for processor in stock} == {"_native_math"}
    finally:
        small.pipe.transformer.reset_attention_backend()
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        _AttentionBackendRegistry._active_backend = type(_AttentionBackendRegistry._active_backend)("native")


class _Unknown:
    def __call__(self, attn: Any, hidden_states: Any, **rest: Any) -> Any:
        raise AssertionError


def test_refusals_change_nothing() -> None:
    small = tiny.wan()
    plan = mixed_plan(small)
    before = processors(small.pipe)
    diffusers_version = __import__("diffusers").__version__

    with pytest.raises(TypeError, match="apply: got int, expected a diffusers pipeline"):
        sparse_vdit.apply(3, plan)
    with pytest.raises(TypeError, match="apply: plan is dict, expected a SparsePlan"):
        sparse_vdit.apply(small.pipe, {})
    with pytest.raises(UnsupportedError, match=r"apply: transformer is torch.nn.modules.linear.Linear"):
        sparse_vdit.apply(torch.nn.Linear(2, 2), plan)

    last = small.pipe.transformer.blocks[2].attn1
    stock = last.processor
    last.processor = _Unknown()
    with pytest.raises(
        UnsupportedError, match=rf"_Unknown, expected WanAttnProcessor \(diffusers {diffusers_version}"
    ):
        sparse_vdit.apply(small.pipe, plan)
    assert not ours(small.pipe)
    last.processor = stock
    assert same_objects(processors(small.pipe), before)

    other = tiny.wan(layers=2)
    with pytest.raises(ValueError, match="layers is 2, expected 3: the plan is of another model"):
        sparse_vdit.apply(other.pipe, plan)
    with pytest.raises(ValueError, match="the plan is of another model"):
        sparse_vdit.apply(tiny.cogvideox().pipe, plan)
    assert not hasattr(small.pipe.transformer.blocks[0].attn1, SITE)


@pytest.mark.parametrize("experts", [1, 2])
def test_a_refused_plan_leaves_the_one_at_work(experts: int) -> None:
    """Both experts are looked at before either is touched."""
    small = tiny.wan(experts)
    plan = mixed_plan(small)
    sparse_vdit.apply(small.pipe, plan)
    expected, before = small.run(), processors(small.pipe)
    calls = sparse_vdit.explain(small.pipe).sparse_calls
    last = (small.pipe.transformer_2 or small.pipe.transformer).blocks[2].attn1
    at_work, last.processor = last.processor, _Unknown()
    for other in (uniform_plan(small, Pattern.diagonal(half_width=0)), plan):
        with pytest.raises(UnsupportedError, match=r"processor of layer 2 is .*_Unknown"):
            sparse_vdit.apply(small.pipe, other)
        with pytest.raises(UnsupportedError, match="_Unknown"), sparse_vdit.applied(small.pipe, other):
            raise AssertionError
    last.processor = at_work
    assert same_objects(processors(small.pipe), before)
    assert sparse_vdit.explain(small.pipe).sparse_calls == calls
    assert torch.equal(small.run(), expected)


@pytest.mark.parametrize("planned", [True, False])
def test_cut_short_goes_back(planned: bool) -> None:
    """Ctrl-C between two processors: the plan from before, or the stock objects."""
    small = tiny.wan(2)
    small.run()  # diffusers' own attributes
    stock, before = processors(small.pipe), attributes(small.pipe)
    if planned:
        sparse_vdit.apply(small.pipe, mixed_plan(small))
    expected = small.run()
    module = small.pipe.transformer_2.blocks[1].attn1
    module.set_processor = _interrupted_once(module.set_processor, planned)
    with pytest.raises(KeyboardInterrupt):
        sparse_vdit.apply(small.pipe, uniform_plan(small, Pattern.diagonal(half_width=0)))
    del module.set_processor
    assert torch.equal(small.run(), expected)
    sparse_vdit.remove(small.pipe)
    assert same_objects(processors(small.pipe), stock)
    assert attributes(small.pipe) == before


def _interrupted_once(setter: Any, planned: bool) -> Any:
    """The first time, or with a plan at work, which is taken off first, the second."""
    calls = []

    def set_processor(processor: Any) -> None:
        calls.append(processor)
        if len(calls) == 1 + planned:
            raise KeyboardInterrupt
        setter(processor)

    return set_processor


def test_subclass_and_signature_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    small = tiny.wan()
    plan = mixed_plan(small)

    class Derived(type(small.pipe.transformer)):  # type: ignore[misc]
        pass

    stock = type(small.pipe.transformer)
    small.pipe.transformer.__class__ = Derived
    with pytest.raises(UnsupportedError, match="Derived, expected one of CogVideoXTransformer3DModel"):
        sparse_vdit.apply(small.pipe, plan)
    small.pipe.transformer.__class__ = stock

    def newer(self: Any, attn: Any, hidden_states: Any, surprise: Any = None) -> Any:
        raise AssertionError

    monkeypatch.setattr(WanAttnProcessor, "__call__", newer)
    with pytest.raises(
        UnsupportedError, match=r"takes \(attn, hidden_states, surprise\), expected \(attn, hidden"
    ):
        sparse_vdit.apply(small.pipe, plan)


@pytest.mark.parametrize("kind", ["context_parallel_config", "tensor_parallel_config"])
def test_parallelism_is_refused(kind: str) -> None:
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

    small = tiny.wan()
    plan = mixed_plan(small)
    config: Any = SimpleNamespace(**{kind: object()})  # tensor parallelism is younger than 0.36
    if kind == "context_parallel_config":
        config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    small.pipe.transformer._parallel_config = config
    with pytest.raises(UnsupportedError, match=f"apply: WanTransformer3DModel has a {kind}"):
        sparse_vdit.apply(small.pipe, plan)
    small.pipe.transformer._parallel_config = None
    sparse_vdit.apply(small.pipe, plan)
    small.pipe.transformer._parallel_config = config  # enabled after apply: refused when it runs
    with pytest.raises(UnsupportedError, match=f"attention: WanTransformer3DModel has a {kind}"):
        small.run()


@pytest.mark.parametrize("name", NAMES[:3])
def test_another_resolution_names_the_way_out(name: str) -> None:
    small = tiny.FAMILIES[name]()
    plan = mixed_plan(small)
    sparse_vdit.apply(small.pipe, plan)
    expected = small.run()
    with pytest.raises(
        ValueError, match=r"attention: this forward has 5x8x8 .*plan\.for_geometry\("
    ) as caught:
        small.run(**tiny.LARGE)
    assert torch.equal(small.run(), expected)
    geometry = eval(str(caught.value).split("for_geometry(")[1][:-1], {"Geometry": Geometry})
    sparse_vdit.apply(small.pipe, plan.for_geometry(geometry))
    small.run(**tiny.LARGE)
    assert sparse_vdit.explain(small.pipe).sparse_calls > 0


def test_two_parts_for_two_experts() -> None:
    small = tiny.wan(2)
    first, second = mixed_plan(small).sole, uniform_plan(small, Pattern.full()).sole
    plan = SparsePlan({"transformer": first, "transformer_2": second})
    sparse_vdit.apply(small.pipe, plan)
    small.run()
    layers = sparse_vdit.explain(small.pipe).layers
    assert {layer.transformer for layer in layers if layer.sparse_calls} == {"transformer"}
    assert {layer.transformer for layer in layers if layer.dense_calls} == {"transformer_2"}
    with pytest.raises(ValueError, match="it has 2 transformers"):
        sparse_vdit.apply(small.pipe.transformer, plan)
    one = tiny.wan()
    with pytest.raises(ValueError, match="it has no transformer 'transformer_2'"):
        sparse_vdit.apply(small.pipe, SparsePlan({"transformer": first, "other": second}))
    sparse_vdit.apply(one.pipe, plan)  # the first expert alone has its part


def test_another_part_beside_block_masks_is_another_plan() -> None:
    small = tiny.wan(2)
    part, full = mixed_plan(small).sole, uniform_plan(small, Pattern.full()).sole
    eye = torch.eye(3, dtype=torch.bool).numpy()
    layer = sparse_vdit.LayerPlan.from_block_masks(part.geometry, [eye, eye])
    masks = SparsePlan.from_layers(part.model, [[layer] * 3]).sole
    sparse_vdit.apply(small.pipe, SparsePlan({"transformer": full, "transformer_2": masks}))
    second = small.pipe.transformer_2.blocks[0].attn1.processor
    sparse_vdit.apply(small.pipe, SparsePlan({"transformer": part, "transformer_2": masks}))
    assert small.pipe.transformer_2.blocks[0].attn1.processor is second  # its part is the same
    small.run()
    layers = sparse_vdit.explain(small.pipe).layers
    assert {layer.transformer for layer in layers if layer.sparse_calls} == {"transformer", "transformer_2"}
