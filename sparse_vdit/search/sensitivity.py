"""How much a model's output feels an error in each head: gradients of random probes of the output.

For a probe p of the output y and the output o of a head, g = d(p . y) / do. An error e of the head moves the
probe by g . e, so that heads compare by |g|^2 |e|^2. The heads' outputs are taken at the attention itself, by
an observer, so that no family's modules need to be known. Needs torch; one backward pass per probe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class HeadOutputs:
    """Stands in for a recorder during one forward and keeps every layer's attention output, to differentiate by."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}

    def answer(self, layer: int, dense: Callable[[], Any]) -> Any:
        """The dense output [B, H, N, D], part of the graph."""
        if layer in self.kept:
            raise ValueError(f"sensitivity: layer {layer} attended twice in one forward, expected once")
        out = dense()
        if not out.requires_grad:
            out = out.detach().requires_grad_()
        self.kept[layer] = out
        return out


def gradient_power(
    outputs: HeadOutputs,
    run: Callable[[], Any],
    shape: tuple[int, int],
    *,
    probes: int = 1,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Mean square of the gradient at each head's output, float64 [layers, heads].

    Args:
        outputs: whose `answer` every layer's attention takes while `run` runs.
        run: one forward pass; returns the output tensor.
        shape: (layers, heads).
        probes: random directions of the output (normal, one backward pass each).
        seed: of the directions.

    Raises:
        ValueError: a layer did not attend; the gradient is not finite.
    """
    import torch

    layers, heads = shape
    with torch.enable_grad():
        output = run()
    for layer in range(layers):
        if layer not in outputs.kept:
            raise ValueError(
                f"sensitivity: layer {layer} did not attend in this forward, expected every layer"
            )
    joined = [outputs.kept[layer] for layer in range(layers)]
    power = np.zeros((layers, heads))
    generator = torch.Generator().manual_seed(seed)
    for number in range(probes):
        direction = torch.randn(output.shape, generator=generator).to(output)
        gradients = torch.autograd.grad(output, joined, direction, retain_graph=number + 1 < probes)
        for layer, gradient in enumerate(gradients):
            squares = gradient.detach().float().square().sum(dim=-1, dtype=torch.float64)
            power[layer] += squares.mean(dim=(0, 2)).cpu().numpy()
    outputs.kept.clear()
    if not np.isfinite(power).all():
        layer, head = (int(n) for n in np.argwhere(~np.isfinite(power))[0])
        raise ValueError(
            f"sensitivity: the gradient of layer {layer}, head {head} is not finite, expected finite ones"
        )
    return power / probes
