"""`SparsePlan`: for every noise level, layer and head of a model, the pattern it uses; a file `plan.json`.

A plan holds one `TransformerPlan` per transformer of the pipeline (Wan 2.2 has two, most have one), all
over the same geometry and the same distinct patterns. Next: `layer.py` (what the engines read),
`file.py` (bytes).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import Json
from sparse_vdit.pattern import Geometry, Pattern
from sparse_vdit.plan.file import PlanError, checked_provenance, write_atomic
from sparse_vdit.plan.identity import ModelIdentity
from sparse_vdit.plan.layer import LayerPlan, PackedArrays, VisitPool
from sparse_vdit.plan.transformer import LayeredTransformerPlan, TransformerPlan, checked_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TRANSFORMERS = 4


class SparsePlan:
    """The plan of a pipeline.

    Args:
        transformers: by the name of the pipeline's component; several share one geometry.
        provenance: how the plan was made; free JSON of at most 256 KiB.

    Example:
        >>> model = ModelIdentity("CogVideoXTransformer3DModel", layers=2, heads=2, head_dim=64)
        >>> geometry = Geometry(frames=4, height=8, width=8, prefix=8, block_q=64, block_k=64)
        >>> plan = SparsePlan.uniform(model, geometry, Pattern.diagonal(half_width=63, remainder=0.5))
        >>> plan.bin_of(0.3), plan.families()
        (0, {'diagonal': 4})
    """

    def __init__(
        self,
        transformers: TransformerPlan | Mapping[str, TransformerPlan],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(transformers, TransformerPlan):
            transformers = {"transformer": transformers}
        self.transformers = _shared(transformers)
        self.provenance = checked_provenance(None if provenance is None else dict(provenance))
        self.geometry = next(iter(self.transformers.values())).geometry
        self.package_version = package_version()

    @classmethod
    def uniform(
        cls,
        transformer: Any,
        geometry: Geometry,
        pattern: Pattern,
        *,
        dense_above: float = 1.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> SparsePlan:
        """The same pattern for every head of every layer at every noise level.

        Args:
            transformer: a diffusers transformer, or a `ModelIdentity`.
            geometry: the token layout.
            pattern: with or without a remainder.
            dense_above: steps with a higher noise level are dense.
            provenance: more to note down.
        """
        if not isinstance(pattern, Pattern):
            raise TypeError(f"plan: pattern is {type(pattern).__name__}, expected a Pattern")
        model = identity(transformer)
        shape = (1, model.layers, model.heads)
        betas = np.full(shape, np.nan if pattern.remainder is None else pattern.remainder)
        plain = pattern.without_remainder()
        made = TransformerPlan(
            model, geometry, [plain], np.zeros(shape, np.int32), betas, dense_above=dense_above
        )
        return cls(made, {"made_by": "uniform", "pattern": pattern.name} | dict(provenance or {}))

    @classmethod
    def from_layers(
        cls,
        transformer: Any,
        layers: Sequence[Sequence[LayerPlan]],
        *,
        bins: Sequence[float] = (0.0, 1.0),
        dense_above: float = 1.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> SparsePlan:
        """A plan of ready layers [bins][layers], block masks allowed: a control, never saved."""
        made = LayeredTransformerPlan(identity(transformer), layers, bins, dense_above)
        return cls(made, {"made_by": "layers"} | dict(provenance or {}))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformers."""
        return tuple(self.transformers)

    def for_transformer(self, name: str = "transformer") -> TransformerPlan:
        """The plan of one transformer.

        Raises:
            PlanError: `plan: it has no transformer 'transformer_2', expected one of transformer`.
        """
        if name not in self.transformers:
            raise PlanError(f"plan: it has no transformer {name!r}, expected one of {', '.join(self.names)}")
        return self.transformers[name]

    @property
    def sole(self) -> TransformerPlan:
        """The one transformer of most plans; two must be asked for by name."""
        if len(self.transformers) > 1:
            raise PlanError(
                f"plan: it has {len(self.transformers)} transformers, expected for_transformer(name)"
            )
        return next(iter(self.transformers.values()))

    @property
    def model(self) -> ModelIdentity:
        """What the plan was made for."""
        return self.sole.model

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The distinct patterns, without remainder."""
        return self.sole.patterns

    @property
    def bins(self) -> tuple[float, ...]:
        """Edges of noise level, rising from 0 to 1."""
        return self.sole.bins

    @property
    def choice(self) -> NDArray[np.int32]:
        """int32 [bins, layers, heads], numbers of `patterns`."""
        return self.sole.choice

    @property
    def betas(self) -> NDArray[np.float64]:
        """float64 [bins, layers, heads], NaN = no remainder."""
        return self.sole.betas

    @property
    def dense_above(self) -> float:
        """Steps with a higher noise level are dense."""
        return self.sole.dense_above

    def bin_of(self, noise_level: float) -> int | None:
        """The bin of a noise level; None: the step is dense."""
        return self.sole.bin_of(noise_level)

    def layer(self, bin_: int, layer: int) -> LayerPlan:
        """What a layer does in a bin."""
        return self.sole.layer(bin_, layer)

    def packed(self, layer: int) -> PackedArrays:
        """The arrays of the torch operator for a layer, all bins."""
        return self.sole.packed(layer)

    def density(self) -> float:
        """Mean share of token pairs computed, over bins, layers and heads; dense warm-up steps apart."""
        return float(np.mean(np.concatenate([p.densities().ravel() for p in self.transformers.values()])))

    def families(self, bin_: int | None = None) -> dict[str, int]:
        """How many heads use each kind of pattern, in one bin or in all."""
        return self.sole.families(bin_)

    def check_model(self, transformer: Any, name: str = "transformer") -> None:
        """Refuses another model than the plan's.

        Args:
            transformer: a diffusers transformer, or a `ModelIdentity`.
            name: which transformer of the plan.

        Raises:
            PlanError: `plan: layers is 40, expected 30: the plan is of another model`.
        """
        self.for_transformer(name).check_model(identity(transformer))

    def for_geometry(self, geometry: Geometry) -> SparsePlan:
        """The same plan for another number of frames or another size: a proposal until it is measured.

        Block sizes and betas are kept; the densities before and after are noted in the provenance.
        """
        from sparse_vdit.plan.transfer import transfer_plan

        return transfer_plan(self, geometry)

    def to_json(self) -> Json:
        """The document of `plan.json`, hash included."""
        from sparse_vdit.plan.document import document

        return document(self)

    @classmethod
    def from_json(cls, value: Any) -> SparsePlan:
        """The inverse of `to_json`: every field is checked, nothing is truncated or broadcast."""
        from sparse_vdit.plan.document import plan_of

        return plan_of(value)

    @property
    def hash(self) -> str:
        """SHA-256 of the document; over the parts' own where one of them has none (block masks)."""
        if not any(isinstance(plan, LayeredTransformerPlan) for plan in self.transformers.values()):
            return str(self.to_json()["sha256"])
        parts = [f"{name} {plan.hash()}" for name, plan in sorted(self.transformers.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> Path:
        """Writes `path/plan.json`: the old file or the new one, never a half.

        Args:
            path: a folder; made if need be.
            push_to_hub: also upload it, to `repo_id` (default: the folder's name); `kwargs` (token, private,
                revision, commit_message) go along.

        Returns:
            The file.

        Raises:
            PlanError: the plan holds block masks, or `path` is a file.
        """
        from sparse_vdit.plan.document import file_name, push, text

        if kwargs and not push_to_hub:
            raise TypeError(
                f"save_pretrained: {next(iter(kwargs))} is given, expected it with push_to_hub=True only"
            )
        written = write_atomic(path, file_name, text(self))
        if push_to_hub:
            push(written, repo_id or Path(path).resolve().name, **kwargs)
        return written

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str | None = None,
    ) -> SparsePlan:
        """Reads a plan from a local folder or a hub repository.

        Args:
            path: a folder with `plan.json`, such a file, or a hub id `name/repository`.
            revision, token, cache_dir, local_files_only, force_download, subfolder: as in huggingface_hub.

        Raises:
            FileNotFoundError: there is no such folder or file.
            PlanError: the file is not a legal plan; one sentence.
        """
        from sparse_vdit.plan.document import fetch, plan_of
        from sparse_vdit.plan.file import parse, read_bytes

        file = fetch(
            path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return plan_of(parse(read_bytes(file)))

    def summary(self) -> str:
        """A text table: what was made for what, and which kinds and densities each layer uses."""
        from sparse_vdit.plan.picture import summary

        return summary(self)

    def figure(self, name: str | None = None) -> Figure:
        """Layers x heads coloured by kind, with letters, one panel per bin (needs matplotlib)."""
        from sparse_vdit.plan.picture import figure

        return figure(self, name)

    def __repr__(self) -> str:
        parts = [f"{name}: {plan.model.transformer_class}" for name, plan in self.transformers.items()]
        return f"SparsePlan({', '.join(parts)}, density {self.density():.3f})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SparsePlan) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)


def package_version() -> str:
    """The version of this package."""
    import sparse_vdit

    return sparse_vdit.__version__


def identity(transformer: Any) -> ModelIdentity:
    """A `ModelIdentity` as it is, anything else by its configuration."""
    if isinstance(transformer, ModelIdentity):
        return transformer
    return ModelIdentity.from_transformer(transformer)


def _shared(transformers: Mapping[str, TransformerPlan]) -> dict[str, TransformerPlan]:
    """The same plans over one list of patterns and one pool of visits."""
    if not 1 <= len(transformers) <= MAX_TRANSFORMERS:
        raise PlanError(f"plan: there are {len(transformers)} transformers, expected 1..{MAX_TRANSFORMERS}")
    for name in transformers:
        checked_name(name)
    plans = dict(transformers)
    geometries = {plan.geometry for plan in plans.values()}
    if len(geometries) > 1:
        raise PlanError(f"plan: its transformers have {len(geometries)} geometries, expected one")
    if len(plans) == 1 or any(isinstance(plan, LayeredTransformerPlan) for plan in plans.values()):
        return plans
    patterns = tuple(dict.fromkeys(pattern for plan in plans.values() for pattern in plan.patterns))
    number = {pattern: index for index, pattern in enumerate(patterns)}
    pooled = [False] * len(patterns)
    for plan in plans.values():
        for pattern, used in zip(plan.patterns, plan.pooled(), strict=True):
            pooled[number[pattern]] |= used
    pool = VisitPool.of_patterns(geometries.pop(), patterns, pooled)
    return {name: _rebased(plan, patterns, number, pool) for name, plan in plans.items()}


def _rebased(
    plan: TransformerPlan, patterns: tuple[Pattern, ...], number: dict[Pattern, int], pool: VisitPool
) -> TransformerPlan:
    table = np.array([number[pattern] for pattern in plan.patterns], dtype=np.int32)
    return TransformerPlan(
        plan.model, plan.geometry, patterns, table[plan.choice], plan.betas, plan.bins, plan.dense_above, pool
    )
