"""What `search.target.reach_psnr` asks for: the PSNR of a plan, from a few real generations.

plan, trials = reach_psnr(lambda error: select(errors, cost, max_error=error), mean_psnr(source, samples), 30.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sparse_vdit.plan import SparsePlan
from sparse_vdit.report.compare import Run
from sparse_vdit.report.metrics import psnr
from sparse_vdit.search import Sample

from .judge import run_sparse
from .source import Source


def mean_psnr(source: Source, samples: Sequence[Sample]) -> Callable[[SparsePlan], float]:
    """Measures the mean PSNR of a plan's videos against dense ones, which are made once; inf: all are equal.

    The mean is over squared errors, so that one equal video does not make it infinite.

    Args:
        source: without a plan.
        samples: generated for every plan asked about.
    """
    if not samples:
        raise ValueError("verify: there are no samples, expected at least one")
    dense: dict[Sample, Run] = {}

    def measure(plan: SparsePlan) -> float:
        errors = []
        for sample in samples:
            if sample not in dense:
                dense[sample] = source.run(sample)
            found = psnr(dense[sample].video, run_sparse(source, plan, sample).video)
            errors.append(10 ** (-found / 10))
        mean = float(np.mean(errors))
        return math.inf if mean == 0 else -10 * math.log10(mean)

    return measure
