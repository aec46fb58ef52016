"""Families by output error: made-up errors whose families are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparse_vdit import Geometry
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search import HeadErrors, ladder
from sparse_vdit.search.families import families_by_error
from sparse_vdit.search.head_errors import array_shapes

MODEL = ModelIdentity("CogVideoXTransformer3DModel", layers=1, heads=4, head_dim=16)
CANDIDATES = ladder(
    Geometry(frames=16, height=8, width=8, prefix=8, block_q=16, block_k=16), (0.15, 0.2, 0.6)
)


def one(kind: str, dense: bool = False) -> int:
    """A candidate of a kind, below or above a density of a quarter."""
    return next(
        number
        for number, pattern in enumerate(CANDIDATES.patterns)
        if pattern.family == kind and (CANDIDATES.density[number] > 0.25) == dense
    )


def made() -> HeadErrors:
    """Head 0 likes a diagonal, 1 a stripe, 2 only a dense diagonal, 3 a diagonal but is never felt."""
    shapes = array_shapes(MODEL, CANDIDATES, 2)
    plain = np.full(shapes["plain"], 0.5, np.float32)
    for head, number in enumerate(
        (one("diagonal"), one("vertical_stripe"), one("diagonal", True), one("diagonal"))
    ):
        plain[:, :, head, number] = 0.01
    plain[..., CANDIDATES.full] = 0
    power = np.ones(shapes["power"], np.float32)
    power[..., 3] = 1e-4
    arrays = {"plain": plain, "curve": np.repeat(plain[..., None], shapes["curve"][-1], axis=-1)}
    about = {"measure": "relative", "rows": 64, "seed": 0, "power": power}
    return HeadErrors(
        MODEL, CANDIDATES, (0.0, 0.5, 1.0), energy=np.ones(shapes["energy"], np.float32),
        calls=np.ones(shapes["calls"], np.int64), stripes=np.zeros(shapes["stripes"], np.int32), **about, **arrays,
    )  # fmt: skip


def test_heads_are_counted_by_the_family_of_least_error() -> None:
    found = families_by_error(made())
    assert found == {"diagonal": 1, "full": 1, "skippable": 1, "vertical_stripe": 1}


def test_denser_patterns_take_part_on_request() -> None:
    assert families_by_error(made(), 0.9)["diagonal"] == 2


def test_without_sensitivity_every_head_counts_alike() -> None:
    assert families_by_error(replace(made(), power=None, probes=None))["diagonal"] == 2
