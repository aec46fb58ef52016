"""The transformers this package knows: class, stock processors, attention modules and token layout.

A family is found by class object, never by class name alone, and its stock processors by class object and
call signature: what is not known is refused, because a processor's body mirrors one stock body exactly.
Adding a model: its own file, one line in `_FAMILIES`, a tiny instance in tests/kit/tiny.py with its test.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UnsupportedError

#: (module, class) of a transformer -> our file that describes it.
_FAMILIES = {
    ("diffusers.models.transformers.cogvideox_transformer_3d", "CogVideoXTransformer3DModel"): "cogvideox",
    (
        "diffusers.models.transformers.transformer_hunyuan_video",
        "HunyuanVideoTransformer3DModel",
    ): "hunyuan_video",
    ("diffusers.models.transformers.transformer_wan", "WanTransformer3DModel"): "wan",
}


@dataclass(frozen=True)
class Layout:
    """The tokens of one forward: [prefix | frames x height x width | suffix]."""

    frames: int
    height: int
    width: int
    prefix: int
    suffix: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width} video + {self.prefix} before + {self.suffix} after"


@dataclass(frozen=True)
class Family:
    """What `apply` needs to know about one transformer class.

    Attributes:
        name (str): Short name for messages.
        processors (Mapping[type, type]): Stock processor class -> ours.
        modules (Callable): Transformer -> its self-attention modules, in layer order.
        layout (Callable): (transformer, forward arguments by name) -> Layout.
        untouched (str): The model's other attention, which stays as it is.
    """

    name: str
    processors: Mapping[type, type]
    modules: Callable[[torch.nn.Module], list[Any]]
    layout: Callable[[Any, Mapping[str, Any]], Layout]
    untouched: str = "no other attention"


def known_transformers() -> list[str]:
    """Class names of the transformers in the table."""
    return sorted(name for _, name in _FAMILIES)


def diffusers_version() -> str:
    """Version of the installed diffusers."""
    import diffusers

    return str(diffusers.__version__)


def family_of(who: str, transformer: Any) -> Family:
    """The family of a transformer.

    Raises:
        UnsupportedError: A class that is not in the table, subclasses included.
    """
    cls = type(transformer)
    name = _FAMILIES.get((cls.__module__, cls.__qualname__))
    if name is None:
        raise UnsupportedError(
            f"{who}: transformer is {cls.__module__}.{cls.__qualname__}, "
            f"expected one of {', '.join(known_transformers())} "
            f"(diffusers {diffusers_version()})"
        )
    family: Family = importlib.import_module(f".{name}", __package__).FAMILY
    return family


def replacement(who: str, family: Family, path: str, processor: Any) -> type:
    """Our processor class for a stock processor object.

    Raises:
        UnsupportedError: A class that is not in the family's table, or one whose `__call__` has other
            parameters than ours.
    """
    stock = type(processor)
    ours = family.processors.get(stock)
    if ours is None:
        known = ", ".join(sorted(cls.__name__ for cls in family.processors))
        raise UnsupportedError(
            f"{who}: processor of {path} is {stock.__module__}.{stock.__qualname__}, expected {known} "
            f"(diffusers {diffusers_version()})"
        )
    got, expected = _parameters(stock), _parameters(ours)
    if got != expected:
        raise UnsupportedError(
            f"{who}: {stock.__qualname__}.__call__ of diffusers {diffusers_version()} "
            f"takes ({', '.join(got)}), expected ({', '.join(expected)})"
        )
    return ours


def register_with_diffusers(processor: type, skip: Callable[..., Any]) -> None:
    """Tell diffusers' layer-skipping guiders what our processor gives when its attention is skipped."""
    try:
        from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
    except ImportError:  # a version without such guiders
        return
    AttentionProcessorRegistry.register(processor, AttentionProcessorMetadata(skip_processor_output_fn=skip))


def skip_to_video(module: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """A skipped attention of the video alone hands its input on."""
    return hidden_states


def skip_to_both(
    module: Any, hidden_states: Any, encoder_hidden_states: Any, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """A skipped joint attention hands video and text on."""
    return hidden_states, encoder_hidden_states


def forward_arguments(
    transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """A forward's arguments by name; pipelines pass keywords only, loops by hand may not."""
    if not args:
        return kwargs
    bound = inspect.signature(type(transformer).forward).bind_partial(transformer, *args, **kwargs)
    return bound.arguments


def _parameters(cls: type) -> list[str]:
    return list(inspect.signature(cls.__call__).parameters)[1:]
