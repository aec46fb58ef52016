"""Plans that a good plan must beat: as dense as it is, with a remainder wherever it has one.

random      random block masks, as many blocks per query block as the plan computes
uniform     the one pattern that is best for all heads together, for some of them the next denser one
permuted    the plan's own patterns, moved to other heads
"""

from __future__ import annotations

from collections.abc import Callable

from ..plan import SparsePlan
from ..search.controls import permute, random_masks, uniform_at_density
from .calibrate import Calibration

NAMES = ("random", "uniform", "permuted")


def controls(calibration: Calibration, plan: SparsePlan) -> dict[str, Callable[[int], SparsePlan]]:
    """Returns, by name, a callable that makes the control plan of a seed.

    Args:
        calibration: What the plan was chosen by; the uniform pattern is chosen by the same errors and weights.
        plan: The plan.
    """
    uniform = uniform_at_density(calibration.errors, plan.density(), dense_above=plan.dense_above)
    return {
        "random": lambda seed: random_masks(plan, seed),
        "uniform": lambda seed: uniform,
        "permuted": lambda seed: permute(plan, seed),
    }
