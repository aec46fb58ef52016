"""A plan (or an observer) at work on one transformer: per-layer sites, the bin of this forward, the clock.

The session is a plain attribute of the transformer: it dies, is copied and moves with it and never enters the
state dict. `on_forward` is the only hook: a plain forward pre-hook, hidden from torch.compile, that reads
step and shape once per forward. A diffusers ModelHook would bind the forward of a deep copy to the original.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import SparseVDiTError, UnsupportedError
from ..plan import NO_ITEM, LayerPlan, TransformerPlan
from .attend import SITE, Site, SparseProcessor
from .clock import Clock
from .families import Family, Layout, diffusers_version, forward_arguments, replacement

#: Name of the attribute of a transformer that holds its session.
SESSION = "_sparse_vdit_session"

Recorder = Callable[..., Any]


class Session:
    """One transformer under a plan or an observer.

    Attributes:
        family, plan, clock, recorder: As given; plan or recorder is None.
        sites (list[Site]): One per layer.
        bin (Tensor): int64 [1], the bin of this forward; updated in place.
        slot (Tensor): int64 [bins + 1], one-hot: where this forward counts.
        forwards (list[int]): Forwards per slot.
    """

    def __init__(
        self,
        who: str,
        family: Family,
        clock: Clock,
        *,
        plan: TransformerPlan | None = None,
        plan_hash: str | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.who = who
        self.family = family
        self.clock = clock
        self.plan = plan
        self.plan_hash = plan_hash
        self.recorder = recorder
        self.sites: list[Site] = []
        self.layout: Layout | None = None
        self.operator: Any = None
        self.device = torch.device("cpu")
        bins = 0 if plan is None else plan.shape[0]
        with torch.inference_mode(False):
            self.bin = torch.zeros(1, dtype=torch.int64)
            self.slot = torch.zeros(bins + 1, dtype=torch.int64)
        self.forwards = [0] * (bins + 1)
        self._mask: torch.Tensor | None = None
        self._kv_len: torch.Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Everything but the plan and its device tensors, which never change."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        for shared in (self.plan, self.recorder, *(site.packed for site in self.sites)):
            memo[id(shared)] = shared
        for name, value in self.__dict__.items():
            setattr(twin, name, copy.deepcopy(value, memo))
        return twin

    def prepare(self, transformer: torch.nn.Module) -> None:
        """All that can be refused or fail, before anything is changed: processors, visit lists, memory."""
        modules = self.family.modules(transformer)
        self.check_known(transformer)
        bins = len(self.forwards) - 1
        with torch.inference_mode(False):
            self.sites = [Site(self, layer, bins) for layer in range(len(modules))]
            if self.plan is not None:
                self._load_plan(self.plan)

    def check_known(self, transformer: torch.nn.Module) -> None:
        """Is every processor ours or one that we replace?"""
        for layer, module in enumerate(self.family.modules(transformer)):
            if not isinstance(module.processor, SparseProcessor):
                replacement(self.who, self.family, f"layer {layer}", module.processor)

    def install(self, transformer: torch.nn.Module) -> None:
        """Set processors and hook: once prepared, and where no session is at work."""
        setattr(transformer, SESSION, self)  # first: uninstall undoes an installation that was cut short
        made: dict[tuple[Any, ...], SparseProcessor] = {}
        for module, site in zip(self.family.modules(transformer), self.sites, strict=True):
            ours = replacement(self.who, self.family, f"layer {site.layer}", module.processor)
            _exchange(module, site, ours, made)
        transformer.register_forward_pre_hook(on_forward, with_kwargs=True)

    def reinstall(self, transformer: torch.nn.Module) -> None:
        """Take back modules whose processor was replaced since (CogVideoX's fuse_qkv_projections does)."""
        foreign = [
            (module, site)
            for module, site in zip(self.family.modules(transformer), self.sites, strict=True)
            if not isinstance(module.processor, SparseProcessor)
        ]
        classes = [replacement(self.who, self.family, f"layer {s.layer}", m.processor) for m, s in foreign]
        made: dict[tuple[Any, ...], SparseProcessor] = {}
        for (module, site), ours in zip(foreign, classes, strict=True):
            _exchange(module, site, ours, made)

    def uninstall(self, transformer: torch.nn.Module) -> None:
        """Put the stock processor objects back."""
        for module, site in zip(self.family.modules(transformer), self.sites, strict=True):
            ours = module.processor
            if isinstance(ours, SparseProcessor):
                module.set_processor(_original(site, ours))
            if hasattr(module, SITE):
                delattr(module, SITE)
        self._restore_saved(transformer)
        delattr(transformer, SESSION)
        for key, hook in list(transformer._forward_pre_hooks.items()):
            if hook is on_forward:
                del transformer._forward_pre_hooks[key]
                transformer._forward_pre_hooks_with_kwargs.pop(key, None)

    def begin(self, transformer: torch.nn.Module, arguments: Mapping[str, Any]) -> None:
        """One forward begins: step, bin, shape, device; refuse what the plan was not made for."""
        self._mask = self._kv_len = None
        refuse_parallel("attention", transformer)
        self._check_processors(transformer)
        if arguments.get("timestep") is None:
            raise ValueError(
                f"attention: {type(transformer).__name__} is called without timestep, expected one"
            )
        self.clock.tick(transformer, arguments["timestep"])
        if self.plan is None:
            return
        self._check_layout(self.plan, self.family.layout(transformer, arguments))
        self._move(arguments["hidden_states"].device)
        number = self.plan.bin_of(self.clock.noise_level)
        slot = len(self.forwards) - 1 if number is None else number
        for site in self.sites:
            site.dense = number is None or site.full[number]
        self.bin.fill_(0 if number is None else number)
        self.slot.zero_()
        self.slot[slot] = 1
        self.forwards[slot] += 1

    def kv_len(self, mask: torch.Tensor, tokens: int) -> torch.Tensor:
        """int64 [B], keys per sample of a prefix mask [B, 1, 1, N]; once per forward and mask object."""
        if torch.compiler.is_compiling():
            return mask.sum(dim=(1, 2, 3), dtype=torch.int64)
        if self._kv_len is None or self._mask is not mask:
            _check_prefix(mask, tokens)
            self._mask, self._kv_len = mask, mask.sum(dim=(1, 2, 3), dtype=torch.int64)
        return self._kv_len

    def engine_name(self, dtype: torch.dtype, head_dim: int) -> str:
        """Name of the kernel that runs for this dtype and head size."""
        from .. import _C

        return str(_C.attention_engine(str(dtype).removeprefix("torch."), head_dim))

    def _load_plan(self, plan: TransformerPlan) -> None:
        from .. import ops

        self.operator = ops.attention_layer
        sparse = []
        for site in self.sites:
            layers = [plan.layer(number, site.layer) for number in range(len(site.full))]
            site.full = [is_full(layer) for layer in layers]
            if not all(site.full):
                site.packed = ops.PackedLayer.from_arrays(plan.packed(site.layer))
                sparse.append(site)
        # One shape for all layers: compiled blocks share their graph.
        rows = max((site.packed.items.shape[1] for site in sparse), default=0)
        for site in sparse:
            items = site.packed.items
            if items.shape[1] < rows:
                items = torch.nn.functional.pad(items, (0, 0, 0, rows - items.shape[1]), value=NO_ITEM)
                site.packed = site.packed._replace(items=items)

    def _move(self, device: torch.device) -> None:
        if device == self.device:
            return
        shared: dict[Any, torch.Tensor] = {}
        with torch.inference_mode(False):
            for site in self.sites:
                site.packed = None if site.packed is None else _moved(site.packed, device, shared)
                site.tally = site.tally.to(device)
            self.bin, self.slot = self.bin.to(device), self.slot.to(device)
        self.device = device

    def _check_layout(self, plan: TransformerPlan, layout: Layout) -> None:
        if layout == self.layout:
            return
        g = plan.geometry
        planned = Layout(g.frames, g.height, g.width, g.prefix, g.suffix)
        if layout != planned:
            raise ValueError(
                f"attention: this forward has {layout} tokens, the plan expected {planned}; make one with "
                f"plan.for_geometry(Geometry(frames={layout.frames}, height={layout.height}, "
                f"width={layout.width}, prefix={layout.prefix}, suffix={layout.suffix}, "
                f"block_q={g.block_q}, block_k={g.block_k}))"
            )
        self.layout = layout

    def _check_processors(self, transformer: torch.nn.Module) -> None:
        for layer, module in enumerate(self.family.modules(transformer)):
            if not isinstance(module.processor, SparseProcessor):
                raise SparseVDiTError(
                    f"attention: the processor of layer {layer} is {type(module.processor).__name__} since "
                    f"{self.who}, expected ours (fuse_qkv_projections replaces them): call {self.who} again"
                )

    def _restore_saved(self, transformer: Any) -> None:
        """CogVideoX keeps the processors it replaced while fusing: ours must not come back by unfusing."""
        saved = getattr(transformer, "original_attn_processors", None) or {}
        by_path = {f"{name}.processor": module for name, module in transformer.named_modules()}
        sites = dict(zip(map(id, self.family.modules(transformer)), self.sites, strict=True))
        for path, processor in saved.items():
            if isinstance(processor, SparseProcessor):
                saved[path] = _original(sites[id(by_path[path])], processor)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def on_forward(transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Forward pre-hook; finds the session on the module, so that a deep copy finds its own."""
    session = transformer.__dict__.get(SESSION)
    if session is not None:
        session.begin(transformer, forward_arguments(transformer, args, kwargs))


def refuse_parallel(who: str, transformer: Any) -> None:
    """Context and tensor parallelism split tokens or heads; a plan knows neither."""
    config = getattr(transformer, "_parallel_config", None)
    for kind in ("context_parallel_config", "tensor_parallel_config"):
        if getattr(config, kind, None) is not None:
            raise UnsupportedError(
                f"{who}: {type(transformer).__name__} has a {kind} (diffusers {diffusers_version()}), "
                "expected none; sparse attention runs on one device, Ulysses and ring are not built yet"
            )


def is_full(layer: LayerPlan) -> bool:
    """Are all heads of a `LayerPlan` full?"""
    return bool(layer.patterns) and all(pattern.kind == "full" for pattern in layer.patterns)


def _moved(packed: Any, device: torch.device, shared: dict[Any, torch.Tensor]) -> Any:
    """A `PackedLayer` on another device; tensors over the same memory become one tensor there."""
    tensors = {}
    for name in ("items", "codes", "heads", "betas", "tokens"):
        tensor = getattr(packed, name)
        key = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if tensor.numel() == 0 or key not in shared:
            shared[key] = tensor.to(device)
        tensors[name] = shared[key]
    return packed._replace(**tensors)


def _exchange(
    module: Any, site: Site, ours: type[SparseProcessor], made: dict[tuple[Any, ...], SparseProcessor]
) -> None:
    """Set our processor, one object per distinct backend and parallel configuration."""
    stock = module.processor
    backend = getattr(stock, "_attention_backend", None)
    parallel = getattr(stock, "_parallel_config", None)
    key = (ours, backend, id(parallel))
    if key not in made:
        made[key] = ours()
        made[key]._attention_backend, made[key]._parallel_config = backend, parallel
    site.originals[ours] = stock
    setattr(module, SITE, site)
    module.set_processor(made[key])


def _original(site: Site, ours: SparseProcessor) -> Any:
    """The stock object that `ours` replaced at this site, with a backend chosen since then."""
    stock = site.originals[type(ours)]
    for name in ("_attention_backend", "_parallel_config"):
        if hasattr(stock, name) and getattr(stock, name) != getattr(ours, name):
            setattr(stock, name, getattr(ours, name))
    return stock


def _check_prefix(mask: torch.Tensor, tokens: int) -> None:
    if mask.dtype != torch.bool or mask.dim() != 4 or list(mask.shape[1:]) != [1, 1, tokens]:
        raise ValueError(
            f"attention: mask is {list(mask.shape)} {mask.dtype}, expected [B, 1, 1, {tokens}] torch.bool"
        )
    # On a device the look at the values would wait for it.
    if mask.device.type == "cpu" or os.environ.get("SPARSE_VDIT_SYNC") == "1":
        flat = mask.flatten(1)
        if bool((flat[:, 1:] & ~flat[:, :-1]).any()):
            raise ValueError("attention: mask has a hole, expected a prefix mask (valid keys first)")
