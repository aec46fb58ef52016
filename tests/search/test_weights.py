"""The hash of weights: what it notices, and that it reads little."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from sparse_vdit.search.weights import SAMPLED, weights_hash, weights_of  # noqa: E402


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 1, bias=False)).to(dtype)


def test_the_same_weights_have_the_same_hash() -> None:
    assert weights_hash(model()) == weights_hash(model())
    strided = model()
    strided[0].weight.data = strided[0].weight.data.t().contiguous().t()
    assert weights_hash(strided) == weights_hash(model()), "how numbers lie in memory does not count"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_differ(dtype: torch.dtype) -> None:
    assert weights_hash(model(dtype)) != weights_hash(model())
    assert weights_hash(model(dtype)) == weights_hash(model(dtype))


def test_names_shapes_and_numbers_differ() -> None:
    other = torch.nn.Sequential()
    for name, part in zip("ab", model(), strict=True):
        other.add_module(name, part)
    turned = model()
    turned[1].weight.data = turned[1].weight.data.reshape(48, 1)
    small = model()
    small[1].weight.data[0, 17] += 1
    trained = model()
    trained[0].weight.data.mul_(1.01)
    found = {weights_hash(made) for made in (model(), other, turned, small, trained)}
    assert len(found) == 5


def test_a_large_parameter_is_sampled() -> None:
    large = torch.nn.Linear(SAMPLED, 8, bias=False)
    before = weights_hash(large)
    large.weight.data.view(-1)[1] += 1  # between two samples, as documented
    assert weights_hash(large) == before
    large.weight.data.view(-1)[8 * 3] += 1
    assert weights_hash(large) != before


def test_without_memory_shapes_count() -> None:
    with torch.device("meta"):
        a, b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 5)
    assert weights_hash(a) != weights_hash(b)


def test_by_transformer() -> None:
    class Pipe:
        transformer, transformer_2 = model(), model(torch.bfloat16)

    assert weights_of(Pipe()) == {
        "transformer": weights_hash(model()),
        "transformer_2": weights_hash(model(torch.bfloat16)),
    }
    assert weights_of(model()) == {"transformer": weights_hash(model())}
