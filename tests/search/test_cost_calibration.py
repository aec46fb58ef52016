"""Calibration: constants out of synthetic times, least squares against all active sets, and the command itself."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from sparse_vdit import _C, Geometry, cli
from sparse_vdit.search import calibration
from sparse_vdit.search.calibration import calibrate, fitted, known_constants, least_squares, robust_times
from sparse_vdit.search.cost import price_layer
from sparse_vdit.search.hardware import NAMES, TIMES, Hardware, Machine

TRUTH = {
    "cache_tokens": 4096 * 2**1.5, "launch_us": 40.0, "head_us": 30.0, "pack_us": 5.0, "far_us": 9.0,
    "reorder_us": 3.0, "mean_us": 1.5, "item_us": 6.0, "chunk_us": 3.0, "run_us": 1.0, "full_us": 12.0,
    "partial_us": 2.0, "pooled_us": 3.0, "tile_us": 1.0,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same layers over 1,032 tokens and 2 heads at most, so that it takes moments."""
    monkeypatch.setattr(
        calibration, "_geometry", lambda h: Geometry(16, 8, 8, prefix=8, block_q=h.block_q, block_k=h.block_k)
    )


@pytest.fixture
def truth() -> Hardware:
    return known_constants("float32", 64, 64, 64).replaced(workers=1, **TRUTH)


@pytest.mark.parametrize("block_k", [64, 32])
def test_constants_come_back_from_exact_times(block_k: int, rng: np.random.Generator) -> None:
    known = known_constants("float32", 64, 64, block_k).replaced(workers=1)
    truth = known.replaced(**TRUTH)
    layers = [sample.layer for sample in calibration.samples(truth, rng)]
    ms = np.array([price_layer(truth, layer)[0] for layer in layers])
    found = fitted(known, layers, ms)
    for name in NAMES:
        assert found[name] == pytest.approx(truth[name], rel=1e-5, abs=1e-5), name


def test_noise_of_a_percent_stays_a_percent(truth: Hardware, small: None, rng: np.random.Generator) -> None:
    layers = [sample.layer for sample in calibration.samples(truth, rng)]
    ms = np.array([price_layer(truth, layer)[0] for layer in layers])
    noisy = ms * rng.normal(1.0, 0.01, len(ms))
    found = fitted(known_constants("float32", 64, 64, 64).replaced(workers=1), layers, noisy)
    for sample in calibration.mixed_samples(truth, rng, 12):
        predicted, real = price_layer(found, sample.layer)[0], price_layer(truth, sample.layer)[0]
        assert predicted == pytest.approx(real, rel=0.02)


def test_one_disturbed_layer_does_not_bend_the_others(truth: Hardware, rng: np.random.Generator) -> None:
    layers = [sample.layer for sample in calibration.samples(truth, rng)]
    ms = np.array([price_layer(truth, layer)[0] for layer in layers])
    ms[5] *= 1.6
    found = fitted(known_constants("float32", 64, 64, 64).replaced(workers=1), layers, ms)
    for sample in calibration.mixed_samples(truth, rng, 6):
        predicted, real = price_layer(found, sample.layer)[0], price_layer(truth, sample.layer)[0]
        assert predicted == pytest.approx(real, rel=0.01)


def test_least_squares_against_all_active_sets(rng: np.random.Generator) -> None:
    for _ in range(60):
        rows, columns = int(rng.integers(4, 9)), int(rng.integers(1, 6))
        matrix, target = rng.normal(size=(rows, columns)), rng.normal(size=rows)
        if rng.random() < 0.3:
            matrix[:, 0] = 0.0
        found = least_squares(matrix, target)
        best = float(target @ target)
        for size in range(1, columns + 1):
            for chosen in itertools.combinations(range(columns), size):
                part = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
                if (part >= 0).all():
                    best = min(best, float(np.sum((matrix[:, chosen] @ part - target) ** 2)))
        assert (found >= 0).all()
        assert float(np.sum((matrix @ found - target) ** 2)) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_a_slow_round_changes_nothing(rng: np.random.Generator) -> None:
    truth = rng.uniform(1, 100, 7)
    speed = np.array([1.0, 1.0, 3.0, 1.0, 0.7])
    assert robust_times(truth * speed[:, None]) == pytest.approx(truth)
    disturbed = truth * speed[:, None]
    disturbed[1, 3] *= 10  # one layer of one round
    assert robust_times(disturbed) == pytest.approx(truth)


def test_the_engine_is_known_without_measuring() -> None:
    known = known_constants("float32", 64, 64, 64)
    assert known.engine == _C.attention_engine("float32", 64)
    assert known["chunk_keys"] == 512
    assert known_constants("float32", 128, 64, 64)["chunk_keys"] == 256
    assert known.workers == _C.build_info()["threads"]
    assert all(known[name] == 0 for name in TIMES)
    with pytest.raises(NotImplementedError, match="hardware: head_dim is 12, expected a multiple of 8 in"):
        known_constants("float32", 12, 64, 64)
    with pytest.raises(TypeError, match="hardware: dtype is float64"):
        known_constants("float64", 64, 64, 64)


def test_calibrate_measures_and_leaves_the_threads_alone(small: None) -> None:
    before = _C.build_info()["threads"]
    found = calibrate(seconds=0.01, head_dim=16, block_q=64, block_k=32, progress=False)
    assert _C.build_info()["threads"] == before
    assert found.key == ("float32", 16, 64, 32)
    assert found.workers == before
    assert found["full_us"] > 0
    assert found.median_error <= found.worst_error
    with pytest.raises(ValueError, match="calibrate: seconds is 0, expected more than 0"):
        calibrate(seconds=0)


def test_the_command_writes_what_it_prints(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hardware.json"
    options = ["calibrate", "--out", str(out), "--seconds", "0.01", "--quiet"]
    assert cli.main([*options, "--head-dim", "16", "--block", "64"]) == 0
    first = Machine.load(out)
    printed = capsys.readouterr().out
    found = first.find("float32", 16, 64, 64)
    assert f"full_us       {found['full_us']:>12.3f}" in printed
    assert f"worst {100 * found.worst_error:.1f} %" in printed
    assert "1 entries" in printed
    assert cli.main([*options, "--head-dim", "16", "--block", "64", "32"]) == 0
    second = Machine.load(out)
    assert second.entries[0] == found
    assert [e.key for e in second.entries] == [("float32", 16, 64, 64), ("float32", 16, 64, 32)]
    assert cli.main([*options, "--block", "1", "2", "3"]) == 1
    assert "calibrate: --block has 3 numbers, expected 1 or 2" in capsys.readouterr().err


def test_entries_of_another_machine_are_dropped_aloud(
    small: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "hardware.json"
    document = Machine.here([known_constants("float32", 16, 64, 64)]).to_json()
    out.write_text(json.dumps(document | {"device": "another"}))
    options = ["calibrate", "--out", str(out), "--seconds", "0.01", "--quiet", "--head-dim", "24"]
    assert cli.main(options) == 0
    assert "are dropped: device is" in caplog.text
    assert [e.head_dim for e in Machine.load(out).entries] == [24]
