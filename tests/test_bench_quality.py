"""The quality bench without its model: rows, intervals, goals, fits that meet a time, a run that is cut and goes on."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparse_vdit import Geometry
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.report.compare import Run
from sparse_vdit.search.hardware import NAMES, Hardware, Machine

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks: the source tree is not here"
)
sys.path.insert(0, str(ROOT / "benchmarks"))

quality = pytest.importorskip("quality")
lab_module = pytest.importorskip("quality_lab")
rows_module = pytest.importorskip("quality_rows")

STEP_S, ATTENTION_S, STEPS = 1.0, 0.7, 10


# ---- rows ----


def made_row(rule: str, target: float, psnr: list[float], speedup: float | None = None) -> dict[str, Any]:
    seconds = STEPS / (target if speedup is None else speedup)
    clips = [{"psnr_db": value, "ssim": 0.9, "seconds": seconds, "stock_s": 1.0} for value in psnr]
    return rows_module.make_row(rule, target, 0.3, clips, [0.1, 0.3], STEPS)


def test_a_row_has_the_promised_keys_and_means() -> None:
    row = made_row("svg", 1.6, [20, 22, 24, 30], 1.5)
    assert tuple(row)[:9] == (
        "rule", "target_speedup", "speedup", "density", "psnr_db", "psnr_low", "psnr_high", "ssim", "heldout_loss",
    )  # fmt: skip
    assert (row["psnr_db"], row["ssim"], row["heldout_loss"]) == (24, 0.9, 0.2)
    assert row["speedup"] == pytest.approx(1.5)
    assert 20 < row["psnr_low"] < 24 < row["psnr_high"] < 30
    equal = made_row("svg", 1.6, [20, float("inf")])
    assert (equal["psnr_db"], equal["psnr_low"], equal["psnr_clips"]) == (None, None, [20, None])
    assert "equal" in rows_module.line(equal)


def test_an_interval_is_that_of_the_mean(rng: np.random.Generator) -> None:
    values = rng.normal(30, 2, 400)
    low, high = rows_module.interval(values)
    spread = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - spread, abs=0.05)
    assert high == pytest.approx(values.mean() + spread, abs=0.05)
    assert rows_module.interval([5.0] * 8) == (5.0, 5.0)


def test_differences_are_paired(rng: np.random.Generator) -> None:
    """Clips differ by 10 dB, the gain by hardly any: the gain's interval is narrow."""
    clips = rng.normal(30, 10, 8)
    gains = {"budget_fitted": 5.1, "svg": 0.0, "paper": 1.0, "uniform": 4.6, "random": -9.0, "permuted": 5.0}
    rows = [
        made_row(rule, 1.6, list(clips + gain + 0.01 * rng.normal(size=8))) for rule, gain in gains.items()
    ]
    found = {goal.name: goal for goal in rows_module.goals(rows)}
    over = found["1.6x: budget_fitted over paper, the better of paper and svg, dB"]
    assert over.value == pytest.approx(4.1, abs=0.02)
    assert over.high - over.low < 0.05
    assert over.holds
    uniform = found["1.6x: budget_fitted over uniform, dB"]
    assert uniform.value == pytest.approx(0.5, abs=0.02)
    assert not uniform.holds
    assert str(uniform).startswith("MISSED")
    assert found["1.6x: told apart from permuted, dB at the low end"].holds
    cost = found["search cost, dense generations per prompt, at most"]
    assert (cost.holds, cost.value) == (None, None)


@pytest.mark.parametrize(("target", "needed"), [(1.3, 2.0), (1.6, 4.0), (2.0, 4.0)])
def test_goals_are_those_of_their_target(target: float, needed: float) -> None:
    for gain, holds in ((needed - 0.1, False), (needed + 0.1, True)):
        rows = [made_row(rule, target, [20.0, 25.0]) for rule in ("svg", "paper")]
        rows.append(made_row("budget_fitted", target, [20 + gain, 25 + gain]))
        found = rows_module.goals(rows)
        assert [
            (goal.holds, goal.wanted)
            for goal in found
            if "over svg" in goal.name or "over paper" in goal.name
        ] == [(holds, needed)]
        assert all(goal.holds is None for goal in found if "uniform" in goal.name or "random" in goal.name)


def test_unequal_times_and_a_dear_search_miss() -> None:
    rows = [made_row("svg", 2.0, [20.0], 2.0) | {"search_cost": 1.3}, made_row("paper", 2.0, [20.0], 1.85)]
    found = {goal.name: goal for goal in rows_module.goals(rows)}
    speed = found["measured speed-ups off their targets, at most"]
    assert speed.value == pytest.approx(0.075)
    assert not speed.holds
    assert not found["search cost, dense generations per prompt, at most"].holds


# ---- a study on a made-up machine ----


class FakeLab:
    """Attention of a plan takes what it is asked to take times a factor of its rule; noise falls with that time."""

    weights_sha256 = "0" * 64
    candidates = SimpleNamespace(count=62)
    hardware = SimpleNamespace(median_error=0.03, worst_error=float("nan"))
    other_errors = True

    def __init__(self, settings: Any) -> None:
        self.settings, self.calls = settings, []

    def stock(self) -> tuple[float, float]:
        return 1e3 * STEP_S, 1e3 * ATTENTION_S

    def search(self) -> float:
        return 1.05 * STEPS * STEP_S * self.settings.prompts

    def stock_seconds(self) -> float:
        return STEP_S

    def dense(self, number: int) -> np.ndarray:
        return np.random.default_rng(number + 5).random((2, 3, 12, 12))

    dense_untrained = dense

    def losses(self, rule: str, plan_of: Any) -> list[float]:
        plans = [plan_of(number) for number in range(self.settings.loss_clips)] if plan_of else []
        self.calls.append(("loss", rule))
        return [0.1 + 0.01 * len(plans)] * self.settings.loss_clips

    def plan(self, rule: str, time_ms: float, dense_ms: float, warm_up: int, number: int = -1) -> Any:
        if rule == "radial":
            raise ValueError("radial: the attention time asked for is 1 ms a step, expected at least 2 ms")
        made = SimpleNamespace(rule=rule, ms=time_ms, warm_up=warm_up, number=number)
        made.provenance = {"predicted": {"attention_ms": time_ms}}
        return made

    loss_plan = plan

    def density(self, plan: Any) -> float:
        return plan.ms / (1e3 * ATTENTION_S)

    def generate(self, rule: str, plan: Any, number: int) -> Run:
        self.calls.append((rule, plan.warm_up, number))
        factor = {"svg": 1.2, "paper": 0.9, "random": 1.4}.get(rule, 1.05)
        step = STEP_S - ATTENTION_S + 1e-3 * plan.ms * factor
        noise = np.random.default_rng(number + 99).normal(
            0, 0.1 / plan.ms * (3 - plan.warm_up), (2, 3, 12, 12)
        )
        return Run(self.dense(number) + noise, (step,) * STEPS, (0.5,) * STEPS)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quality.arguments(parser)
    return parser.parse_args(arguments)


def study(folder: Path, *arguments: str) -> Any:
    settings = quality.settings_of(options("--clips", "2", *arguments))
    notes = quality.Notes(folder / "journal", {"settings": repr(settings)})
    return quality.Study(settings, FakeLab(settings), notes)


def test_fits_meet_their_time_with_the_better_warm_up(tmp_path: Path) -> None:
    made = study(tmp_path, "--rules", "svg,paper,budget_fitted,random,radial,untrained")
    assert quality.work(made, None, shown=False) == 0
    rows, missing = made.table({"commit": "abc"})
    assert len(rows) == 15
    assert missing == [
        f"radial has no row: {t}x with {w} dense steps: radial: the attention time asked for is 1 ms a step, expected "
        "at least 2 ms"
        for t, w in ((1.3, 1), (1.6, 1), (2.0, 0))
    ]
    for row in rows:
        assert row["speedup"] == pytest.approx(row["target_speedup"], rel=0.02)
        assert row["warm_up"] == (1 if row["target_speedup"] == 2.0 else 2)
        assert row["search_cost"] == pytest.approx(1.05)
    rules = [row["rule"] for row in rows]
    assert rules[:5] == ["svg", "paper", "budget_fitted", "random", "untrained"]
    fits = {key[1]: value for key, value in made.notes.known.items() if key[0] == "fit" and key[2] == 1.6}
    assert fits["untrained"] == fits["budget_fitted"]
    assert fits["random"]["time_ms"] < fits["budget_fitted"]["time_ms"] < fits["paper"]["time_ms"]
    goal = rows_module.goals(rows)
    assert any(entry.holds for entry in goal)


def test_a_run_that_is_cut_goes_on(tmp_path: Path) -> None:
    arguments = ("--rules", "svg,budget_fitted,permuted", "--targets", "1.6,2")
    (tmp_path / "whole").mkdir()
    whole = study(tmp_path / "whole", *arguments)
    quality.work(whole, None, shown=False)
    calls, table = [], None
    for _ in range(200):
        part = study(tmp_path, *arguments)
        units = [unit for unit in part.units() if unit.key not in part.notes]
        for unit in itertools.islice(units, 3):
            part.notes.put(unit.key, unit.run())
        calls += part.lab.calls
        left = quality.estimated_minutes(part, 1.0)
        part.notes.journal.close()
        if not units:
            table = part.table({})[0]
            assert left == 0
            break
    assert calls == whole.lab.calls
    expected = whole.table({})[0]
    for row in (*table, *expected):
        row.pop("date")
    assert table == expected


def test_the_deadline_stops_between_two_units(tmp_path: Path) -> None:
    made = study(tmp_path, "--rules", "svg")
    assert quality.work(made, 0.0, shown=False) == len(made.units())
    assert made.lab.calls == []


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    study(tmp_path, "--rules", "svg").notes.journal.close()
    with pytest.raises(ValueError, match="journal: settings is"):
        study(tmp_path, "--rules", "paper")


def test_a_torn_note_is_measured_again(tmp_path: Path) -> None:
    made = study(tmp_path, "--rules", "svg")
    made.notes.put(("stock",), {"step_ms": 1.0, "attention_ms": 0.5})
    made.notes.put(("loss", "svg", 1.6), [1.0])
    made.notes.journal.close()
    file = tmp_path / "journal"
    file.write_bytes(file.read_bytes()[:-3])
    again = study(tmp_path, "--rules", "svg").notes
    assert again.known == {("stock",): {"step_ms": 1.0, "attention_ms": 0.5}}


def test_a_journal_is_of_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "Lab", lambda settings, folder: FakeLab(settings))
    common = {"device": "a machine", "isa": "avx2", "threads": 1, "commit": "aaaa"}
    asked = options("--rules", "svg", "--minutes", "0")
    asked.json = tmp_path / "rows.json"
    with pytest.raises(SystemExit, match="the time is up"):
        quality.measure_quality(asked, common)
    with pytest.raises(SystemExit, match="the time is up"):
        quality.measure_quality(asked, common)
    with pytest.raises(ValueError, match="aaaa"):
        quality.measure_quality(asked, common | {"commit": "bbbb"})
    changed = quality.versions() | {"torch": "0.0"}
    monkeypatch.setattr(quality, "versions", lambda: changed)
    with pytest.raises(ValueError, match="torch"):
        quality.measure_quality(asked, common)


def test_recordings_are_shared_with_runs_of_other_rules_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def lab(settings: Any, folder: Path) -> FakeLab:
        folders.append(folder)
        return FakeLab(settings)

    monkeypatch.setattr(quality, "Lab", lab)
    common = {"device": "a machine", "isa": "avx2", "threads": 1, "commit": "aaaa"}

    def run(name: str, *arguments: str) -> None:
        asked = options("--rules", "budget_fitted", "--minutes", "0", *arguments)
        asked.json = tmp_path / name
        quality.measure_quality(asked, common)

    first = ("--recordings", str(tmp_path / "first.json"))
    with pytest.raises(SystemExit, match=r"first\.json\.parts holds no recordings"):
        run("second.json", *first)
    with pytest.raises(SystemExit, match="the time is up"):
        run("first.json")
    with pytest.raises(SystemExit, match=r"first\.json\.parts holds no recordings"):
        run("second.json", *first)
    (tmp_path / "first.json.parts" / "errors-ours.safetensors").touch()
    with pytest.raises(SystemExit, match="the time is up"):
        run("second.json", *first, "--weights", "relative", "--targets", "2")
    assert folders[-1] == tmp_path / "first.json.parts"
    assert (tmp_path / "second.json.parts" / "journal").exists()
    with pytest.raises(ValueError, match="journal: steps is 10 in lab, expected 8"):
        run("third.json", *first, "--steps", "8")
    (tmp_path / "first.json.parts" / "lab").unlink()
    with pytest.raises(SystemExit, match="is of an earlier version"):
        run("first.json")


def test_an_array_is_written_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "maps.npy"
    lab_module.save_array(path, np.arange(3))

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", cut)
    with pytest.raises(KeyboardInterrupt):
        lab_module.save_array(path, np.arange(9))
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_asked_for(tmp_path: Path) -> None:
    full = quality.settings_of(options())
    assert (len(full.rules), full.targets, full.clips, full.warm_ups) == (
        12,
        (1.3, 1.6, 2.0),
        8,
        ((1, 2), (1, 2), (0, 1)),
    )
    quick = quality.settings_of(options("--quick"))
    assert (quick.clips, quick.steps, quick.targets, quick.warm_ups) == (2, 3, (1.6,), ((0,),))
    assert quality.settings_of(options("--rules", "permuted")).rules == ("budget_fitted", "permuted")
    with pytest.raises(SystemExit, match="rule is 'svgg', expected some of svg,"):
        quality.settings_of(options("--rules", "svgg"))
    with pytest.raises(SystemExit, match="targets is 'abc', expected numbers above 1 and below 10"):
        quality.settings_of(options("--targets", "abc"))
    with pytest.raises(SystemExit, match=r"targets is '0\.9,1\.6', expected numbers"):
        quality.settings_of(options("--targets", "0.9,1.6"))
    for name in ("bins", "block", "clips", "steps"):
        with pytest.raises(SystemExit, match=f"{name} is 0, expected 1 or more"):
            quality.settings_of(options(f"--{name}", "0"))
    with pytest.raises(SystemExit, match="warm-up < steps"):
        quality.settings_of(options("--warm-up", "3", "--steps", "3"))


# ---- the model side ----


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real pipeline over one layer of random weights and 264 tokens, prices made up."""
    pytest.importorskip("diffusers")
    from diffusers import CogVideoXTransformer3DModel
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("lab")
    config = json.loads((lab_module.MODEL / "config.json").read_text()) | {"patch_size": 16, "num_layers": 1}
    torch.manual_seed(5)
    transformer = CogVideoXTransformer3DModel.from_config(config)
    save_file({name: value.contiguous() for name, value in transformer.state_dict().items()},
              folder / "weights.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    times = {"launch_us": 30, "item_us": 1, "full_us": 4, "head_us": 2, "pooled_us": 1.5, "mean_us": 0.3}
    values = {"workers": 1, "tall_rows": 6, "low_rows": 4, "chunk_keys": 256} | times
    constants = tuple(float(values.get(name, 0)) for name in NAMES)
    Machine.here([Hardware("test", "float32", 64, 32, 32, constants)]).save(folder / "hardware.json")
    settings = lab_module.Settings(
        rows_module.RULES, (1.6,), clips=2, steps=3, warm_ups=((0, 1),), prompts=1, loss_clips=2, bins=2, block=32,
        model=folder,
    )  # fmt: skip
    return lab_module.Lab(settings, folder)


def made_plan(lab: Any, rule: str, number: int = 0, losses: bool = False) -> Any:
    dense_ms = lab.cost(lab.candidates).dense_layer_ms * lab.model.layers
    make = lab.loss_plan if losses else lab.plan
    return make(rule, 0.9 * dense_ms, dense_ms, 1, number)


@pytest.mark.parametrize("rule", rows_module.RULES)
def test_every_rule_makes_a_video_of_the_asked_time(lab: Any, rule: str) -> None:
    plan = made_plan(lab, rule)
    assert plan.dense_above == pytest.approx(0.5 * (lab.levels[0] + lab.levels[1]))
    cost = lab.cost(lab.candidates)
    took = cost.plan_ms(plan.sole, lab.levels) / (cost.dense_layer_ms * lab.model.layers)
    assert took <= (0.95 if rule in ("random", "oracle") else 0.9001), "masks scatter: their time is measured"
    assert took > 0.6
    assert 1 / 3 < lab.density(plan) < 0.97
    assert np.isnan(plan.betas).all() == (
        rule in ("svg", "sliding_tiles", "radial", "paper", "budget", "oracle")
    )
    run = lab.generate(rule, plan, 0)
    dense = lab.dense_untrained(0) if rule == "untrained" else lab.dense(0)
    assert len(run.seconds) == 3
    assert 1e-7 < float(np.mean((run.video - dense) ** 2)) < 0.1
    loss = lab.losses(rule, lambda number: made_plan(lab, rule, number, losses=True))
    dense_loss = lab.losses(rule, None)
    assert np.isfinite(loss).all()
    assert loss != dense_loss
    assert loss == pytest.approx(dense_loss, rel=0.3)


def test_what_is_drawn_differs_by_clip_and_the_rest_does_not(lab: Any) -> None:
    for rule in ("random", "oracle"):
        assert made_plan(lab, rule, 0).hash != made_plan(lab, rule, 1).hash
        assert made_plan(lab, rule, 1).hash == made_plan(lab, rule, 1).hash
    assert made_plan(lab, "svg", 0).hash == made_plan(lab, "svg", 1).hash
    assert made_plan(lab, "untrained").hash == made_plan(lab, "budget_fitted").hash
    beta = {rule: made_plan(lab, rule).betas for rule in ("budget_beta0", "budget_fitted")}
    assert set(np.unique(beta["budget_beta0"][~np.isnan(beta["budget_beta0"])])) <= {0.0}
    assert (np.abs(beta["budget_fitted"]) > 0.01).any()


def test_what_was_recorded_is_read_again(lab: Any) -> None:
    again = lab_module.Lab(lab.settings, lab.folder)
    assert lab.errors is not None
    assert again.search() is None, "the time of a search that is not made is not known"
    assert again.errors.plain.tobytes() == lab.errors.plain.tobytes()
    assert lab.clip(lab_module.FIT)[0] not in lab.judged
    assert len({lab.clip(number)[1] for number in (lab_module.FIT, 0, 1)}) == 3


# ---- maps and prompts ----


def test_a_map_is_the_mass_of_blocks(rng: np.random.Generator) -> None:
    geometry = Geometry(frames=3, height=5, width=5, prefix=2, block_q=16, block_k=32)
    tokens = geometry.tokens
    q, k = (torch.from_numpy(rng.standard_normal((2, 3, tokens, 8), dtype=np.float32)) for _ in range(2))
    found = lab_module.block_map(q, k, geometry, every=3)
    weights = torch.softmax(q.double() @ k.double().transpose(-1, -2) / 8**0.5, -1).mean(0).numpy()
    for head, block, column in np.ndindex(found.shape):
        rows = [row for row in range(tokens) if (row % 3 == 0 or row % 16 == 0) and row // 16 == block]
        mass = weights[head, rows, 32 * column : 32 * (column + 1)].sum(1).mean()
        assert found[head, block, column] == pytest.approx(mass, abs=1e-6)
    model = ModelIdentity("CogVideoXTransformer3DModel", layers=2, heads=3, head_dim=8)
    recorder = lab_module.MapRecorder(model, geometry, (0.0, 0.5, 1.0))
    for step, level in ((0, 1.0), (1, 0.5), (2, 0.3)):
        assert recorder(step, level, 1, q, k, q, None) is None
    mean = recorder.mean()
    assert recorder.calls.tolist() == [[0, 1], [0, 2]]
    assert (mean[:, 0] == 0).all()
    assert mean[1, 1].sum(-1) == pytest.approx(np.ones((3, geometry.query_blocks)), abs=2e-3)


def test_prompts_are_distinct() -> None:
    taken: set[str] = set()
    first = lab_module.distinct_prompts(700, 4, taken)
    second = lab_module.distinct_prompts(700, 5, taken)
    assert len({*first, *second}) == 9
