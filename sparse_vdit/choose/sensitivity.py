"""How much a model's output feels an error in each head: gradients of random probes of the output.

For a probe p of the output y and the output o of a head, g = d(p . y) / do. An error e of the head moves the
probe by g . e, so heads compare by |g|^2 |e|^2: `ErrorTable.absolute_weights` makes weights of it. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def gradient_power(
    projections: Sequence[Any], heads: int, run: Callable[[], Any], *, probes: int = 4, seed: int = 0
) -> NDArray[np.float64]:
    """Mean square of the gradient at each head's output, [layers, heads].

    Args:
        projections: per layer the module that reads the joined heads [B, N, heads * D], e.g. `attn1.to_out[0]`.
        heads: number of heads.
        run: one forward pass of the stock model in float32; returns its output tensor.
        probes: random directions of the output (normal, one backward pass each).
        seed: of the directions.

    Raises:
        ValueError: a module was called other than once.
    """
    import torch

    seen: dict[int, list[Any]] = {}

    def keep(layer: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        joined = arguments[0]
        if not joined.requires_grad:
            joined = joined.detach().requires_grad_()
        seen.setdefault(layer, []).append(joined)
        return (joined, *arguments[1:])

    hooks = [
        module.register_forward_pre_hook(lambda _, arguments, layer=layer: keep(layer, arguments))
        for layer, module in enumerate(projections)
    ]
    try:
        with torch.enable_grad():
            output = run()
    finally:
        for hook in hooks:
            hook.remove()
    for layer in range(len(projections)):
        calls = len(seen.get(layer, ()))
        if calls != 1:
            raise ValueError(
                f"sensitivity: the projection of layer {layer} was called {calls} times, expected once"
            )
    joined = [seen[layer][0] for layer in range(len(projections))]
    power = np.zeros((len(projections), heads))
    generator = torch.Generator().manual_seed(seed)
    for number in range(probes):
        probe = torch.randn(output.shape, generator=generator).to(output)
        gradients = torch.autograd.grad(output, joined, probe, retain_graph=number + 1 < probes)
        for layer, gradient in enumerate(gradients):
            split = gradient.detach().double().unflatten(-1, (heads, -1))
            power[layer] += split.square().sum(-1).mean(dim=tuple(range(split.ndim - 2))).cpu().numpy()
    return power / probes
