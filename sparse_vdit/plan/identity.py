"""Which model a plan belongs to: `ModelIdentity`, read from the configuration of a diffusers transformer.

Only configuration attributes are read, so neither torch nor diffusers is imported. Next: `sparse.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sparse_vdit.geometry import Json, closed, integer, json_type, shown

MAX_LAYERS = 512
MAX_HEADS = 256
MAX_HEAD_DIM = 4096
MAX_PATCH = 4096
MAX_NAME = 128


@dataclass(frozen=True)
class ModelIdentity:
    """What must agree before a plan is applied to a model.

    Args:
        transformer_class: class name of the transformer, e.g. `CogVideoXTransformer3DModel`.
        layers: blocks with video self-attention (dual and single stream together), 1..512.
        heads: attention heads of a block, 1..256.
        head_dim: channels of a head.
        patch_size: latent voxels per token along (time, height, width).
    """

    transformer_class: str
    layers: int
    heads: int
    head_dim: int
    patch_size: tuple[int, int, int] = (1, 1, 1)

    FIELDS: ClassVar[tuple[str, ...]] = ("transformer_class", "layers", "heads", "head_dim", "patch_size")

    def __post_init__(self) -> None:
        name = self.transformer_class
        if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_NAME:
            raise ValueError(f"model: transformer_class is {shown(name)}, expected the name of a class")
        put = object.__setattr__
        put(self, "layers", integer("model", "layers", self.layers, 1, MAX_LAYERS))
        put(self, "heads", integer("model", "heads", self.heads, 1, MAX_HEADS))
        put(self, "head_dim", integer("model", "head_dim", self.head_dim, 1, MAX_HEAD_DIM))
        sides = tuple(
            integer("model", "a side of patch_size", side, 1, MAX_PATCH) for side in self.patch_size
        )
        if len(sides) != 3:
            raise ValueError(
                f"model: patch_size has {len(sides)} sides, expected three (time, height, width)"
            )
        put(self, "patch_size", sides)

    @classmethod
    def from_transformer(cls, transformer: Any) -> ModelIdentity:
        """Reads a diffusers transformer (CogVideoX, HunyuanVideo, Wan: `config` attributes alone).

        Raises:
            ValueError: the configuration lacks a field: `model: LlamaModel has no num_attention_heads, ...`.
        """
        model = getattr(transformer, "_orig_mod", transformer)
        name = type(model).__name__
        config = getattr(model, "config", None)
        layers = _field(name, config, "num_layers") + (_field(name, config, "num_single_layers", 0) or 0)
        heads = _field(name, config, "num_attention_heads")
        head_dim = _field(name, config, "attention_head_dim")
        patch = _field(name, config, "patch_size")
        if isinstance(patch, int):
            patch = (_field(name, config, "patch_size_t", None) or 1, patch, patch)
        return cls(name, layers, heads, head_dim, tuple(patch))

    def difference(self, other: ModelIdentity) -> str | None:
        """None if they agree, else the first field that does not: `layers is 40, expected 30`."""
        for name in self.FIELDS:
            if getattr(self, name) != getattr(other, name):
                return f"{name} is {getattr(other, name)}, expected {getattr(self, name)}"
        return None

    def to_json(self) -> Json:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.FIELDS} | {"patch_size": list(self.patch_size)}

    @classmethod
    def from_json(cls, value: Any, who: str = "model") -> ModelIdentity:
        """The inverse of `to_json`; unknown and missing fields are refused."""
        fields = closed(who, value, cls.FIELDS)
        if not isinstance(fields["patch_size"], list):
            raise ValueError(f"{who}: patch_size is {json_type(fields['patch_size'])}, expected a list")
        return cls(**fields | {"patch_size": tuple(fields["patch_size"])})


_MISSING = object()


def _field(model: str, config: Any, name: str, default: Any = _MISSING) -> Any:
    if isinstance(config, Mapping):
        value = config.get(name, _MISSING)
    else:
        value = getattr(config, name, _MISSING)
    if value is _MISSING:
        if default is _MISSING:
            raise ValueError(
                f"model: {model} has no config.{name}, expected a video transformer of diffusers"
            )
        return default
    return value
