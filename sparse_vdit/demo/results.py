"""What a run measured, and `report.json`, whose keys others read: they are added to, never renamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan import SparsePlan
from ..report.compare import Way
from ..search.cost import StepEstimate
from ..search.families import families_by_error
from .calibrate import Calibration
from .controls import NAMES


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Attributes:
        ways: "dense", "sparse" and the controls.
        seeds: Seeds of the videos.
        prompts: Their sentences.
        losses: Held-out loss per clip, by way.
        densities: Share of token pairs computed below the warm-up, by way; of the first seed.
        plan: The plan.
        calibration: What it was chosen from.
        estimate: What the prices said of a step under the plan, before it was run.
        kernel_ratio: Sparse over dense seconds of the attention itself, by noise bin, measured.
        sparse_calls: Calls of the sparse kernel in the judged videos.
        facts: Machine, versions and settings, by name.
        notes: What a careful reader should know.
    """

    ways: Mapping[str, Way]
    seeds: Sequence[int]
    prompts: Sequence[str]
    losses: Mapping[str, Sequence[float]]
    densities: Mapping[str, float]
    plan: SparsePlan
    calibration: Calibration
    estimate: StepEstimate
    kernel_ratio: Sequence[float]
    sparse_calls: int
    facts: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def steps(self) -> int:
        """Denoising steps of a video."""
        return len(self.ways["dense"].runs[0].noise)

    @property
    def speedup(self) -> float:
        """Stock over sparse seconds per transformer call, dense warm-up included."""
        return self.ways["dense"].seconds_per_step / self.ways["sparse"].seconds_per_step

    @property
    def predicted_speedup(self) -> float:
        """By the calibrated prices and the attention's share of a stock step (Amdahl), dense warm-up included."""
        return self.estimate.speedup

    @property
    def search_seconds(self) -> float:
        """Watching the calibration video, timing the machine and choosing."""
        return sum(seconds for name, seconds in self.calibration.seconds.items() if name != "probes")

    @property
    def dense_generations(self) -> float:
        """What the search took, in dense videos."""
        return self.search_seconds / (self.steps * self.ways["dense"].seconds_per_step)


def head_families(plan: SparsePlan) -> dict[str, int]:
    """Returns how many heads have each family; a head counts for the one it has in most noise bins."""
    kinds = np.array(plan.sole.kinds())  # [bins, layers, heads]
    most = [
        Counter(kinds[:, layer, head]).most_common(1)[0][0] for layer, head in np.ndindex(kinds.shape[1:])
    ]
    return {str(kind): count for kind, count in Counter(most).most_common()}


def mean_loss(results: Results, way: str) -> float:
    """Returns the mean held-out loss of a way."""
    return float(np.mean(results.losses[way]))


def numbers(results: Results) -> dict[str, Any]:
    """Returns the content of `report.json`."""
    dense, sparse = results.ways["dense"], results.ways["sparse"]
    means = {name: {key: way.mean(key) for key in ("psnr_db", "ssim")} for name, way in results.ways.items()}
    bins = len(results.plan.bins) - 1
    return {
        "dense_s_per_step": dense.seconds_per_step,
        "sparse_s_per_step": sparse.seconds_per_step,
        "speedup": results.speedup,
        "speedup_predicted": results.predicted_speedup,
        **means["sparse"],
        "psnr_worst_frame_db": sparse.mean("psnr_worst_frame_db"),
        "flip": sparse.mean("flip"),
        "vmaf": sparse.mean("vmaf"),
        "density": results.plan.density(),
        "heldout_loss_dense": mean_loss(results, "dense"),
        "heldout_loss_sparse": mean_loss(results, "sparse"),
        "controls": {
            name: {
                **means[name],
                "heldout_loss": mean_loss(results, name),
                "density": results.densities[name],
            }
            for name in NAMES
        },
        "head_families": head_families(results.plan),
        "head_families_by_noise": {
            noise_range(results.plan, b): results.plan.families(b) for b in range(bins)
        },
        "head_families_by_error": families_by_error(results.calibration.errors),
        "attention_share": results.calibration.stock.share,
        "stock_step_s": results.calibration.stock.seconds,
        "speedup_ceiling": finite(results.estimate.ceiling),
        "kernel_ratio_by_noise": {
            noise_range(results.plan, b): float(results.kernel_ratio[b]) for b in range(bins)
        },
        "kernel_ratio_predicted_by_noise": {
            noise_range(results.plan, b): predicted_ratio(results, b) for b in range(bins)
        },
        "search": search_numbers(results),
        "sparse_calls": results.sparse_calls,
        "dense_warm_up_steps": sum(results.plan.bin_of(level) is None for level in dense.runs[0].noise),
        "per_seed": [_seed(results, number) for number in range(len(results.seeds))],
        "heldout_losses": {name: list(values) for name, values in results.losses.items()},
        "plan_hash": results.plan.hash,
        "facts": dict(results.facts),
        "notes": list(results.notes),
    }


def predicted_ratio(results: Results, number: int) -> float:
    """Returns sparse over dense milliseconds of the attention in a noise bin, by the prices."""
    calibration, plan = results.calibration, results.plan
    level = min(plan.bins[number], plan.dense_above)
    dense = calibration.attention_ms
    layers = plan.model.layers
    return calibration.cost.plan_ms(plan.sole, [level], dense_layer_ms=dense / layers) / dense


def search_numbers(results: Results) -> dict[str, Any]:
    """Returns what was searched, and at what cost."""
    calibration, asked = results.calibration, results.plan.provenance["asked"]
    candidates = calibration.errors.candidates
    return {
        "asked": {name: asked[name] for name in ("density", "speedup") if name in asked},
        "candidates": candidates.count,
        "options": int(candidates.count + candidates.takes_remainder.sum()),
        "rows": calibration.errors.rows,
        "steps": len(calibration.errors.provenance["noise_levels"]),
        "mean_error": results.plan.provenance["predicted"]["mean_error"],
        "seconds": {name: round(seconds, 3) for name, seconds in calibration.seconds.items()},
        "seconds_in_all": round(results.search_seconds, 3),
        "dense_generations": results.dense_generations,
        "clock_median_error": finite(calibration.cost.hardware.median_error),
    }


def _seed(results: Results, number: int) -> dict[str, Any]:
    ways = {}
    for name, way in results.ways.items():
        entry: dict[str, Any] = {"seconds": list(way.runs[number].seconds)}
        if way.fidelity:
            fidelity = way.fidelity[number]
            entry |= {key: finite(getattr(fidelity, key)) for key in fidelity.__dataclass_fields__}
        ways[name] = entry
    return {"seed": results.seeds[number], "prompt": results.prompts[number], "ways": ways}


def finite(value: float | None) -> float | None:
    """Returns the value, or None for what JSON cannot hold."""
    return value if value is not None and np.isfinite(value) else None


def noise_range(plan: SparsePlan, number: int) -> str:
    """Returns the noise levels of a bin in words."""
    low, high = plan.bins[number], min(plan.bins[number + 1], plan.dense_above)
    return f"{low:.2f}-{high:.2f}"
