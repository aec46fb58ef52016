"""explain: what runs per layer and head, what ran, and the reason of every dense call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..plan import LayerPlan, ModelIdentity, TransformerPlan
from .install import session_of, transformers_of
from .session import Session

WARM_UP = "dense warm-up"
FULL = "all heads are full: the host's backend"


@dataclass(frozen=True)
class HeadReport:
    """One head in one bin: its pattern, the share of token pairs it computes, its remainder's bias."""

    head: int
    pattern: str
    visited: float
    remainder: float | None


@dataclass(frozen=True)
class LayerReport:
    """One layer in one bin of noise level.

    Attributes:
        transformer, bin, layer: Where.
        kernel: Name of the kernel, or of the host's backend where the layer is dense.
        visited: Mean share of token pairs over the heads.
        sparse_calls: Calls of the sparse kernel so far.
        dense_calls: Reason -> calls of the host's backend so far.
        heads: One report per head.
    """

    transformer: str
    bin: int
    layer: int
    kernel: str
    visited: float
    sparse_calls: int
    dense_calls: dict[str, int]
    heads: tuple[HeadReport, ...]


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. `str()` is a table, `to_json()` plain data.

    Attributes:
        layers: One report per transformer, bin and layer; empty where no plan is applied.
        notes: Sentences about everything that is not a layer.
    """

    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...]

    @property
    def sparse_calls(self) -> int:
        """Calls of the sparse kernel, over all layers."""
        return sum(layer.sparse_calls for layer in self.layers)

    @property
    def dense_calls(self) -> dict[str, int]:
        """Reason -> calls of the host's backend, over all layers."""
        total: dict[str, int] = {}
        for layer in self.layers:
            for reason, calls in layer.dense_calls.items():
                total[reason] = total.get(reason, 0) + calls
        return total

    def to_json(self) -> dict[str, Any]:
        """Plain data, heads included."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "notes": list(self.notes),
            "sparse_calls": self.sparse_calls,
            "dense_calls": self.dense_calls,
        }

    def __str__(self) -> str:
        rows = [("transformer", "bin", "layer", "kernel", "visited", "sparse", "dense", "heads")]
        for layer in self.layers:
            dense = ", ".join(f"{calls} ({reason})" for reason, calls in layer.dense_calls.items()) or "0"
            rows.append(
                (
                    layer.transformer,
                    str(layer.bin),
                    str(layer.layer),
                    layer.kernel,
                    f"{layer.visited:.3f}",
                    str(layer.sparse_calls),
                    dense,
                    _kinds(layer.heads),
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join([*(line.rstrip() for line in table if self.layers), *self.notes])


def explain(pipe_or_transformer: Any) -> Explanation:
    """What ran per layer and head: kernel, pattern, visited share, calls, and the reason of every dense call.

    Args:
        pipe_or_transformer: As for `apply`.

    Returns:
        Explanation: Print it, or read `layers`, `sparse_calls`, `dense_calls`, `notes`.

    Example:
        >>> print(sparse_vdit.explain(pipe))
    """
    layers: list[LayerReport] = []
    notes: list[str] = []
    for name, transformer in transformers_of("explain", pipe_or_transformer).items():
        session = session_of(transformer)
        if session is None:
            notes.append(f"{name}: no plan is applied; every call is the host's own.")
            continue
        if session.plan is None:
            notes.append(f"{name}: observed; every call goes to the recorder.")
            continue
        layers += _layers(name, transformer, session, session.plan)
        notes += _notes(name, session)
    return Explanation(tuple(layers), tuple(notes))


def _layers(name: str, transformer: Any, session: Session, plan: TransformerPlan) -> list[LayerReport]:
    reports = []
    bins = len(session.forwards) - 1
    modules = session.family.modules(transformer)
    for number in range(bins):
        for site, module in zip(session.sites, modules, strict=True):
            layer = plan.layer(number, site.layer)
            calls = int(site.tally[number])
            full = site.full[number]
            dense = {FULL: calls} if full and calls else {}
            # Warm-up is of no bin; it stands with the first one.
            if number == 0 and int(site.tally[bins]):
                dense[WARM_UP] = int(site.tally[bins])
            reports.append(
                LayerReport(
                    transformer=name,
                    bin=number,
                    layer=site.layer,
                    kernel=_host(module.processor) if full else _kernel(session, site, module, transformer),
                    visited=layer.density(),
                    sparse_calls=0 if full else calls,
                    dense_calls=dense,
                    heads=tuple(_head(layer, head) for head in range(layer.heads)),
                )
            )
    return reports


def _notes(name: str, session: Session) -> list[str]:
    notes = [
        f"{name}: {session.family.name}; {sum(session.forwards)} forwards, {session.forwards[-1]} of them "
        f"dense warm-up; left to the host: {session.family.untouched}."
    ]
    full = [site.layer for site in session.sites if all(site.full)]
    if full:
        notes.append(f"{name}: layers {full} are full in every bin and run on the host's backend.")
    if session.layout is not None:
        notes.append(f"{name}: {session.layout} tokens.")
    return notes


def _head(layer: LayerPlan, head: int) -> HeadReport:
    pattern = layer.patterns[head].name if layer.patterns else "block mask"
    return HeadReport(head, pattern, layer.density(head), layer.remainders[head])


def _kernel(session: Session, site: Any, module: Any, transformer: Any) -> str:
    if site.engine is not None:
        return str(site.engine)
    if transformer.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"not known before the first call ({str(transformer.dtype).removeprefix('torch.')} weights)"
    head_dim = ModelIdentity.from_transformer(transformer).head_dim
    return session.engine_name(transformer.dtype, head_dim)


def _host(processor: Any) -> str:
    backend = getattr(processor, "_attention_backend", None)
    return f"host: {getattr(backend, 'value', backend) or 'default backend'}"


def _kinds(heads: tuple[HeadReport, ...]) -> str:
    count: dict[str, int] = {}
    for head in heads:
        kind = head.pattern.split("(")[0].split(" + ")[0]
        count[kind] = count.get(kind, 0) + 1
    return ", ".join(f"{number} {pattern}" for pattern, number in count.items())
