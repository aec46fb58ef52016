"""The benchmark runs, and its rows are the promised ones: keys, baselines, densities, sane numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks: the source tree is not here"
)

KEYS = [
    "bench", "device", "isa", "threads", "dtype", "head_dim", "tokens", "heads", "pattern", "remainder", "density",
    "ours_ms", "ours_ms_p20", "ours_ms_p80", "baseline", "baseline_ms", "ratio", "gflops", "peak_gflops",
    "share_of_peak", "commit",
]  # fmt: skip
# The same program over 2,048 tokens and hardly any time: what is tested is the rows, never the speed.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import bench, cases
from sparse_vdit import Geometry
cases.QUICK = Geometry(frames=8, height=16, width=16)
bench.QUICK_BUDGET_S = 0.1
bench.main()
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    target = tmp_path_factory.mktemp("bench") / "rows.json"
    command = [sys.executable, "-P", "-c", SCRIPT, str(ROOT / "benchmarks"), "attention", "--quick"]
    done = subprocess.run([*command, "--json", str(target)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(target.read_text())
    assert len(done.stdout.splitlines()) == len(found) + 2  # the machine, the header, a line a row
    return found


def test_rows_have_the_promised_keys(rows: list[dict[str, object]]) -> None:
    assert all(list(row) == KEYS for row in rows)


def test_quick_measures_every_family_with_and_without_remainder(rows: list[dict[str, object]]) -> None:
    for head_dim in (64, 128):
        mine = [row for row in rows if row["head_dim"] == head_dim]
        dense = [row for row in mine if row["pattern"] == "full"]
        assert [row["baseline"] for row in dense] == ["torch_sdpa"]
        for family in ("diagonal", "multi_diagonal", "vertical_stripe", "periodic_tiles"):
            sparse = [row for row in mine if row["pattern"] == family]
            kinds = {(row["baseline"], row["remainder"] is None) for row in sparse}
            assert kinds == {
                (b, plain) for b in ("torch_sdpa", "density_x_ours_dense") for plain in (True, False)
            }
            assert len(sparse) == 8  # two densities
            assert len({row["density"] for row in sparse}) == 2


def test_numbers_are_consistent(rows: list[dict[str, object]]) -> None:
    for row in rows:
        assert 0 < row["ours_ms_p20"] <= row["ours_ms"] <= row["ours_ms_p80"], row
        assert 0 < row["density"] <= 1, row
        assert row["baseline_ms"] > 0, row
        assert row["ratio"] > 0, row
        assert 0 < row["share_of_peak"] < 1.5, row
        work = 4 * row["tokens"] ** 2 * row["head_dim"] * row["heads"] * row["density"]
        assert row["gflops"] == pytest.approx(work / row["ours_ms"] * 1e-6), row


COST_KEYS = [
    "bench", "device", "isa", "threads", "dtype", "head_dim", "tokens", "heads", "plan", "density", "predicted_ms",
    "measured_ms", "error", "constants", "commit",
]  # fmt: skip
COST_SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import bench, cost
from sparse_vdit import Geometry
from sparse_vdit.search import calibration
small = Geometry(16, 8, 8, prefix=8, block_q=64, block_k=64)
calibration._geometry = lambda hardware: small
cost.CASES, cost.PLANS = ((small, 2), (Geometry(4, 16, 16, block_q=64, block_k=64), 3)), 4
bench.main()
"""


def test_cost_measures_what_it_predicts(tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    command = [sys.executable, "-P", "-c", COST_SCRIPT, str(ROOT / "benchmarks"), "cost", "--quick"]
    options = ["--seconds", "0.1", "--json", str(target)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())
    assert all(list(row) == COST_KEYS for row in rows)
    assert [(row["tokens"], row["heads"]) for row in rows] == [(1032, 2)] * 4 + [(1024, 3)] * 4
    for row in rows:
        assert 0 < row["density"] <= 1
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)
    assert "8 plans, median error" in done.stdout
