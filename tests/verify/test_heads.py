"""Attention pictures against the whole softmax; their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import masks

from sparse_vdit import Geometry, LayerPlan, Order, Pattern
from sparse_vdit.report.figures import shrink_map
from sparse_vdit.verify.heads import (
    Picture,
    example_heads,
    head_maps,
    load_pictures,
    middle_step,
    save_pictures,
    small_map,
    take_pictures,
)

GEOMETRY = Geometry(frames=3, height=4, width=5, prefix=6, suffix=3, block_q=16, block_k=32)
LAYER = LayerPlan(
    GEOMETRY,
    [
        Pattern.diagonal(half_width=9), Pattern.multi_diagonal(half_width=4), Pattern.skip(),
        Pattern.periodic_tiles(tile=(1, 2, 2), time=(1, 0, None), space=(1, 0, 2)),
        Pattern.vertical_stripe(key_blocks=[1], order=Order.token_major()),
    ],
)  # fmt: skip


@pytest.mark.parametrize("kv_len", [None, 66, 67])
def test_small_maps_are_the_softmax_in_the_heads_order(rng: np.random.Generator, kv_len: int | None) -> None:
    n = GEOMETRY.tokens
    q, k = (rng.standard_normal((n, 8), dtype=np.float32) * 2 for _ in range(2))
    logits = (q.astype(float) @ k.T.astype(float)) / np.sqrt(8)
    if kv_len is not None:
        logits[:, kv_len:] = -np.inf
    soft = np.exp(logits - logits.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    for head, pattern in enumerate(LAYER.patterns):
        places = masks.places(GEOMETRY, pattern.order)
        whole = np.zeros((n, n))
        whole[np.ix_(places, places)] = soft
        weights, recall = small_map(LAYER, head, q, k, kv_len)
        assert weights == pytest.approx(whole, abs=1e-6)
        cover = masks.block_cover(GEOMETRY, pattern)
        seen = np.kron(cover, np.ones((16, 32)))[:n, :n] > 0
        assert recall == pytest.approx(whole[seen].sum() / n, abs=1e-6)


def test_large_maps_keep_thin_lines(rng: np.random.Generator) -> None:
    geometry = Geometry(frames=10, height=10, width=10, block_q=64, block_k=64)
    layer = LayerPlan(geometry, [Pattern.diagonal(half_width=0)])
    q = rng.standard_normal((1000, 32), dtype=np.float32)
    q *= 12 / np.linalg.norm(q, axis=1, keepdims=True)  # each looks at itself
    weights, recall = small_map(layer, 0, q, q)
    assert weights.shape == shrink_map(np.zeros((1000, 1000))).shape
    assert (np.diag(weights) > 0.9).all()
    assert recall > 0.9


torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import mixed_plan, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit.search import Sample  # noqa: E402
from sparse_vdit.verify import Source  # noqa: E402


@pytest.mark.models
@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video", "wan2.2"])
def test_pictures_of_a_pipeline_are_those_of_its_queries(name: str, tmp_path: Path) -> None:
    small = tiny.FAMILIES[name]()
    plan = mixed_plan(small, dense_above=0.99)
    seen: dict[int, Any] = {}

    def note(step: int, level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> None:
        length = None if dense.kv_len is None else int(dense.kv_len[-1])
        if step == wanted:
            seen.setdefault(layer, (q[-1].numpy().copy(), k[-1].numpy().copy(), length))

    levels = {"cogvideox": (0.999, 0.499), "hunyuan_video": (1.0, 0.875), "wan2.2": (1.0, 0.95, 0.875, 0.7)}[
        name
    ]
    wanted = middle_step(plan, levels)
    with sparse_vdit.observe(small.pipe, note):
        small.run()
    source = Source(small.pipe, lambda sample, steps, _: small.run(num_inference_steps=steps), small.steps)
    pictures = take_pictures(source, plan, Sample("a"), levels)
    assert len(pictures) == min(6, 2 * plan.model.layers)
    for picture in pictures:
        _, bin_, layer, head = picture.place
        q, k, length = seen[layer]
        weights, recall = small_map(plan.layer(bin_, layer), head, q[head], k[head], length)
        assert (picture.weights == weights).all()
        assert picture.recall == recall
    assert not sparse_vdit.explain(small.pipe).layers
    save_pictures(tmp_path, plan, pictures)
    found = load_pictures(tmp_path, plan)
    assert [picture.place for picture in found] == [picture.place for picture in pictures]
    assert all((one.weights == two.weights).all() for one, two in zip(found, pictures, strict=True))
    assert load_pictures(tmp_path, uniform_plan(small, Pattern.full())) == []
    maps = head_maps(plan, found)
    assert [head.family for head in maps] == [plan.sole.kinds()[0][p.place[2]][p.place[3]] for p in found]


@pytest.mark.models
def test_examples_show_many_kinds() -> None:
    plan = mixed_plan(tiny.hunyuan_video())
    found = example_heads(plan, 0, 4)
    kinds = [plan.sole.kinds()[0][layer][head] for _, _, layer, head in found]
    assert len(set(kinds)) == 4
    assert len(example_heads(plan, 0, 100)) == 8


@pytest.mark.models
def test_bad_pictures_are_one_sentence(tmp_path: Path) -> None:
    plan = mixed_plan(tiny.cogvideox())
    good = Picture(("transformer", 0, 0, 0), 0.5, 0.5, np.ones((9, 9), np.float32))
    for bad, sentence in (
        (Picture(("transformer", 0, 9, 0), 0.5, 0.5, good.weights), "layer is 9"),
        (Picture(("other", 0, 0, 0), 0.5, 0.5, good.weights), "a place is"),
        (Picture(good.place, 0.5, 0.5, np.ones((900, 900), np.float32)), "a map is missing or not finite"),
        (
            Picture(good.place, 0.5, 0.5, np.full((9, 9), np.nan, np.float32)),
            "a map is missing or not finite",
        ),
    ):
        save_pictures(tmp_path, plan, [bad])
        with pytest.raises((ValueError, TypeError), match=sentence):
            load_pictures(tmp_path, plan)
    assert load_pictures(tmp_path / "nowhere", plan) == []
