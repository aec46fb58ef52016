"""Looking at a pipeline: layout, samples, noise levels, and how little of a generation it takes; the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_vdit.verify import Source, Stock, try_out

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402

from sparse_vdit.search import Sample  # noqa: E402
from sparse_vdit.search.weights import weights_of  # noqa: E402


def source_of(small: tiny.Tiny, steps: int) -> Source:
    """Latents only: what is generated is of no interest here."""
    return Source(
        small.pipe, lambda sample, steps, _: small.run(seed=sample.seed, num_inference_steps=steps), steps
    )


@pytest.mark.models
@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_every_family_is_looked_at(name: str) -> None:
    small = tiny.FAMILIES[name]()
    calls = [0]
    hooks = [
        module.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        for module in (small.pipe.transformer, getattr(small.pipe, "transformer_2", None))
        if module is not None
    ]
    found = try_out(source_of(small, 8), Sample("x", 3), {"height": 64})
    for hook in hooks:
        hook.remove()
    assert found.layout == small.layout
    branches = {"cogvideox": 2, "cogvideox1.5": 2, "hunyuan_video": 1, "wan": 2, "wan2.2": 2}[name]
    assert found.batch == branches
    assert calls[0] == 4 * (2 if name.startswith("wan") else 1)  # four steps whole, the fifth is cut
    assert found.dtype == "float32"
    assert found.attention_ms > 0
    assert found.rest_ms > 0
    assert found.dense_ratio is not None
    assert found.dense_ratio > 0
    assert found.steps == 8
    assert found.weights == weights_of(small.pipe)
    small.pipe.scheduler.set_timesteps(8)
    levels = [level for listed in found.levels.values() for level in listed]
    if not name.startswith("cogvideox"):
        assert levels == sorted(levels, reverse=True)
    else:
        assert levels == pytest.approx((small.pipe.scheduler.timesteps.double() / 1000).tolist())
    if name == "wan2.2":
        assert set(found.levels) == {"transformer", "transformer_2"}
        assert min(found.levels["transformer"]) >= 0.875 > max(found.levels["transformer_2"])
    else:
        assert set(found.levels) == {"transformer"}


@pytest.mark.models
def test_few_steps_are_enough() -> None:
    small = tiny.cogvideox()
    found = try_out(source_of(small, 2), Sample("x"))
    assert found.steps == 2
    assert found.levels["transformer"] == pytest.approx((0.999, 0.499))


def stock(**changed: Any) -> Stock:
    layout = {"frames": 3, "height": 4, "width": 4, "prefix": 8, "suffix": 0}
    fields = {"layout": layout, "batch": 2, "dtype": "float32", "levels": {"transformer": (1.0, 0.5)}}
    return Stock(**{**fields, "attention_ms": 30.0, "rest_ms": 10.0, **changed})


def test_the_numbers_of_a_step() -> None:
    found = stock()
    assert (found.step_ms, found.share, found.ceiling, found.steps) == (40.0, 0.75, 4.0, 2)
    assert "attention is 75% of it, ceiling 4.00x" in str(found)
    assert found.geometry(16, 32).tokens == 56
    assert "ceiling none" in str(stock(rest_ms=0.0))


def test_on_a_calm_machine_the_step_is_as_priced() -> None:
    class Priced:
        dense_layer_ms = 5.0

    found = stock(dense_ratio=1.5)
    calm = found.on({"transformer": Priced()}, {"transformer": 2})  # type: ignore[dict-item]
    assert (calm.attention_ms, calm.rest_ms, calm.share) == (15.0, 5.0, found.share)
    assert stock().on({}, {}) == stock()


def test_file_and_back(tmp_path: Path) -> None:
    found = stock(settings={"height": 64}, dense_ratio=1.25)
    assert Stock.load(found.save(tmp_path).parent) == found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention_ms": 0}, "attention_ms is 0"),
        ({"attention_ms": "1"}, "attention_ms is str, expected a number"),
        ({"dtype": "int8"}, "dtype is 'int8', expected one of float32, bfloat16, float16"),
        ({"levels": {"transformer": [1.5]}}, "the levels of transformer are"),
        ({"levels": {"a/b": [0.5]}}, "expected an identifier"),
        ({"levels": {"transformer": []}}, "no or too many steps"),
        ({"levels": [1]}, "levels is no object"),
        ({"batch": True}, "batch"),
        ({"dense_ratio": 0}, "dense_ratio is 0"),
        ({"dense_ratio": "1"}, "dense_ratio is str"),
        ({"layout": {"frames": 1}}, "layout"),
        ({"weights": {"transformer": "abc"}}, "weights is {'transformer': 'abc'}, expected a SHA-256"),
        ({"weights": 7}, "weights is 7, expected a SHA-256"),
        ({"more": 1}, "more"),
        ({"format": "x"}, "format is 'x'"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    (tmp_path / "stock.json").write_text(json.dumps(stock().to_json() | changes))
    with pytest.raises((ValueError, TypeError)) as error:
        Stock.load(tmp_path)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_notes_no_weights_is_read(tmp_path: Path) -> None:
    document = stock(weights={"transformer": "0" * 64}).to_json()
    assert document.pop("weights") == {"transformer": "0" * 64}
    (tmp_path / "stock.json").write_text(json.dumps(document))
    assert Stock.load(tmp_path) == stock()


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no stock\.json in"):
        Stock.load(tmp_path)
    (tmp_path / "stock.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="stock: "):
        Stock.load(tmp_path)
