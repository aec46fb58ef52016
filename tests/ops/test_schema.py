"""The operator keeps torch's rules: schema, fakes, autograd and dispatch, by `torch.library.opcheck`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, UnsupportedError, attention, ops  # noqa: E402

GEOMETRY = Geometry(frames=4, height=6, width=8, prefix=4, suffix=3, block_q=32, block_k=16)
PATTERNS = [
    Pattern.full(),
    Pattern.skip(),
    Pattern.diagonal(half_width=15, remainder=0.25),
    Pattern.multi_diagonal(half_width=4),
    Pattern.vertical_stripe(key_blocks=[3, 7], order=Order.tiles(1, 2, 2), remainder=-0.5),
]


def arguments(
    *,
    dtype: Any = torch.float32,
    head_dim: int = 16,
    transposed: bool = False,
    kv_len: list[int] | None = None,
    return_lse: bool = False,
    batch: int = 2,
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(7)
    heads, tokens = len(PATTERNS), GEOMETRY.tokens
    shape = (batch, tokens, heads, head_dim) if transposed else (batch, heads, tokens, head_dim)
    qkv = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    if transposed:
        qkv = [tensor.transpose(1, 2) for tensor in qkv]
    packed = ops.PackedLayer.from_arrays(LayerPlan(GEOMETRY, PATTERNS).packed())
    lengths = None if kv_len is None else torch.tensor(kv_len)
    bin_ = torch.zeros(1, dtype=torch.int64)
    return (*qkv, *packed[:5], bin_, list(packed.geometry), head_dim**-0.5, lengths, return_lse)


CASES = {
    "float32": {},
    "transposed, lse": {"transposed": True, "return_lse": True},
    "bfloat16, kv_len": {"dtype": torch.bfloat16, "kv_len": [196, 199], "head_dim": 24},
    "float16, lse": {"dtype": torch.float16, "return_lse": True},
    "batch 0": {"batch": 0, "return_lse": True},
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str) -> None:
    torch.library.opcheck(torch.ops.sparse_vdit.attention.default, arguments(**CASES[case]))


@pytest.mark.slow
def test_opcheck_of_the_python_bodies() -> None:
    """The same in a process that cannot see _torch."""
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "sparse_vdit._torch" else find(name, *rest)
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_schema, torch
from sparse_vdit import ops, build_info
assert ops.DOOR == build_info()["torch_door"] == "python", ops.DOOR
for options in test_schema.CASES.values():
    torch.library.opcheck(torch.ops.sparse_vdit.attention.default, test_schema.arguments(**options))
print("passed", "sparse_vdit._torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.split()[-2:] == ["passed", "False"], done.stderr[-2000:]


def test_an_extension_that_does_not_load_is_said_aloud() -> None:
    """Built against another torch: the Python bodies serve, and a warning names the reason."""
    code = """
import importlib.util, warnings
real = importlib.import_module
def load(name, *rest):
    if name == "sparse_vdit._torch":
        raise ImportError("undefined symbol: torch_call_dispatcher")
    return real(name, *rest)
importlib.import_module = load
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: name == "sparse_vdit._torch" or find(name, *rest)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", RuntimeWarning)
    from sparse_vdit import ops
print(ops.DOOR, *[str(w.message) for w in caught if "_torch" in str(w.message)])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/")
    said = done.stdout.strip()
    assert said.startswith("python ops: sparse_vdit._torch does not load under torch "), done.stderr[-2000:]
    assert "(undefined symbol: torch_call_dispatcher)" in said


@pytest.mark.parametrize("case", CASES)
def test_fake_tells_shape_dtype_and_strides(case: str) -> None:
    given = arguments(**CASES[case])
    real = torch.ops.sparse_vdit.attention.default(*given)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in given]
        told = torch.ops.sparse_vdit.attention.default(*fakes)
    for one, other in zip(real, told, strict=True):
        assert one.shape == other.shape
        assert one.stride() == other.stride()
        assert one.dtype == other.dtype


def test_output_keeps_the_memory_order_of_q() -> None:
    out, _ = torch.ops.sparse_vdit.attention.default(*arguments(transposed=True))
    assert out.transpose(1, 2).is_contiguous()
    rows = out.transpose(1, 2).flatten(2)
    assert rows.data_ptr() == out.data_ptr()
    out, _ = torch.ops.sparse_vdit.attention.default(*arguments())
    assert out.is_contiguous()


def test_what_requires_grad_is_refused() -> None:
    given = list(arguments())
    for position, name in enumerate("qkv"):
        tensors = [given[i].clone().requires_grad_(i == position) for i in range(3)]
        sentence = f"attention: {name} requires grad, expected inputs without \\(there is no backward\\)"
        with pytest.raises(UnsupportedError, match=sentence):
            torch.ops.sparse_vdit.attention.default(*tensors, *given[3:])
        with torch.no_grad():
            out, _ = torch.ops.sparse_vdit.attention.default(*tensors, *given[3:])
        assert not out.requires_grad


def test_cuda_is_refused_in_a_sentence() -> None:
    """No GPU here: the CUDA key is reached through tensors that only claim to be there."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sparse_vdit::attention", "CUDA")
    with torch._subclasses.FakeTensorMode():
        q = torch.empty(1, len(PATTERNS), GEOMETRY.tokens, 16, device="cuda")
        packed = ops.PackedLayer.from_arrays(LayerPlan(GEOMETRY, PATTERNS).packed())
        sentence = "attention: q is on cuda, expected cpu: CUDA kernels are not part of this version"
        with pytest.raises(UnsupportedError, match=sentence):
            ops.attention_layer(q, q, q, packed, torch.zeros(1, dtype=torch.int64), 0.25)


def test_the_cuda_key_itself_refuses() -> None:
    """What a call of the operator past `ops.attention_layer` meets."""
    device = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(UnsupportedError, match="attention: q is on cuda, expected cpu"):
        torch.ops.sparse_vdit.attention.default.redispatch(device, *arguments())


def test_tensors_of_several_devices_are_refused() -> None:
    """A meta tensor among them reaches the fake, which must not hand out memory that nobody filled."""
    given = list(arguments())
    for position, name in enumerate("qkv"):
        mixed = [tensor.to("meta") if i == position else tensor for i, tensor in enumerate(given[:3])]
        with pytest.raises(ValueError, match=f"attention: {'k' if name == 'q' else name} is on "):
            torch.ops.sparse_vdit.attention.default(*mixed, *given[3:])


def test_bins_are_picked_by_a_tensor() -> None:
    first, second = LayerPlan(GEOMETRY, PATTERNS), LayerPlan(GEOMETRY, [Pattern.full()] * len(PATTERNS))
    from sparse_vdit.plan import pack

    both = ops.PackedLayer.from_arrays(pack([first, second]))
    q, k, v = arguments()[:3]
    for number, layer in enumerate((first, second)):
        alone = ops.attention_layer(q, k, v, ops.PackedLayer.from_arrays(layer.packed()), None, 0.25)
        together = ops.attention_layer(q, k, v, both, torch.tensor([number]), 0.25)
        assert torch.equal(alone, together)
    with pytest.raises(ValueError, match=r"attention: bin is 2, expected 0\.\.1"):
        ops.attention_layer(q, k, v, both, torch.tensor([2]), 0.25)


def test_lists_of_the_wrong_shape_or_type_are_refused() -> None:
    q, k, v, items, codes, heads, betas, tokens, bin_, geometry, *rest = arguments()

    def call(**changed: Any) -> Any:
        lists = {
            "items": items,
            "codes": codes,
            "heads": heads,
            "betas": betas,
            "tokens": tokens,
            "bin": bin_,
        } | changed
        return torch.ops.sparse_vdit.attention.default(q, k, v, *lists.values(), geometry, *rest)

    for sentence, changed in {
        "items has 2 dimensions, expected 3": {"items": items[0]},
        "items is of another dtype, expected int32": {"items": items.long()},
        r"heads.shape\[0\] is 2, expected 1": {"heads": heads.repeat(2, 1, 1)},
        r"betas.shape\[1\] is 4, expected 5": {"betas": betas[:, :4].contiguous()},
        r"tokens.shape\[1\] is 198, expected 199": {"tokens": tokens[:, :198].contiguous()},
        r"tokens.stride\[1\] is 2, expected 1 \(contiguous\)": {
            "tokens": tokens.repeat_interleave(2, 1)[:, ::2]
        },
        r"q.shape\[1\] is 5, expected 4": {
            "heads": heads[:, :4].contiguous(),
            "betas": betas[:, :4].contiguous(),
        },
        "bin is of another dtype, expected int64": {"bin": bin_.int()},
    }.items():
        with pytest.raises(ValueError, match=f"attention: {sentence}"):
            call(**changed)


def test_packed_layer_shares_the_memory_of_the_plan() -> None:
    arrays = LayerPlan(GEOMETRY, PATTERNS).packed()
    packed = ops.PackedLayer.from_arrays(arrays)
    assert len(arrays.codes) > 10
    assert packed.codes.data_ptr() == arrays.codes.__array_interface__["data"][0]
    assert np.array_equal(packed.items.numpy(), arrays.items)


def test_a_layer_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = arguments()[:3]
    made = []
    real = ops.PackedLayer.from_arrays.__func__
    monkeypatch.setattr(
        ops.PackedLayer, "from_arrays", classmethod(lambda cls, *given: made.append(1) or real(cls, *given))
    )
    first, second = (LayerPlan(GEOMETRY, patterns) for patterns in (PATTERNS, PATTERNS[::-1]))
    outs = [attention(q, k, v, layer=layer) for layer in (first, second, first, second)]
    assert len(made) == 2
    assert torch.equal(outs[0], outs[2])
    assert torch.equal(outs[1], outs[3])
    assert not torch.equal(outs[0], outs[1])
    assert first.packed() is first.packed()
    with pytest.raises(ValueError, match="read-only"):
        first.packed().items[0, 0, 0] = 7
