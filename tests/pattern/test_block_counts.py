"""Visited blocks at real grids against the committed counts of `kit/block_counts.py`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from kit import block_counts, draws, masks

from sparse_vdit import _C, Geometry, Order, Pattern

COUNTS = json.loads(block_counts.FILE.read_text())


def pattern_from(spec: dict[str, Any]) -> Pattern:
    fields = {name: value for name, value in spec.items() if name != "kind"}
    order = fields.pop("order", None)
    if spec["kind"] == "union":
        return Pattern.union(*map(pattern_from, fields.pop("parts")), **fields)
    if spec["kind"] == "periodic_tiles":
        return Pattern.periodic_tiles(tile=order["tile"], **fields)
    if spec["kind"] == "vertical_stripe" and order:
        fields["order"] = Order(order["kind"], order["tile"] and tuple(order["tile"]))
    return getattr(Pattern, spec["kind"])(**fields)


def test_all_grids_and_families_are_there() -> None:
    grids = [row["geometry"] for row in COUNTS]
    assert all(grid in grids for grid in block_counts.GRIDS.values())
    assert [row["pattern"] for row in COUNTS] == [
        spec for grid in block_counts.GRIDS.values() for spec in block_counts.specs(grid)
    ]
    assert {row["pattern"]["kind"] for row in COUNTS} == set(Pattern.FIELDS)


@pytest.mark.parametrize(
    "row", COUNTS, ids=lambda row: f"{row['geometry']['frames']}-{row['pattern']['kind']}"
)
def test_counts_at_real_grids(row: dict[str, Any]) -> None:
    geometry = Geometry(**row["geometry"])
    wire = [pattern_from(row["pattern"]).to_ints()]
    for remainder in (False, True):
        rows, codes = _C.visits(geometry.to_ints(), wire, np.array([remainder]))
        assert int(rows[0, :, 3].sum()) == row["visited_blocks"]
        mask = _C.block_mask(geometry.to_ints(), rows[0], codes)
        assert block_counts.digest(mask) == row["digest"]
        pairs = _C.visited_pairs(geometry.to_ints(), rows[0], codes)
        assert pairs / geometry.tokens**2 == pytest.approx(row["density"], rel=1e-12)


@settings(max_examples=300)
@given(draws.cases())
def test_the_counter_itself_is_the_cover(case: tuple[Geometry, Pattern]) -> None:
    geometry, pattern = case
    assert np.array_equal(block_counts.rows_of(geometry, pattern), masks.block_cover(geometry, pattern))
