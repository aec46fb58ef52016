"""The search bench: its rows are the promised ones, ranks are ranks, the worst case of the choice is one."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparse_vdit import _C, Geometry
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search import ladder

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks: the source tree is not here"
)
sys.path.insert(0, str(ROOT / "benchmarks"))

bench = pytest.importorskip("bench")
search = pytest.importorskip("search")

SMALL = Geometry(4, 8, 8, prefix=8, block_q=32, block_k=32)
OPTIONS = SimpleNamespace(quick=True, threads=1, clock=time.perf_counter)


# ---- ranks ----


def test_ranks_share_their_mean_where_values_are_equal() -> None:
    assert search.ranks(np.array([3.0, 1.0, 2.0])).tolist() == [3, 1, 2]
    assert search.ranks(np.array([5.0, 1.0, 5.0, 5.0, 0.0])).tolist() == [4, 2, 4, 4, 1]
    assert search.ranks(np.zeros(4)).tolist() == [2.5] * 4


def test_rank_correlation_is_that_of_the_order(rng: np.random.Generator) -> None:
    first, second = rng.random(9), rng.random(9)
    places = [np.argsort(np.argsort(values)) for values in (first, second)]
    expected = 1 - 6 * float(((places[0] - places[1]) ** 2).sum()) / (9 * 80)
    assert search.spearman(first, second) == pytest.approx(expected)
    assert search.spearman(first, np.exp(first)) == pytest.approx(1)
    assert search.spearman(first, -first) == pytest.approx(-1)
    assert search.spearman(first, np.ones(9)) == 0


def test_a_row_of_ranks_names_the_least_candidate(rng: np.random.Generator) -> None:
    few = rng.random((6, 3))
    many = few.copy()
    many[:, 1] = -few[:, 1]
    row = search.rank_row(few, many, ("a", "b", "c"))
    assert (row["all_heads"], row["candidates"], row["least_at"]) == (6, 3, "b")
    assert row["over_heads_least"] == pytest.approx(-1)
    assert row["over_heads_mean"] == pytest.approx(1 / 3)
    assert row["in_head_least"] == min(search.spearman(few[h], many[h]) for h in range(6))


# ---- tables ----


def test_the_worst_case_has_every_option_on_the_hull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "DECISIONS", 50)
    made = search.tables("hull")
    slopes = np.diff(made["errors"].astype(np.float64), axis=1) / np.diff(made["times"])
    assert (slopes < 0).all()
    assert (np.diff(slopes, axis=1) > 0).all()
    for kind in ("hull", "random"):
        arguments = search.tables(kind)
        found = _C.select_budget(**arguments)
        assert found["time_ms"] <= arguments["budget"] * (1 + 1e-9)
        assert found["multiplier"] > 0, "the budget decides"
    monkeypatch.setattr(search, "DECISIONS", 1)
    made = search.tables("hull") | {"weights": np.ones(1)}
    chosen = [_C.select_budget(**made | {"budget": t})["choice"][0] for t in made["times"][0]]
    assert all(after == before + 1 for before, after in pairwise(chosen))


def test_synthetic_errors_allow_what_measured_ones_do() -> None:
    model = ModelIdentity("CogVideoXTransformer3DModel", layers=3, heads=2, head_dim=64)
    candidates = ladder(SMALL)
    table, betas = search.synthetic_errors(model, candidates, bins=4).options()
    takes = candidates.takes_remainder
    assert table.shape == (4, 3, 2, 2 * candidates.count)
    assert np.isfinite(table[..., 0::2]).all()
    assert (np.isfinite(table[..., 1::2]) == takes).all()
    assert (table[..., 1::2] < table[..., 0::2])[..., takes].all()
    assert np.ptp(betas[..., 1::2][..., takes]) > 1


def test_quick_probes_one_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PROBED", ((SMALL, 1), (search.LARGE, 48)))
    monkeypatch.setattr(search, "PROBE_SECONDS", (0.0, 0.0))
    (row,) = search.probe_rows(OPTIONS)
    assert row["tokens"] == SMALL.tokens


# ---- the whole program ----

COMMON = [
    "bench", "part", "date", "device", "isa", "threads", "commit", "sparse_vdit", "torch", "diffusers", "numpy",
    "python",
]  # fmt: skip


def spread(name: str) -> list[str]:
    return [name, f"{name}_p20", f"{name}_p80"]


KEYS = {
    "probe": [
        "tokens", "heads", "head_dim", "dtype", "candidates", "rows", "rounds", *spread("probe_ms"), *spread("mass_ms"),
        *spread("torch_ms"), *spread("ours_ms"), *spread("of_torch"), *spread("of_ours"),
    ],
    "ranks": [
        "step", "noise", "option", "all_heads", "candidates", "rows", "other_rows", "over_heads_mean",
        "over_heads_least", "least_at", "in_head_mean", "in_head_least",
    ],
    "select": ["tables", "decisions", "options", *spread("ms"), "rounds", "above_bound"],
    "replan": [
        "case", "tokens", "layers", "heads", "bins", "candidates", "errors_mb", "first_ms", *spread("ms"), "rounds",
        "patterns", "left_out",
    ],
}  # fmt: skip


def save_model(folder: Path) -> None:
    """Two layers of random weights, 264 tokens."""
    from diffusers import CogVideoXTransformer3DModel
    from safetensors.torch import save_file

    config = json.loads((search.MODEL / "config.json").read_text()) | {"patch_size": 16, "num_layers": 2}
    torch.manual_seed(5)
    weights = CogVideoXTransformer3DModel.from_config(config).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def make_small(patch: pytest.MonkeyPatch, folder: Path, threads: list[int]) -> None:
    """Small sizes, hardly any time; this process keeps its threads."""
    small = {
        "MODEL": folder, "BLOCK": 32, "ROWS": 16, "MANY": 128, "STEPS": (2, 3), "DECISIONS": 100, "OPTIONS": 20,
        "PROBED": ((SMALL, 2), (Geometry(4, 8, 16, block_q=64, block_k=64), 3)), "PROBE_SECONDS": (0, 0),
        "SELECT_SECONDS": 0, "REPLAN_SECONDS": 0, "LARGE": SMALL, "LARGE_BINS": 3,
        "LARGE_MODEL": ModelIdentity("CogVideoXTransformer3DModel", layers=3, heads=4, head_dim=64),
    }  # fmt: skip
    for name, value in small.items():
        patch.setattr(search, name, value)
    kernels = SimpleNamespace(set_threads=threads.append, select_budget=_C.select_budget)
    patch.setattr(search, "_C", kernels)
    patch.setattr(bench, "_C", kernels)
    patch.setattr(torch, "set_num_threads", threads.append)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    pytest.importorskip("diffusers")
    folder, threads, said = tmp_path_factory.mktemp("search"), [], io.StringIO()
    target = folder / "rows.json"
    save_model(folder)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        make_small(patch, folder, threads)
        patch.setattr(sys, "argv", ["bench.py", "search", "--threads", "2", "--json", str(target)])
        bench.main()
    rows = json.loads(target.read_text())
    assert threads == [2, 2, 1, 2], "of torch, of ours, of the choice, of ours again"
    assert len(said.getvalue().splitlines()) == 1 + 2 * len(KEYS) + len(
        rows
    )  # the machine; title, header of a part
    return {part: [row for row in rows if row["part"] == part] for part in KEYS}


def test_rows_have_the_promised_keys(parts: dict[str, list[dict[str, Any]]]) -> None:
    assert {part: len(rows) for part, rows in parts.items()} == {
        "probe": 2,
        "ranks": 6,
        "select": 2,
        "replan": 2,
    }
    for part, rows in parts.items():
        assert all(list(row) == COMMON + KEYS[part] for row in rows), part


def test_medians_lie_within_their_spread(parts: dict[str, list[dict[str, Any]]]) -> None:
    assert [(row["tokens"], row["heads"]) for row in parts["probe"]] == [(264, 2), (512, 3)]
    for row in (row for rows in parts.values() for row in rows):
        for name in (key.removesuffix("_p20") for key in row if key.endswith("_p20")):
            assert 0 < row[f"{name}_p20"] <= row[name] <= row[f"{name}_p80"], (row["part"], name)


def test_ranks_compare_all_but_the_first_step(parts: dict[str, list[dict[str, Any]]]) -> None:
    rows = parts["ranks"]
    assert [(row["step"], row["option"]) for row in rows] == [
        (step, option) for step in (1, 2, None) for option in ("plain", "remainder")
    ]
    for row in rows:
        assert (row["all_heads"], row["rows"], row["other_rows"]) == (4, 16, 128)
        assert -1 <= row["over_heads_least"] <= row["over_heads_mean"] <= 1 + 1e-9
        assert 0 < row["in_head_least"] <= row["in_head_mean"] <= 1 + 1e-9, "denser is nearer on any rows"
    assert rows[0]["noise"] > rows[2]["noise"] > 0


def test_choices_and_plans_are_made(parts: dict[str, list[dict[str, Any]]]) -> None:
    assert [row["tables"] for row in parts["select"]] == ["random", "hull"]
    assert all(row["threads"] == 1 and 0 <= row["above_bound"] < 0.1 for row in parts["select"])
    embedded, large = parts["replan"]
    assert [embedded[key] for key in ("case", "tokens", "layers", "heads")] == ["embedded", 264, 2, 2]
    assert [large[key] for key in ("case", "tokens", "layers", "heads", "bins")] == ["large", 264, 3, 4, 3]
    assert all(row["patterns"] > 1 and row["first_ms"] > 0 for row in parts["replan"])
