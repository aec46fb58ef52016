"""Gradient power: exact for a linear model, and refused where a layer is not what it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparse_vdit.search.sensitivity import HeadOutputs, gradient_power  # noqa: E402

LAYERS, HEADS, WIDTH, TOKENS = 3, 2, 4, 50


def linear(outputs: HeadOutputs, weights: Any, x: Any, layers: int = LAYERS) -> Any:
    """y = x + sum over layers and heads of W_lh o_lh, with o [B, H, N, D]; y [B, N, H * D]."""
    y = x
    for layer in range(layers):
        heads = x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        out = outputs.answer(layer, lambda heads=heads: heads * 0.5)
        y = y + torch.einsum("bhnd,hdc->bnc", out, weights[layer])
    return y


def test_gradients_of_a_linear_model_are_its_weights() -> None:
    torch.manual_seed(0)
    weights = torch.randn(LAYERS, HEADS, WIDTH, HEADS * WIDTH)
    weights[1, 0] *= 10
    weights[2] = 0
    x = torch.randn(2, TOKENS, HEADS * WIDTH)
    outputs = HeadOutputs()
    power = gradient_power(outputs, lambda: linear(outputs, weights, x), (LAYERS, HEADS), probes=200)
    assert power == pytest.approx(weights.square().sum(dim=(2, 3)).numpy(), rel=0.1)
    assert power[2].tolist() == [0, 0]
    assert not outputs.kept, "the graph is let go"


def test_the_seed_decides() -> None:
    weights, x = torch.ones(LAYERS, HEADS, WIDTH, HEADS * WIDTH), torch.ones(1, TOKENS, HEADS * WIDTH)

    def power(seed: int) -> Any:
        outputs = HeadOutputs()
        return gradient_power(outputs, lambda: linear(outputs, weights, x), (LAYERS, HEADS), seed=seed)

    assert np.array_equal(power(1), power(1))
    assert not np.array_equal(power(1), power(2))


def test_models_that_are_refused() -> None:
    weights, x = torch.ones(LAYERS, HEADS, WIDTH, HEADS * WIDTH), torch.ones(1, TOKENS, HEADS * WIDTH)
    outputs = HeadOutputs()
    with pytest.raises(
        ValueError, match="sensitivity: layer 2 did not attend in this forward, expected every"
    ):
        gradient_power(outputs, lambda: linear(outputs, weights, x, 2), (LAYERS, HEADS))
    with pytest.raises(ValueError, match="sensitivity: layer 0 attended twice in one forward, expected once"):
        linear(outputs, weights, x)
    outputs = HeadOutputs()
    weights[1, 1] = float("inf")
    with pytest.raises(ValueError, match="sensitivity: the gradient of layer 1, head 1 is not finite"):
        gradient_power(outputs, lambda: linear(outputs, weights, x), (LAYERS, HEADS))
