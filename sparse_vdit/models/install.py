"""apply, remove, applied, observe: put a plan or an observer on a pipeline, and take it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

from ..plan import ModelIdentity, SparsePlan, TransformerPlan
from .clock import Clock, module_behind
from .families import family_of
from .session import SESSION, Session, refuse_parallel

_TRANSFORMERS = ("transformer", "transformer_2")


def transformers_of(who: str, target: Any) -> dict[str, torch.nn.Module]:
    """The transformers of a pipeline by name, or the given transformer itself.

    Raises:
        TypeError: Neither a module nor a pipeline with a transformer.
    """
    if isinstance(target, torch.nn.Module):
        return {"transformer": module_behind(target)}
    found = {name: getattr(target, name, None) for name in _TRANSFORMERS}
    modules = {
        name: module_behind(module) for name, module in found.items() if isinstance(module, torch.nn.Module)
    }
    if not modules:
        raise TypeError(
            f"{who}: got {type(target).__name__}, expected a diffusers pipeline with a transformer, "
            "or a transformer"
        )
    return modules


def session_of(transformer: torch.nn.Module) -> Session | None:
    """The session at work on a transformer, if any."""
    return transformer.__dict__.get(SESSION)


def apply(pipe_or_transformer: Any, plan: Any) -> None:
    """Put a sparse plan on a pipeline's video self-attention.

    Each self-attention module gets a processor that mirrors its stock one and calls the sparse kernel where
    the plan is sparse, and the host's own backend where it is not: dense warm-up and layers whose heads are
    all full. The same plan again changes nothing; another replaces it. State lives on its modules.

    CogVideoX's `fuse_qkv_projections` and `unfuse_qkv_projections` discard foreign processors: call `apply`
    again after them.

    Args:
        pipe_or_transformer: A diffusers pipeline (both experts of Wan 2.2 are served and share a clock), or
            one of its transformers: CogVideoX 1.0/1.5, HunyuanVideo, Wan 2.1/2.2.
        plan (SparsePlan): Made for this model and this token geometry. A plan of one transformer serves both
            experts of Wan 2.2.

    Raises:
        UnsupportedError: Unknown transformer class, processor class or signature; parallelism.
        ValueError: A plan of another model.

    Example:
        >>> sparse_vdit.apply(pipe, plan)
        >>> video = pipe(prompt).frames
        >>> print(sparse_vdit.explain(pipe))
    """
    transformers = transformers_of("apply", pipe_or_transformer)
    plan = _checked_plan(plan)
    clock = _clock(pipe_or_transformer, transformers)
    wanted = {
        name: _prepared(name, transformer, plan, pipe_or_transformer, clock)
        for name, transformer in transformers.items()
    }
    before = {name: session_of(transformer) for name, transformer in transformers.items()}
    try:
        for name, transformer in transformers.items():
            _put(transformer, wanted[name], clock)
    except BaseException:
        _go_back(transformers, before)
        raise


def _prepared(name: str, transformer: Any, plan: SparsePlan, target: Any, clock: Clock) -> Session:
    """The session that the plan asks for: the one at work if it has this plan, else a new one, ready."""
    family = family_of("apply", transformer)
    refuse_parallel("apply", transformer)
    part = _part(plan, name, target)
    part.check_model(ModelIdentity.from_transformer(transformer))
    session, plan_hash = session_of(transformer), SparsePlan(part).hash  # of this part alone
    if session is not None and session.plan_hash == plan_hash:
        session.check_known(transformer)
        return session
    session = Session("apply", family, clock, plan=part, plan_hash=plan_hash)
    session.prepare(transformer)
    return session


def _put(transformer: torch.nn.Module, wanted: Session, clock: Clock) -> None:
    session = session_of(transformer)
    if session is wanted:
        session.reinstall(transformer)
        session.clock = clock
        return
    if session is not None:
        session.uninstall(transformer)
    wanted.install(transformer)


def _go_back(transformers: dict[str, torch.nn.Module], before: dict[str, Session | None]) -> None:
    """Each transformer to the plan (or the stock processors) from before."""
    for name, transformer in transformers.items():
        session = before.get(name)
        if session_of(transformer) is session:
            continue
        remove(transformer)
        if session is not None:
            session.install(transformer)


def remove(pipe_or_transformer: Any) -> None:
    """Put back the very processor objects that `apply` or `observe` replaced; without them, do nothing."""
    for transformer in transformers_of("remove", pipe_or_transformer).values():
        session = session_of(transformer)
        if session is not None:
            session.uninstall(transformer)


@contextmanager
def applied(pipe_or_transformer: Any, plan: Any) -> Iterator[Any]:
    """`apply` for the length of a with block, then back to the plan (or the stock processors) from before."""
    before = {
        name: session_of(transformer)
        for name, transformer in transformers_of("applied", pipe_or_transformer).items()
    }
    apply(pipe_or_transformer, plan)
    try:
        yield pipe_or_transformer
    finally:
        _go_back(transformers_of("applied", pipe_or_transformer), before)


class Observation:
    """An observer at work; `close()` or leaving the with block puts the stock processors back."""

    def __init__(self, observed: list[tuple[torch.nn.Module, Session]]) -> None:
        self._observed = observed

    def close(self) -> None:
        """Stop observing; a plan applied since stays."""
        for transformer, session in self._observed:
            if session_of(transformer) is session:
                session.uninstall(transformer)
        self._observed = []

    def __enter__(self) -> Observation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def observe(pipe_or_transformer: Any, recorder: Callable[..., torch.Tensor | None]) -> Observation:
    """Let a callable see, and replace, every video self-attention of a pipeline.

    Args:
        pipe_or_transformer: As for `apply`.
        recorder: Called as `recorder(step, noise_level, layer, q, k, v, dense)` with q, k, v [B, H, N, D]
            (views) and `dense`, which runs the host's attention when called; its `kv_len` is int64 [B] or
            None. Returns the output [B, H, N, D], or None: then the dense output is used.

    Returns:
        Observation: To close, or to use as a context manager.

    Raises:
        UnsupportedError: As for `apply`.
        ValueError: A plan is applied.

    Example:
        >>> with sparse_vdit.observe(pipe, recorder):
        ...     pipe(prompt)
    """
    transformers = transformers_of("observe", pipe_or_transformer)
    families = {}
    for name, transformer in transformers.items():
        families[name] = family_of("observe", transformer)
        refuse_parallel("observe", transformer)
        if session_of(transformer) is not None:
            raise ValueError(f"observe: {name} has a plan or an observer, expected none; remove(pipe) first")
    clock = Clock(_pipeline(pipe_or_transformer))
    observation = Observation([])
    try:
        for name, transformer in transformers.items():
            session = Session("observe", families[name], clock, recorder=recorder)
            session.prepare(transformer)
            session.install(transformer)
            observation._observed.append((transformer, session))
    except BaseException:
        observation.close()
        raise
    return observation


def _checked_plan(plan: Any) -> SparsePlan:
    if isinstance(plan, TransformerPlan):
        return SparsePlan(plan)
    if not isinstance(plan, SparsePlan):
        raise TypeError(f"apply: plan is {type(plan).__name__}, expected a SparsePlan")
    return plan


def _part(plan: SparsePlan, name: str, target: Any) -> TransformerPlan:
    """The plan of one transformer; a plan of a single one serves each expert of that identity."""
    if len(plan.names) == 1 or isinstance(target, torch.nn.Module):
        return plan.sole
    return plan.for_transformer(name)


def _pipeline(target: Any) -> Any:
    return None if isinstance(target, torch.nn.Module) else target


def _clock(target: Any, transformers: dict[str, torch.nn.Module]) -> Clock:
    """The clock of a session already at work on this pipeline, else a new one."""
    for transformer in transformers.values():
        session = session_of(transformer)
        if session is None or session.plan is None:
            continue
        if isinstance(target, torch.nn.Module) or session.clock.belongs_to(target):
            return session.clock
    return Clock(_pipeline(target))
