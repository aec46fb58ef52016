"""`sparse-vdit demo` on a two-layer checkpoint: its files, the keys of report.json, sparse calls, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("av")

import torch
from safetensors.torch import save_file

from sparse_vdit import Geometry, LayerPlan, attention
from sparse_vdit.cli import main
from sparse_vdit.demo import calibrate, pipeline, results, run, story
from sparse_vdit.report.compare import Run, compare
from sparse_vdit.search import calibration
from sparse_vdit.search.hardware import Hardware
from sparse_vdit.search.schedule import Schedule

pytestmark = [pytest.mark.models, pytest.mark.slow]

KEYS = [
    *("dense_s_per_step", "sparse_s_per_step", "speedup", "psnr_db", "ssim", "density"),
    *("heldout_loss_dense", "heldout_loss_sparse", "controls", "head_families"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of two layers, so that a run takes seconds; it proves plumbing, not quality."""
    from diffusers import CogVideoXTransformer3DModel

    config = {
        "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2,
        "in_channels": 3, "out_channels": 3, "patch_size": 4,
        "sample_width": 32, "sample_height": 32, "sample_frames": 61, "time_embed_dim": 16,
        "text_embed_dim": 64, "max_text_seq_length": 8, "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(**config)
    folder = tmp_path_factory.mktemp("model")
    save_file(model.state_dict(), folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_clock():
    """The machine is timed on small layers: rough constants, in a fraction of the time."""

    def small(hardware: Hardware) -> Geometry:
        return Geometry(2, 8, 8, prefix=8, block_q=hardware.block_q, block_k=hardware.block_k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_geometry", small)
        patch.setattr(calibrate, "CLOCK_SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    arguments = ["demo", "--out", str(out), "--model", str(checkpoint), "--steps", "2", "--seeds", "2"]
    assert main([*arguments, "--clips", "2", "--no-progress", "--debug"]) == 0
    return out


def test_report_json_has_the_promised_keys(finished: Path) -> None:
    found = json.loads((finished / "report.json").read_text())
    assert not [key for key in KEYS if key not in found]
    for control in ("random", "uniform", "permuted"):
        assert set(found["controls"][control]) == {"psnr_db", "ssim", "heldout_loss", "density"}
        assert found["controls"][control]["density"] == pytest.approx(found["density"], abs=0.05)
    assert found["speedup"] == pytest.approx(found["dense_s_per_step"] / found["sparse_s_per_step"])
    assert sum(found["head_families"].values()) == sum(found["head_families_by_error"].values()) == 4
    assert 0 < found["density"] <= 0.25
    assert found["sparse_calls"] == 2 * 2 * 2  # seeds, steps, layers: two steps leave no warm-up
    assert [len(seed["ways"]["sparse"]["seconds"]) for seed in found["per_seed"]] == [2, 2]
    assert len(found["heldout_losses"]["permuted"]) == 2


def test_report_json_says_what_the_search_did(finished: Path) -> None:
    found = json.loads((finished / "report.json").read_text())
    search, ranges = found["search"], set(found["kernel_ratio_by_noise"])
    assert search["asked"] == {"density": 0.25}
    assert search["candidates"] < search["options"] < 2 * search["candidates"]
    assert 100 <= search["options"] <= 200
    assert (search["steps"], search["rows"]) == (2, 64)
    parts = search["seconds"]
    assert set(parts) == {"video", "probes", "clock", "choice"}
    assert 0 < parts["probes"] < parts["video"]
    total = parts["video"] + parts["clock"] + parts["choice"]
    assert search["seconds_in_all"] == pytest.approx(total, abs=0.01)
    dense = 2 * found["dense_s_per_step"]
    assert search["dense_generations"] == pytest.approx(total / dense, rel=0.01)
    share, ratios = found["attention_share"], found["kernel_ratio_predicted_by_noise"]
    assert set(ratios) == ranges
    assert len(ranges) == 2, "a bin for each of the two steps"
    amdahl = 1 / (1 - share + share * np.mean(list(ratios.values())))
    assert found["speedup_predicted"] == pytest.approx(amdahl, rel=1e-6)
    assert found["speedup_ceiling"] == pytest.approx(1 / (1 - share))


def test_files_are_all_there_and_nothing_else(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    ways = ("dense", "sparse", "random", "uniform", "permuted")
    videos = {f"videos/{seed}-{way}.mp4" for seed in (100, 101) for way in ways}
    videos |= {f"videos/{seed}-compare.gif" for seed in (100, 101)}
    figures = {f"figures/{name}.png" for name in ("controls", "time", "steps", "plan", "search", "attention")}
    assert names == videos | figures | {"plan.json", "report.html", "report.json"}


def test_the_plan_can_be_used_again(finished: Path) -> None:
    from sparse_vdit import SparsePlan

    plan = SparsePlan.from_pretrained(finished)
    assert plan.hash == json.loads((finished / "report.json").read_text())["plan_hash"]
    assert plan.geometry == Geometry(16, 16, 16, prefix=8, block_q=64, block_k=64)


@pytest.fixture(scope="module")
def calibrated(checkpoint: Path) -> calibrate.Calibration:
    pipe = pipeline.load(checkpoint)
    layout = pipeline.geometry(pipe, 64)
    return calibrate.calibrate(pipe, layout, 2, calibrate.Stock(2.0, 0.75), lambda: None, lambda stage: None)


def test_a_speedup_is_met_by_the_clock(calibrated: calibrate.Calibration) -> None:
    made = dataclasses.replace(calibrated, attention_ms=2 * calibrated.cost.dense_layer_ms)
    plan = calibrate.choose_plan(made, 0.25, 1.8, {"model": "tiny"})
    estimate = made.estimate(plan)
    assert 1.8 <= estimate.speedup < 1.85
    assert estimate.share == pytest.approx(0.75)
    assert plan.provenance["asked"]["speedup"] == 1.8
    assert plan.provenance["noise_seed"] == calibrate.SEED
    assert plan.provenance["model"] == "tiny"
    slow, fast = (calibrate.choose_plan(made, 0.25, speedup, {}) for speedup in (1.3, 2.5))
    assert fast.density() < plan.density() < slow.density()


def test_dense_kernels_are_compared_by_their_fastest_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def taking(*seconds: float):
        turns = itertools.cycle(seconds)
        return lambda *_, **__: now.__setitem__(0, now[0] + next(turns))

    monkeypatch.setattr(calibrate, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(calibrate, "attention", taking(9, 9, 3, 4, 8, 2))  # layers 0, 1, three times
    monkeypatch.setattr(
        calibrate, "F", SimpleNamespace(scaled_dot_product_attention=taking(1, 2, 7, 7, 7, 1))
    )
    tensor = torch.zeros(1, 2, 64, 8)
    kept = dict.fromkeys((0, 1), (tensor, tensor, tensor))
    assert calibrate.dense_ratio(Geometry(1, 8, 8, block_q=16, block_k=16), kept) == (3 + 2) / (1 + 1)


def test_a_speedup_beyond_the_ceiling_is_one_sentence_at_once(
    checkpoint: Path, tmp_path: Path, capsys
) -> None:
    arguments = ["demo", "--out", str(tmp_path / "out"), "--model", str(checkpoint), "--speedup", "500"]
    assert main([*arguments, "--steps", "1", "--no-progress"]) == 1
    error = capsys.readouterr().err
    assert "speedup is 500, expected more than 0 and less than" in error
    assert error.count("\n") == 1


def test_what_was_heard_is_what_really_happens(calibrated: calibrate.Calibration) -> None:
    errors = calibrated.errors
    assert errors.shape == (2, 2, 2)
    assert errors.provenance["samples"] == [{"prompt": calibrate.PROMPT, "seed": calibrate.SEED}]
    assert np.asarray(errors.probes).tolist() == [1, 1]
    bin_ = int(np.searchsorted(errors.bins, calibrated.kept_noise, side="right")) - 1
    q, k, v = calibrated.kept[1]
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v).numpy().astype(np.float64)
    assert (errors.calls == 1).all(), "every bin heard one step: the kept one alone is in its sums"
    for number in (5, 20, 40):
        pattern = errors.candidates.patterns[number]
        got = attention(q, k, v, layer=LayerPlan(errors.candidates.geometry, [pattern] * 2)).numpy()
        real = np.square(got - dense).sum(axis=(0, 2, 3)) / np.square(dense).sum(axis=(0, 2, 3))
        sampled = errors.options()[0][bin_, 1, :, 2 * number]
        assert sampled == pytest.approx(real, rel=0.5), pattern.name


def test_an_interrupted_run_writes_nothing(checkpoint: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def stop(*_: object) -> list[float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "velocity_losses", stop)
    arguments = ["demo", "--out", str(tmp_path / "out"), "--model", str(checkpoint), "--steps", "1"]
    assert main([*arguments, "--seeds", "1", "--clips", "1", "--no-progress"]) == 130
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "interrupted" in capsys.readouterr().err


def test_no_sparse_call_fails_the_demo(checkpoint: Path, tmp_path: Path, capsys) -> None:
    arguments = ["demo", "--out", str(tmp_path / "out"), "--model", str(checkpoint), "--density", "1"]
    assert main([*arguments, "--steps", "1", "--seeds", "1", "--clips", "1", "--no-progress"]) == 1
    assert "0 calls of the sparse kernel, expected some" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_would_stop_it_at_the_end_stops_it_at_once(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("kept")
    assert main(["demo", "--out", str(tmp_path / "file"), "--no-progress"]) == 1
    assert "File exists" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    monkeypatch.setattr(run, "PACKAGES", {"no_such_module": "no-such-package"})
    assert main(["demo", "--out", str(tmp_path / "out"), "--no-progress"]) == 1
    error = capsys.readouterr().err
    assert "demo: no-such-package is not installed, expected pip install 'sparse-vdit[demo]'" in error


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json, expected a model folder"),
        (lambda folder: save_file({"x": torch.zeros(1)}, folder / "weights.safetensors"), "lack"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"{}"), ""),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys, broken, sentence
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken(tmp_path)
    assert main(["demo", "--model", str(tmp_path), "--out", str(tmp_path / "out"), "--no-progress"]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "0"],
        ["--seeds", "x"],
        ["--density", "1.5"],
        ["--density", "x"],
        ["--block", "0"],
        ["--steps", "x"],
        ["--speedup", "1"],
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], capsys) -> None:
    """In one sentence: who, got, expected."""
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {arguments[0]}: '{arguments[1]}' is given, expected a " in said


def test_two_dials_are_refused(capsys) -> None:
    arguments = ["--speedup", "2", "--density", "0.3"]
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_generating_twice_gives_the_same_video(checkpoint: Path) -> None:
    pipe = pipeline.load(checkpoint)
    one, two, other = (pipeline.generate(pipe, "red disc moving right, slow", seed, 1) for seed in (1, 1, 2))
    assert (one.video == two.video).all()
    assert (one.video != other.video).any()
    assert one.video.shape == (16, 3, 64, 64)
    assert one.noise == (0.999,)


def test_the_embedded_weights_are_those_whose_hash_is_recorded() -> None:
    wanted = (pipeline.MODEL / "SHA256").read_text("ascii").split()
    assert wanted == [pipeline.check_weights(pipeline.MODEL), "weights.safetensors"]


def test_other_weights_than_recorded_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "weights.safetensors"):
        shutil.copy(checkpoint / name, tmp_path)
    found = pipeline.check_weights(tmp_path)
    (tmp_path / "SHA256").write_text(f"{found}  weights.safetensors\n")
    pipeline.load(tmp_path)
    for said in ("0" * 64, "", "\xff"):
        (tmp_path / "SHA256").write_text(said)
        with pytest.raises(ValueError, match=f"demo: the weights in .* have the SHA-256 {found[:16]}"):
            pipeline.load(tmp_path)


def test_positions_and_scheduler_are_those_of_training(checkpoint: Path) -> None:
    from sparse_vdit.demo import train

    pipe = pipeline.load(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(pipeline.rotary(pipe), train.rope(16), strict=True))
    assert torch.equal(pipe.scheduler.alphas_cumprod.float(), train.noise_levels())


def test_slow_machines_make_fewer_videos(tmp_path: Path) -> None:
    settings = run.Settings(tmp_path)
    assert run.seed_count(settings, 0.5) == (3, None)
    count, why = run.seed_count(settings, 30.0)
    assert count == 2
    assert "2 videos instead of 3: a dense step takes 30.0 s here" in str(why)
    assert run.seed_count(run.Settings(tmp_path, seeds=1), 30.0) == (1, None)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12, 50])
def test_the_dense_start_lies_between_two_steps_and_the_noisiest_is_heard(steps: int) -> None:
    levels = tuple(1 - step / steps for step in range(steps))
    above = calibrate.dense_above(levels)
    assert sum(level > above for level in levels) == int(0.2 * steps)
    heard = Schedule(levels).listened(calibrate.BINS, calibrate.LISTENED)
    assert min(heard) < max(1, 0.1 * steps), "one of the first steps"
    assert len(heard) <= 12


def test_compare_takes_turns_and_measures_against_the_first() -> None:
    seen = []

    def way(name: str, value: float):
        def make(seed: int) -> Run:
            seen.append((seed, name))
            return Run(np.full((2, 3, 16, 16), value, np.float32), (1.0 + value, 2.0 + value), (1.0, 0.5))

        return make

    found = compare({"dense": way("dense", 0.5), "sparse": way("sparse", 0.6)}, [1, 2])
    assert seen == [(1, "dense"), (1, "sparse"), (2, "sparse"), (2, "dense")]
    assert found["dense"].fidelity == ()
    assert found["sparse"].mean("psnr_db") == pytest.approx(20, abs=1e-4)
    assert found["sparse"].seconds_per_step == pytest.approx(2.1)
    assert found["dense"].seconds_by_step == pytest.approx([1.5, 2.5])
    assert compare({"a": way("a", 0.5), "b": way("b", 0.5)}, [1])["b"].mean("psnr_db") is None


def test_families_count_every_head_once(finished: Path) -> None:
    from sparse_vdit import SparsePlan

    plan = SparsePlan.from_pretrained(finished)
    heads = story.example_heads(plan, 0)
    assert sorted(set(heads)) == heads
    assert sum(results.head_families(plan).values()) == plan.model.layers * plan.model.heads
