"""Candidates are data: generated from a geometry, distinct by what they compute, editable as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import masks

from sparse_vdit import Geometry, Order, Pattern
from sparse_vdit.search.candidates import Candidates, ladder

GEOMETRY = Geometry(frames=13, height=12, width=20, prefix=16, block_q=32, block_k=32)
SMALL = Geometry(frames=3, height=4, width=5, suffix=3, block_q=16, block_k=16)


def family(pattern: Pattern) -> str:
    return pattern.kind if pattern.kind != "union" else pattern.parts[0].kind + "+stripe"


def computed(geometry: Geometry, pattern: Pattern) -> np.ndarray:
    """bool [N, N] by sequence index, from the definitions alone."""
    cover = masks.block_cover(geometry, pattern)
    return masks.token_mask(geometry, cover, masks.places(geometry, pattern.order))


@pytest.fixture(scope="module")
def made() -> Candidates:
    return ladder(GEOMETRY)


def test_the_ladder_has_every_family_at_six_widths(made: Candidates) -> None:
    counts = dict.fromkeys(map(family, made.patterns), 0)
    for pattern in made.patterns:
        counts[family(pattern)] += 1
    for name in (
        "diagonal",
        "multi_diagonal",
        "vertical_stripe",
        "diagonal+stripe",
        "multi_diagonal+stripe",
        "periodic_tiles",
    ):
        assert counts[name] >= 6, counts
    assert counts["skip"] == counts["full"] == 1
    assert any(p.kind == "periodic_tiles" and p.time and p.time[2] for p in made.patterns)
    assert len(made.mass_stripes) >= 3
    options = made.count + made.takes_remainder.sum()
    assert 100 <= options <= 200
    assert np.all(np.diff(made.density[: len(made.patterns)]) >= 0), "sparse first"
    assert made.patterns[0].kind == "skip"
    assert made.patterns[made.full].kind == "full"


@pytest.mark.parametrize("geometry", [SMALL, Geometry(1, 1, 1), Geometry(2, 9, 9, 5, 7, 16, 32)])
def test_no_two_candidates_compute_the_same(geometry: Geometry) -> None:
    """By masks written from the definitions: token by token, in the order of the sequence."""
    made = ladder(geometry)
    seen: dict[bytes, str] = {}
    for pattern in made.patterns:
        key = computed(geometry, pattern).tobytes()
        assert key not in seen, f"{pattern.name} computes what {seen[key]} does"
        seen[key] = pattern.name


def test_density_orders_and_pool_are_those_of_the_masks() -> None:
    made = ladder(SMALL)
    for number, pattern in enumerate(made.patterns):
        assert made.density[number] == pytest.approx(computed(SMALL, pattern).mean())
        row = made.orders[number]
        assert (row == -1) == (pattern.order.kind == "frame_major")
        assert row == -1 or made.pool.orders[row] == pattern.order
    assert made.pool.remainder.tolist() == made.takes_remainder[: len(made.patterns)].tolist()


def test_json_comes_back_and_may_be_edited(tmp_path: Path, made: Candidates) -> None:
    path = made.save(tmp_path / "candidates.json")
    assert Candidates.load(path) == made
    assert Candidates.load(path).hash == made.hash
    document = json.loads(path.read_text())
    document["patterns"] = [entry for entry in document["patterns"] if entry["kind"] in ("full", "diagonal")]
    document["patterns"].reverse()
    document["mass_stripes"] = [7, 3]
    path.write_text(json.dumps(document))
    edited = Candidates.load(path)
    assert {pattern.kind for pattern in edited.patterns} == {"diagonal", "full"}
    assert edited.patterns[-1].kind == "full"
    assert edited.mass_stripes == (3, 7)
    assert edited.hash != made.hash


def test_mass_stripes_become_patterns() -> None:
    made = Candidates(SMALL, (Pattern.full(), Pattern.skip()), (1, 3))
    assert made.pattern(3, [2, 0, 3, 1]) == Pattern.vertical_stripe(key_blocks=[0, 2, 3])
    assert made.pattern(2, np.array([2, 0, 3], np.int32)) == Pattern.vertical_stripe(key_blocks=[2])
    assert made.pattern(0).kind == "skip"
    with pytest.raises(
        ValueError, match=r"mass_stripe\(3 key blocks\) has blocks \[-1, -1, -1\], expected measured"
    ):
        made.pattern(3, [-1, -1, -1])


def refused(sentence: str, *arguments: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        Candidates(*arguments)


def test_lists_that_are_refused() -> None:
    full, band = Pattern.full(), Pattern.diagonal(half_width=4)
    refused("candidates: the list is empty, expected at least one pattern", SMALL, ())
    refused(
        r"candidates: diagonal\(9\) visits the same blocks as diagonal\(4\), expected distinct patterns",
        SMALL,
        (full, band, Pattern.diagonal(half_width=9)),
    )
    wide = Pattern.multi_diagonal(half_width=10**6)
    refused(r"multi_diagonal\(1000000\) visits the same blocks as full", SMALL, (full, wide))
    refused("full is not in the list, expected it", SMALL, (band,))
    refused("has a remainder, expected plain patterns", SMALL, (full, band.with_remainder(0.5)))
    refused("entry 1 is str, expected a Pattern", SMALL, (full, "diagonal"))
    refused("mass_stripes holds 2 twice, expected distinct numbers", SMALL, (full,), (2, 1, 2))
    refused(r"an entry of mass_stripes is 4, expected 1\.\.3", SMALL, (full,), (4,))
    refused("geometry is dict, expected a Geometry", {}, (full,))
    refused(
        "there are 1100, expected at most 1024",
        Geometry(200, 16, 16, block_q=16, block_k=16),
        (full, *(Pattern.diagonal(half_width=16 * n) for n in range(1099))),
    )
    empty = Pattern.vertical_stripe(key_blocks=())
    kept = Candidates(SMALL, (full, empty, Pattern.vertical_stripe(key_blocks=(), order=Order.token_major())))
    assert len(kept.patterns) == 3, "the same blocks of another order are another pattern"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patterns": []}, "candidates: the list is empty"),
        ({"format": "else"}, "candidates: format is 'else', expected 'sparse_vdit.candidates'"),
        ({"format_version": 2}, "candidates: format_version is 2, expected 1"),
        ({"format_version": True}, "candidates: format_version is True, expected 1"),
        ({"note": "hello"}, "candidates: unknown field 'note'"),
        ({"mass_stripes": 3}, "candidates: mass_stripes is the number 3, expected a list"),
        ({"patterns": [{"kind": "oval"}]}, r"candidates.patterns\[0\]: kind is 'oval', expected one of full"),
        ({"patterns": [{"kind": "full"}] * 2000}, "there are more than 1024 entries"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "candidates.json"
    document = Candidates(SMALL, (Pattern.full(),)).to_json()
    path.write_text(json.dumps(document | change))
    with pytest.raises(ValueError, match=sentence):
        Candidates.load(path)


def test_files_that_are_not_json(tmp_path: Path) -> None:
    path = tmp_path / "candidates.json"
    with pytest.raises(FileNotFoundError, match="candidates: there is no file"):
        Candidates.load(path)
    with pytest.raises(ValueError, match="is a folder, expected a candidates"):
        Candidates.load(tmp_path)
    path.write_text('{"format": NaN}')
    with pytest.raises(ValueError, match="candidates: a number is NaN, expected a finite one"):
        Candidates.load(path)
