"""Which weights a pipeline has: a SHA-256 per transformer, so that what was measured on others is not reused."""

from __future__ import annotations

import hashlib
from typing import Any

from .recorder import TRANSFORMERS

SAMPLED = 1024  # numbers of each parameter


def weights_of(pipe: Any) -> dict[str, str]:
    """`weights_hash` of a pipeline's transformers by name; of `pipe` itself where it is a transformer."""
    found = {name: getattr(pipe, name, None) for name in TRANSFORMERS}
    given = {name: weights_hash(module) for name, module in found.items() if module is not None}
    return given or {TRANSFORMERS[0]: weights_hash(pipe)}


def weights_hash(transformer: Any) -> str:
    """SHA-256 over every parameter's name, dtype, shape, and the bytes of a strided sample of its numbers.

    Of each parameter about `SAMPLED` numbers are read at even distances (all of them where it has fewer), so that a
    model of many gigabytes costs little. Other training, precision, adapters or sizes are noticed; a change that
    spares all sampled numbers is not, nor are values of parameters without memory (device "meta", as offloading
    leaves them), of which name, dtype and shape count alone.
    """
    found = hashlib.sha256()
    module = getattr(transformer, "_orig_mod", transformer)
    named = {name.replace("_orig_mod.", ""): value for name, value in module.named_parameters()}
    for name, parameter in sorted(named.items()):
        found.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        if parameter.device.type != "meta":
            found.update(_sampled(parameter))
    return found.hexdigest()


def _sampled(parameter: Any) -> bytes:
    import torch

    flat = parameter.detach().reshape(-1)
    taken = flat[:: max(1, len(flat) // SAMPLED)].contiguous().cpu()
    return bytes(taken.view(torch.uint8).numpy().tobytes())
