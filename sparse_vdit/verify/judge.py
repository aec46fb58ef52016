"""Videos dense and under a plan from the same noise: step times, PSNR, SSIM. What a plan achieves.

Dense and plan take turns in being first, so that a machine that warms up favours neither. `Verification` keeps the
numbers (`verification.json`), the videos go to `keep`. Next: `target.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vdit.errors import SparseVDiTError
from sparse_vdit.geometry import Json, closed, integer, shown
from sparse_vdit.plan import SparsePlan
from sparse_vdit.plan.file import layout, write_atomic
from sparse_vdit.report.compare import Run
from sparse_vdit.report.metrics import psnr, psnr_frames, ssim
from sparse_vdit.search import Sample

from .document import read_document
from .source import Source

FORMAT, FORMAT_VERSION = "sparse_vdit.verification", 1
FILE_NAME = "verification.json"
MAX_PROMPT, MAX_JUDGED, MAX_STEPS = 4096, 1000, 10_000
GROUPS = ("calibration", "others")

Keep = Callable[[str, int, Run, Run], object]
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Judged:
    """One sample, dense and under the plan.

    Attributes:
        prompt, seed: the sample.
        dense_ms, plan_ms: of a step, transformers alone, mean over the steps.
        psnr_db, psnr_worst_frame_db: against dense; None: the videos are equal.
        ssim: mean over the frames.
    """

    prompt: str
    seed: int
    dense_ms: float
    plan_ms: float
    psnr_db: float | None
    psnr_worst_frame_db: float | None
    ssim: float


@dataclass(frozen=True)
class Verification:
    """What a plan achieved.

    Args:
        plan_hash: of the plan.
        groups: judged samples by group: "calibration" (prompts that the plan was chosen on), "others".
        noise: noise level of every step.
        dense_ms, plan_ms: milliseconds of every step, mean over all samples.

    Raises:
        ValueError: `verification: ssim is nan, expected a finite number`.
    """

    plan_hash: str
    groups: Mapping[str, tuple[Judged, ...]]
    noise: tuple[float, ...]
    dense_ms: tuple[float, ...]
    plan_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.plan_hash, str) or not 1 <= len(self.plan_hash) <= 64:
            raise ValueError(f"verification: plan_hash is {shown(self.plan_hash)}, expected a SHA-256")
        if not self.groups or set(self.groups) - set(GROUPS):
            raise ValueError(
                f"verification: the groups are {shown(list(self.groups))}, expected some of {', '.join(GROUPS)}"
            )
        for group, listed in self.groups.items():
            if not listed:
                raise ValueError(f"verification: group {group} has 0 samples, expected at least one")
        for name in ("noise", "dense_ms", "plan_ms"):
            numbers = [_number(name, value) for value in getattr(self, name)]
            if not 1 <= len(numbers) <= MAX_STEPS or len(numbers) != len(self.noise):
                raise ValueError(f"verification: {name} has {len(numbers)} steps, expected {len(self.noise)}")
            if name == "plan_ms" and min(numbers) <= 0:
                raise ValueError(f"verification: plan_ms is {min(numbers)}, expected numbers above 0")
        for judged in self.all:
            for name, value in vars(judged).items():
                if name.endswith("ms") or name == "ssim" or (name.startswith("psnr") and value is not None):
                    _number(name, value)
            if judged.plan_ms <= 0:
                raise ValueError(
                    f"verification: plan_ms of a sample is {judged.plan_ms}, expected a number above 0"
                )

    @property
    def all(self) -> tuple[Judged, ...]:
        """All samples of all groups."""
        return tuple(judged for group in self.groups.values() for judged in group)

    @property
    def speedup(self) -> float:
        """Dense over plan milliseconds of a step, all samples together."""
        return float(np.mean(self.dense_ms) / np.mean(self.plan_ms))

    def psnr_db(self, group: str | None = None) -> float | None:
        """Mean PSNR of the videos that differ, of one group or all; None: all are equal."""
        values = [j.psnr_db for j in self._of(group) if j.psnr_db is not None]
        return float(np.mean(values)) if values else None

    def ssim(self, group: str | None = None) -> float:
        """Mean SSIM."""
        return float(np.mean([judged.ssim for judged in self._of(group)]))

    @property
    def transfer_db(self) -> float | None:
        """PSNR on other prompts minus that on those of the calibration: about 0 where a plan carries over."""
        if not all(self.groups.get(group) for group in GROUPS):
            return None
        own, others = (self.psnr_db(group) for group in GROUPS)
        return None if own is None or others is None else others - own

    def _of(self, group: str | None) -> tuple[Judged, ...]:
        return self.all if group is None else self.groups[group]

    def to_json(self) -> Json:
        """The document of the file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "plan_hash": self.plan_hash,
            "groups": {name: [dict(vars(judged)) for judged in group] for name, group in self.groups.items()},
            "noise": list(self.noise),
            "dense_ms": list(self.dense_ms),
            "plan_ms": list(self.plan_ms),
        }

    @classmethod
    def from_json(cls, value: Any) -> Verification:
        """The inverse of `to_json`; every field is checked."""
        fields = closed("verification", value, ("format", "format_version", *cls.__dataclass_fields__))
        for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
            if isinstance(fields[name], bool) or fields[name] != expected:
                raise ValueError(f"verification: {name} is {shown(fields[name])}, expected {expected!r}")
        groups = fields["groups"]
        if not isinstance(groups, dict) or not all(isinstance(group, list) for group in groups.values()):
            raise ValueError("verification: groups is no object of lists, expected one")
        if sum(map(len, groups.values())) > MAX_JUDGED:
            raise ValueError(f"verification: there are more than {MAX_JUDGED} samples, expected at most that")
        for name in ("noise", "dense_ms", "plan_ms"):
            if not isinstance(fields[name], list):
                raise ValueError(f"verification: {name} is {shown(fields[name])}, expected a list")
        return cls(
            fields["plan_hash"],
            {name: tuple(_judged(entry) for entry in group) for name, group in groups.items()},
            tuple(fields["noise"]),
            tuple(fields["dense_ms"]),
            tuple(fields["plan_ms"]),
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `folder/verification.json`, the old file or the new one."""
        return write_atomic(folder, FILE_NAME, layout(self.to_json()))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Verification:
        """Reads `folder/verification.json`.

        Raises:
            FileNotFoundError, ValueError: one sentence.
        """
        return cls.from_json(read_document("verification", folder, FILE_NAME))


def verify(
    source: Source,
    plan: SparsePlan,
    samples: Sequence[Sample] | Mapping[str, Sequence[Sample]],
    *,
    keep: Keep | None = None,
    tell: Tell | None = None,
) -> Verification:
    """Generates every sample dense and under the plan, and compares.

    Args:
        source: a pipeline without a plan.
        plan: the plan.
        samples: of the calibration, or by group ("calibration", "others").
        keep: `keep(group, number, dense, sparse)` takes the videos, e.g. to write them.
        tell: told what is done next.

    Raises:
        ValueError: no samples.
        SparseVDiTError: the plan is sparse, but no call reached the sparse kernel.
    """
    groups = samples if isinstance(samples, Mapping) else {GROUPS[0]: samples}
    listed = [(group, number, s) for group, found in groups.items() for number, s in enumerate(found)]
    if not listed:
        raise ValueError("verify: there are no samples, expected at least one")
    judged: dict[str, list[Judged]] = {group: [] for group in groups if groups[group]}
    runs: list[tuple[Run, Run]] = []
    for turn, (group, number, sample) in enumerate(listed):
        if tell is not None:
            tell(f"video {turn + 1} of {len(listed)}, dense and sparse: {sample.prompt[:60]}")
        dense, sparse = _pair(source, plan, sample, sparse_first=turn % 2 == 1)
        judged[group].append(_compared(sample, dense, sparse))
        if keep is not None:
            keep(group, number, dense, sparse)
        runs.append((replace(dense, video=dense.video[:0]), replace(sparse, video=sparse.video[:0])))
    times = np.array([[dense.seconds, sparse.seconds] for dense, sparse in runs]).mean(axis=0) * 1e3
    return Verification(
        plan.hash,
        {group: tuple(found) for group, found in judged.items()},
        runs[0][0].noise,
        tuple(times[0].tolist()),
        tuple(times[1].tolist()),
    )


def run_sparse(source: Source, plan: SparsePlan, sample: Sample) -> Run:
    """One video under a plan.

    Raises:
        SparseVDiTError: the plan is sparse at some step, but no call reached the sparse kernel.
    """
    from sparse_vdit.models import applied, explain

    with applied(source.pipe, plan):
        found = source.run(sample)
        calls = explain(source.pipe).sparse_calls
    if not calls and is_sparse(plan, found.noise):
        raise SparseVDiTError("verify: the plan made 0 calls of the sparse kernel, expected some")
    return found


def is_sparse(plan: SparsePlan, noise: Sequence[float]) -> bool:
    """Whether any head of any step at these noise levels is not full."""
    for part in plan.transformers.values():
        bins = {part.bin_of(level) for level in noise} - {None}
        kinds = part.kinds()
        if any(kind != "full" for bin_ in bins if bin_ is not None for row in kinds[bin_] for kind in row):
            return True
    return False


def _pair(source: Source, plan: SparsePlan, sample: Sample, *, sparse_first: bool) -> tuple[Run, Run]:
    if sparse_first:
        sparse = run_sparse(source, plan, sample)
        return source.run(sample), sparse
    return source.run(sample), run_sparse(source, plan, sample)


def _compared(sample: Sample, dense: Run, sparse: Run) -> Judged:
    return Judged(
        prompt=sample.prompt,
        seed=sample.seed,
        dense_ms=1e3 * float(np.mean(dense.seconds)),
        plan_ms=1e3 * float(np.mean(sparse.seconds)),
        psnr_db=_finite(psnr(dense.video, sparse.video)),
        psnr_worst_frame_db=_finite(min(psnr_frames(dense.video, sparse.video))),
        ssim=ssim(dense.video, sparse.video),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"verification: {name} is {shown(value)}, expected a finite number")
    return float(value)


def _judged(value: Any) -> Judged:
    fields = closed("verification.sample", value, tuple(Judged.__dataclass_fields__))
    if not isinstance(fields["prompt"], str) or len(fields["prompt"]) > MAX_PROMPT:
        raise ValueError(
            f"verification: a prompt is {shown(fields['prompt'])}, expected a text of at most {MAX_PROMPT}"
        )
    integer("verification", "a seed", fields["seed"], 0, 2**63 - 1)
    return Judged(**fields)
