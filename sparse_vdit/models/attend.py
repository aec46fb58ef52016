"""The one junction: attention goes to the sparse operator, to the host's own backend, or to an observer.

A processor is a plain object without numbers of its own, shared by the layers of a model; what differs by
layer is a `Site` on the attention module, mostly tensors. Traced code reads one Python value, `Site.dense`:
a compiled model has one graph for dense and one for sparse steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from ..errors import SparseVDiTError, UnsupportedError

if TYPE_CHECKING:
    from .session import Session

#: Name of the attribute of an attention module that holds its site.
SITE = "_sparse_vdit_site"

Dense = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Site:
    """What one attention module needs: its plan as tensors, its tally, the processor it had.

    Attributes:
        session: The session of the whole transformer.
        layer (int): Layer number; never read by traced code.
        originals (dict[type, object]): Our processor class -> the stock processor that it replaced here.
        full (list[bool]): Per bin: all heads are full, so the host's own backend runs.
        dense (bool): This forward goes to the host's own backend.
        packed: `ops.PackedLayer` with all bins, or None where nothing is sparse.
        tally (Tensor): int64 [bins + 1]: calls per bin; the last one counts dense warm-up.
    """

    def __init__(self, session: Session, layer: int, bins: int) -> None:
        self.session = session
        self.layer = layer
        self.originals: dict[type, Any] = {}
        self.full = [True] * bins
        self.dense = True
        self.packed: Any = None
        self.tally = torch.zeros(bins + 1, dtype=torch.int64)
        self.engine: str | None = None

    @property
    def needs_kv_len(self) -> bool:
        """Will this call look at the number of valid keys?"""
        return not self.dense or self.session.recorder is not None


class SparseProcessor:
    """Base of the processors. A plain object: an nn.Module would enter the state dict and break offloading.

    The two attributes are diffusers' own: `set_attention_backend` and `enable_parallelism` write them.
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def host_attention(self, mask: torch.Tensor | None = None) -> Dense:
        """The attention of diffusers' own processors: its dispatcher, with the backend that is set."""

        def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return dispatch_attention_fn(  # type: ignore[no-any-return]
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=0.0,
                is_causal=False,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )

        return dense


@dataclass(frozen=True)
class DenseAttention:
    """The host's dense attention of one observed call, to run or not.

    Attributes:
        kv_len (Tensor | None): int64 [B], keys that take part; None: all.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    kv_len: torch.Tensor | None
    backend: Dense

    def __call__(self) -> torch.Tensor:
        """Returns the output [B, H, N, D]."""
        return self.backend(self.query, self.key, self.value).transpose(1, 2)


def site_of(attn: Any) -> Site:
    """The site of an attention module."""
    site = getattr(attn, SITE, None)
    if site is None:
        raise SparseVDiTError(
            f"attention: {type(attn).__name__} has a sparse processor but no plan, expected one set by apply"
        )
    return site  # type: ignore[no-any-return]


def attend(
    site: Site,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dense: Dense,
    kv_len: torch.Tensor | None = None,
) -> torch.Tensor:
    """One layer: query, key, value and the result are [B, N, H, D]; `dense` is the host's backend."""
    session = site.session
    if not site.dense or session.recorder is not None:
        query, key, value = _autocast(query, key, value)
    if session.recorder is not None:
        recorded: torch.Tensor = _record(site, session.recorder, query, key, value, dense, kv_len)
        return recorded
    site.tally.add_(session.slot)
    if site.dense:
        return dense(query, key, value)
    if not torch.compiler.is_compiling():
        _refuse_skipped_scores()
        if site.engine is None:
            site.engine = session.engine_name(query.dtype, query.shape[-1])
    out = session.operator(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        site.packed,
        session.bin,
        query.shape[-1] ** -0.5,
        kv_len,
    )
    return out.transpose(1, 2)  # type: ignore[no-any-return]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _record(
    site: Site,
    recorder: Callable[..., torch.Tensor | None],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dense: Dense,
    kv_len: torch.Tensor | None,
) -> torch.Tensor:
    clock = site.session.clock
    attention = DenseAttention(query, key, value, kv_len, dense)
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    out = recorder(clock.step, clock.noise_level, site.layer, *heads_first, attention)
    if out is None:
        return dense(query, key, value)
    if out.shape != heads_first[0].shape or out.dtype != query.dtype:
        raise ValueError(
            f"observe: recorder returned {list(out.shape)} {out.dtype}, "
            f"expected {list(heads_first[0].shape)} {query.dtype} (= q) or None"
        )
    return out.transpose(1, 2)


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under torch.autocast, SDPA gets all three in the lower precision; so does the kernel."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def _refuse_skipped_scores() -> None:
    """diffusers skips scores by a mode that watches F.scaled_dot_product_attention: it sees nothing else."""
    from torch.overrides import _get_current_function_mode_stack

    for mode in _get_current_function_mode_stack():
        if type(mode).__name__ == "AttentionScoreSkipFunctionMode":
            raise UnsupportedError(
                "attention: a guider skips the attention scores (AttentionScoreSkipFunctionMode), "
                "which sparse layers cannot follow; expected it off, or remove(pipe)"
            )
