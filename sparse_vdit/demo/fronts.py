"""One head and all that it could have had: the options on their front of error and time, and why one was taken."""

from __future__ import annotations

import numpy as np

from ..report.search_figures import HeadFront
from ..search.front import Option, front
from ..verify.transfer import chosen_options
from .results import Results

HEADS = 3


def examples(results: Results) -> list[tuple[int, int, int]]:
    """Returns (bin, layer, head) of up to `HEADS` heads at the noise level of the pictures, each of another family.

    Of a family it is the head that counts most; sparse families come first.
    """
    plan, errors = results.plan, results.calibration.errors
    number = plan.bin_of(results.calibration.kept_noise) or 0
    kinds = np.array(plan.sole.kinds()[number])
    weights = errors.weights("sensitivity")[number]
    found: dict[str, tuple[int, int, int]] = {}
    for place in np.argsort(-weights, axis=None, kind="stable"):
        layer, head = np.unravel_index(place, weights.shape)
        found.setdefault(str(kinds[layer, head]), (number, int(layer), int(head)))
    ranked = sorted(found, key=lambda kind: kind in ("full", "skip"))
    return [found[kind] for kind in ranked[:HEADS]]


def head_front(results: Results, place: tuple[int, int, int]) -> tuple[HeadFront, Option]:
    """Returns the picture of a head's options, and the chosen one."""
    calibration = results.calibration
    candidates = calibration.errors.candidates
    listed = front(calibration.errors, calibration.cost, *place)
    chosen = int(chosen_options(calibration.errors, results.plan.sole)[place])
    full = next(option.time_ms for option in listed if option.number == 2 * candidates.full)
    at = next(at for at, option in enumerate(listed) if option.number == chosen)
    picture = HeadFront(
        title=f"layer {place[1]}, head {place[2]}",
        times=[option.time_ms / full for option in listed],
        errors=[option.error for option in listed],
        families=[_family(results, option.number // 2) for option in listed],
        remainders=[option.beta is not None for option in listed],
        hull=[at for at, option in enumerate(listed) if option.is_on_hull],
        chosen=at,
    )
    return picture, listed[at]


def _family(results: Results, candidate: int) -> str:
    patterns = results.calibration.errors.candidates.patterns
    return patterns[candidate].family if candidate < len(patterns) else "vertical_stripe"
