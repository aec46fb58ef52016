"""`sparse-vdit search`, `plan`, `explain`, `report` on a tiny pipeline from a folder: files, numbers, refusals."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("tokenizers")
for _package in ("jinja2", "matplotlib", "av"):
    pytest.importorskip(_package)

from kit import saved  # noqa: E402

from sparse_vdit import SparsePlan  # noqa: E402
from sparse_vdit.cli import main, search  # noqa: E402
from sparse_vdit.search import Candidates, errors_file  # noqa: E402
from sparse_vdit.search.distributed import Ranks  # noqa: E402
from sparse_vdit.search.weights import weights_of  # noqa: E402
from sparse_vdit.verify import Stock, Verification, open_pipeline  # noqa: E402
from sparse_vdit.verify.folder import Folder  # noqa: E402
from sparse_vdit.verify.transfer import mean_error  # noqa: E402

pytestmark = pytest.mark.models
HOSTILE = "a cat <script>alert(1)</script> {{ 7*7 }}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder, two files of prompts, hardware.json."""
    folder = tmp_path_factory.mktemp("inputs")
    saved.save(folder / "model")
    saved.hardware(folder / "hardware.json")
    (folder / "a.txt").write_text(f"# calibration\n{HOSTILE}\n\n  blue square  \n", encoding="utf-8")
    (folder / "b.txt").write_text("a dog\n", encoding="utf-8")
    return folder


def stock(inputs: Path) -> Stock:
    """What `try_out` finds, but for the times."""
    layout = {"frames": 3, "height": 4, "width": 4, "prefix": 8, "suffix": 0}
    settings = {
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "guidance_scale": 6.0,
        "max_sequence_length": 8,
        "steps": 4,
    }
    levels = {"transformer": (0.999, 0.749, 0.499, 0.249)}
    weights = weights_of(open_pipeline(str(inputs / "model"), dtype="float32"))
    return Stock(layout, 2, "float32", levels, 10.0, 10.0, settings=settings, weights=weights)


def command(inputs: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--height", "64", "--width", "64", "--frames", "9", "--steps", "4", "--guidance", "6"]
    return [
        "search", str(inputs / "model"), "--prompts", str(inputs / "a.txt"), "--out", str(out), *sizes,
        "--set", f"max_sequence_length={saved.TEXT_TOKENS}", "--model-dtype", "float32", "--block", "16",
        "--hardware", str(inputs / "hardware.json"), "--rows", "16", "--no-progress", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole search with verification and transfer test, and what it printed."""
    out = tmp_path_factory.mktemp("search") / "out"
    stock(inputs).save(out)  # times made up, so that nothing hangs on the machine
    arguments = command(
        inputs, out, "--others", str(inputs / "b.txt"), "--verify", "1", "--max-error", "0.05"
    )
    arguments += ["--no-report"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*arguments, "--debug"]) == 0
    return out, printed.getvalue()


@pytest.fixture
def copy(inputs: Path, finished: tuple[Path, str], tmp_path: Path) -> Path:
    """The finished folder, to be spoilt."""
    shutil.copytree(finished[0], tmp_path / "out")
    shutil.copy(inputs / "hardware.json", tmp_path / "out")
    return tmp_path / "out"


def said(capsys: Any, *arguments: str | Path) -> str:
    """Standard output of a command that succeeds."""
    assert main([str(argument) for argument in arguments]) == 0
    return str(capsys.readouterr().out)


def refused(capsys: Any, *arguments: str | Path) -> str:
    """The one line of a command that fails, behind what loading a model prints."""
    assert main([str(argument) for argument in arguments]) == 1
    error = str(capsys.readouterr().err)
    lines = [line for line in error.splitlines() if line.startswith("sparse-vdit ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert error.endswith(lines[0] + "\n")
    return lines[0]


def test_all_files_are_there_and_say_the_same(finished: tuple[Path, str], inputs: Path) -> None:
    out, printed = finished
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    videos = {
        f"videos/{group}-000-{way}.mp4" for group in ("calibration", "others") for way in ("dense", "sparse")
    }
    files = {"errors", "transfer", "clips", "heads"}
    expected = {f"{name}.safetensors" for name in files} | videos
    expected |= {f"{name}.json" for name in ("plan", "stock", "candidates", "verification")}
    assert {name for name in names if not name.startswith("figures/")} == expected
    plan = SparsePlan.from_pretrained(out)
    assert Stock.load(out) == stock(inputs)
    assert (
        plan.geometry == stock(inputs).geometry(16, 16) == Candidates.load(out / "candidates.json").geometry
    )
    assert plan.provenance["asked"]["max_error"] == 0.05
    assert plan.provenance["weights"] == "sensitivity", "measured in three of the bins, it weighs in all"
    assert 0 < plan.density() < 1
    found = Verification.load(out)
    assert found.plan_hash == plan.hash
    assert [one.prompt for one in found.all] == [HOSTILE, "a dog"]
    assert f"achieved: {found.speedup:.2f}x" in printed
    assert f"PSNR {found.psnr_db():.2f} dB" in printed
    assert f"transfer: PSNR on other prompts {found.transfer_db:+.2f} dB" in printed
    assert re.search(
        r"2 calibration prompts: about \d+ s of generations; \d+ options per head, 32 measured calls", printed
    )
    assert "1 other prompts" in printed


def test_errors_are_of_the_prompts_of_the_files(finished: tuple[Path, str]) -> None:
    own, others = (
        errors_file.load(finished[0] / f"{name}.safetensors")["transformer"]
        for name in ("errors", "transfer")
    )
    assert own.provenance["samples"] == [{"prompt": HOSTILE, "seed": 0}, {"prompt": "blue square", "seed": 1}]
    assert others.provenance["samples"] == [{"prompt": "a dog", "seed": 0}]
    assert own.bins == others.bins
    assert (own.stripes == others.stripes).all()
    assert (
        int(own.calls.sum()) == 2 * int(others.calls.sum()) == 2 * 4 * 2 * 2
    )  # prompts, steps, layers, branches


def test_the_plan_keeps_to_the_error_and_is_verified_by_hand(
    finished: tuple[Path, str], inputs: Path
) -> None:
    folder = Folder(finished[0], inputs / "hardware.json")
    assert folder.stock is not None
    error = mean_error(folder.errors, folder.cost, folder.plan, levels=folder.stock.levels)
    assert 0 < error <= 0.0501
    assert error == pytest.approx(folder.plan.provenance["predicted"]["mean_error"], rel=0.02)


def test_called_again_it_only_plans(
    finished: tuple[Path, str], inputs: Path, copy: Path, capsys, monkeypatch
) -> None:
    before = (copy / "errors.safetensors").read_bytes()
    monkeypatch.setattr(
        "sparse_vdit.verify.stock._begin", lambda *_: pytest.fail("it ran the pipeline again")
    )
    said(capsys, *command(inputs, copy, "--max-error", "0.2", "--no-report"))
    assert (copy / "errors.safetensors").read_bytes() == before
    assert SparsePlan.from_pretrained(copy).density() < SparsePlan.from_pretrained(finished[0]).density()


def test_another_search_in_the_same_folder_is_refused(inputs: Path, copy: Path, capsys) -> None:
    error = refused(capsys, *command(inputs, copy, "--rows", "8"))
    assert "is of another search (its candidates, bins, rows or seed), expected another name or to" in error
    error = refused(capsys, *command(inputs, copy, "--listen", "1"))
    assert "is of another search (listen None instead of 1), expected another name" in error
    assert SparsePlan.from_pretrained(copy) is not None


def test_another_model_in_the_same_folder_is_refused(inputs: Path, copy: Path, capsys) -> None:
    """The same settings, the same sizes, but the weights of another training."""
    other = replace(Stock.load(copy), weights={"transformer": "0" * 64})
    other.save(copy)
    error = refused(capsys, *command(inputs, copy))
    assert f"search: {str(copy)!r} was measured on other weights than those of" in error
    assert "expected another --out or --overwrite" in error
    assert Stock.load(copy) == other


def test_what_can_only_fail_later_is_refused_before_anything_is_measured(
    inputs: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    stock(inputs).save(out)  # attention is half of the step
    for arguments, sentence in (
        (
            ["--speedup", "2.5"],
            "cost: speedup is 2.5, expected more than 0 and less than 2: attention is 50 %",
        ),
        (["--time-per-step-ms", "9"], "plan: step_ms is 9, expected 10 (a step without any attention) to 20"),
        (["--kinds", "spiral"], "select: no candidate is of the kind 'spiral', expected kinds out of"),
        (["--bins", "0,0.45,1"], "plan: bins holds 0.45, expected edges among 0, 0.1, 0.2"),
        (["--target-psnr", "30", "--objective", "paper"], "plan: target_psnr is 30 with the paper rule"),
        (["--threshold", "0.5"], "plan: threshold is 0.5 with the budget rule, expected the other rule"),
    ):
        assert sentence in refused(capsys, *command(inputs, out, *arguments))
    assert not list(out.glob("errors*"))


def test_more_processes_than_other_prompts_are_refused_at_once(
    inputs: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(
        "sparse_vdit.search.distributed.Ranks.from_environment", classmethod(lambda kind: kind(0, 2))
    )
    error = refused(capsys, *command(inputs, tmp_path / "out", "--others", str(inputs / "b.txt")))
    assert "distributed: there are 2 processes for 1 prompts, expected at most as many" in error


def test_the_transfer_has_the_mass_stripes_of_the_calibration_on_every_rank(
    inputs: Path, finished: tuple[Path, str], monkeypatch
) -> None:
    """Rank 0 has the errors and tells the others, whose records would else be of another search."""
    errors = errors_file.load(finished[0] / "errors.safetensors")
    candidates = Candidates.load(finished[0] / "candidates.json")
    models = {name: part.model for name, part in errors.items()}
    bins = tuple(number / 10 for number in range(11))
    told: list[Any] = []
    monkeypatch.setattr(Ranks, "share", lambda self, array: told.append(array) or told[0])
    first = search._stripes(errors, Ranks(0, 2), models, candidates, bins)["transformer"]
    other = search._stripes({}, Ranks(1, 2), models, candidates, bins)["transformer"]
    assert (first == other).all()
    assert (first >= 0).all()
    assert first.shape == told[1].shape == (10, *errors["transformer"].shape[1:], candidates.stripe_blocks)


def test_an_interrupted_search_goes_on_to_the_same_bytes(
    finished: tuple[Path, str], inputs: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    out = tmp_path / "out"
    real, made = search.open_source, []

    def cut(args: Any, settings: Any) -> Any:
        source = real(args, settings)

        def make(sample: Any, steps: int, decode: bool) -> Any:
            made.append(sample)
            if len(made) == 3:  # the trial, the first prompt, and now
                raise KeyboardInterrupt
            return source.make(sample, steps, decode)

        return type(source)(source.pipe, make, source.steps)

    monkeypatch.setattr(search, "open_source", cut)
    assert main(command(inputs, out)) == 130
    assert not (out / "errors.safetensors").exists()
    assert (out / "errors.safetensors.parts").is_dir()
    monkeypatch.setattr(search, "open_source", real)
    said(capsys, *command(inputs, out, "--no-report"))
    assert (out / "errors.safetensors").read_bytes() == (finished[0] / "errors.safetensors").read_bytes()
    assert not (out / "errors.safetensors.parts").exists()
    found = Stock.load(out)
    assert replace(found, attention_ms=10.0, rest_ms=10.0, dense_ratio=None) == stock(inputs)


def test_target_psnr_is_met_by_real_generations(inputs: Path, copy: Path, capsys) -> None:
    reached = Verification.load(copy).psnr_db("calibration")
    assert reached is not None
    target = round(reached + 2, 2)
    printed = said(
        capsys,
        *command(
            inputs,
            copy,
            "--target-psnr",
            str(target),
            "--verify",
            "1",
            "--tries",
            "4",
            "--no-report",
            "--no-videos",
        ),
    )
    plan = SparsePlan.from_pretrained(copy)
    found = Verification.load(copy).psnr_db("calibration")
    assert found is not None
    assert found == pytest.approx(plan.provenance["target"]["reached_psnr"], abs=0.01)
    assert found >= target
    assert f"target {target:g} dB: {found:.2f} dB achieved" in printed


# ---- planning again ----


def test_plan_needs_no_torch_and_only_the_errors(copy: Path, inputs: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'diffusers', 'matplotlib']));"
        "from sparse_vdit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    errors = shutil.copy(copy / "errors.safetensors", tmp_path / "e.safetensors")
    more = [
        "--from",
        str(errors),
        "--hardware",
        str(inputs / "hardware.json"),
        "--batch",
        "2",
        "--max-error",
        "0.1",
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "plan", *more, "--out", str(tmp_path / "new")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "attention " in done.stdout
    assert SparsePlan.from_pretrained(tmp_path / "new").provenance["predicted"]["mean_error"] <= 0.1


@pytest.mark.parametrize(
    ("dials", "asked"),
    [
        (["--speedup", "1.5"], {"speedup": 1.5}),
        (["--max-error", "0.3", "--remainder", "none"], {"max_error": 0.3, "remainder": "none"}),
        (["--max-error", "0.1", "--bins", "1"], {"max_error": 0.1}),
        (["--objective", "paper", "--threshold", "0.9"], {"objective": "paper"}),
        ([], {"max_error": 0.02}),
    ],
)
def test_dials(copy: Path, capsys, dials: list[str], asked: dict[str, Any]) -> None:
    printed = said(capsys, "plan", "--from", copy, *dials)
    plan = SparsePlan.from_pretrained(copy)
    assert {key: plan.provenance["asked"][key] for key in asked} == asked
    assert f"density {plan.density():.3f}" in printed
    if "--bins" in dials:
        assert plan.bins == (0.0, 1.0)
    if "--speedup" in dials:
        assert 1.5 <= plan.provenance["predicted"]["speedup"] < 1.8
        assert "attention is 50% of your step, ceiling 2.00x" in printed


def test_impossible_dials_name_the_reachable_range(copy: Path, capsys) -> None:
    error = refused(capsys, "plan", "--from", copy, "--speedup", "50")
    assert "cost: speedup is 50, expected more than 0 and less than 2: attention is 50 % of the step" in error
    error = refused(capsys, "plan", "--from", copy, "--time-per-step-ms", "10.01", "--kinds", "diagonal")
    assert "are reachable, speedups of a step from 1 to" in error


def test_plan_with_a_model_of_other_weights_is_refused(inputs: Path, copy: Path, capsys) -> None:
    replace(Stock.load(copy), weights={"transformer": "0" * 64}).save(copy)
    again = ["plan", "--from", copy, "--model", inputs / "model", "--prompts", inputs / "a.txt"]
    error = refused(capsys, *again, "--verify", "1", "--model-dtype", "float32")
    assert f"plan: {str(copy)!r} was measured on other weights than those of" in error
    error = refused(capsys, *again, "--others", inputs / "b.txt")
    assert "plan: --others is given without --verify, expected both" in error


def test_explain_gives_the_front_and_the_reason(copy: Path, capsys) -> None:
    said(capsys, "plan", "--from", copy, "--max-error", "0.05")
    plan = SparsePlan.from_pretrained(copy)
    printed = said(capsys, "explain", "--from", copy, "--why", "1", "0", "--bin", "0")
    assert len(re.findall(r"^  this +\d", printed, re.MULTILINE)) == 1
    assert f"layer 1, head 0: {plan.sole.pattern(0, 1, 0).name}" in printed
    times = [
        float(line[7:].split()[0]) for line in printed.splitlines() if re.match(r"  (this|    ) +\d", line)
    ]
    assert times == sorted(times)
    assert len(times) > 2
    every = said(capsys, "explain", "--from", copy, "--why", "1", "0", "--bin", "0", "--every")
    assert len(every.splitlines()) > len(printed.splitlines())
    assert "SparsePlan" in said(capsys, "explain", "--from", copy)
    assert "layer is 9, expected 0..1" in refused(capsys, "explain", "--from", copy, "--why", "9", "0")


def test_explain_says_the_papers_losses(copy: Path, capsys) -> None:
    said(capsys, "plan", "--from", copy, "--objective", "paper", "--threshold", "0.9")
    printed = said(capsys, "explain", "--from", copy, "--why", "0", "1", "--bin", "0")
    assert "L = MSE + 0.5 (1 - S), least first: " in printed
    assert "at most 0.9, else full" in printed


# ---- the page ----


def test_report_is_one_file_without_the_model(copy: Path, capsys) -> None:
    said(capsys, "report", "--from", copy)
    html = (copy / "report.html").read_text(encoding="utf-8")
    titles = ["The same videos, dense and sparse", "Predicted and achieved", "Video by video", "The mode map"]
    titles += ["What is reachable", "Heads and their options", "What the heads look at"]
    for title in (*titles, "Does it carry over to other prompts?"):
        assert f"<h2>{title}</h2>" in html, title
    assert "<script" not in html
    assert "alert(1)" in html
    assert "{{ 7*7 }}" in html
    for target in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html):
        assert target.startswith(("data:", "#")), target
    assert "mathdefault" not in html


def test_report_of_another_plan_leaves_old_numbers_out(copy: Path, capsys) -> None:
    said(capsys, "plan", "--from", copy, "--max-error", "0.2")
    said(capsys, "report", "--from", copy)
    html = (copy / "report.html").read_text(encoding="utf-8")
    assert "Nothing was generated under this plan yet" in html
    for title in ("The same videos", "Video by video", "What the heads look at"):
        assert f"<h2>{title}" not in html
    assert "Does it carry over to other prompts?" in html


# ---- bad input ----


def test_bad_files_are_one_sentence_each(copy: Path, capsys) -> None:
    whole = (copy / "errors.safetensors").read_bytes()
    (copy / "errors.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "expected a errors.safetensors" in refused(capsys, "plan", "--from", copy)
    (copy / "errors.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "sha256 is not that of the tensors" in refused(capsys, "plan", "--from", copy)
    (copy / "errors.safetensors").write_bytes(whole)
    for name, change, sentence in (
        ("stock.json", {"rest_ms": -1}, "stock: rest_ms is -1"),
        ("stock.json", {"format_version": 2}, "stock: format_version is 2, expected 1"),
        ("verification.json", {"noise": []}, "verification: "),
    ):
        good = (copy / name).read_text()
        (copy / name).write_text(json.dumps(json.loads(good) | change))
        assert sentence in refused(capsys, "report", "--from", copy)
        (copy / name).write_text(good)
    (copy / "heads.safetensors").write_bytes(b"\xff" * 100)
    assert "heads.safetensors cannot be read" in refused(capsys, "report", "--from", copy)
    (copy / "heads.safetensors").unlink()
    os.symlink("/dev/zero", copy / "heads.safetensors")
    assert "heads.safetensors cannot be read" in refused(capsys, "report", "--from", copy)


def test_no_hardware_for_these_calls_is_said(copy: Path, capsys) -> None:
    error = refused(capsys, "plan", "--from", copy, "--dtype", "bfloat16")
    assert (
        "there are no constants for bfloat16, head_dim 64, blocks 16 x 16, expected one of: float32" in error
    )
    (copy / "hardware.json").unlink()
    assert "expected a hardware.json (sparse-vdit calibrate)" in refused(capsys, "plan", "--from", copy)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file"),
        (b"", "has 0 prompts, expected 1..1000"),
        (b"# only a remark\n\n", "has 0 prompts"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"x" * 5000, "a prompt has 5000 letters, expected at most 4096"),
        (b"x\n" * 1001, "has 1001 prompts"),
        (b"x" * (2**20 + 1), "more than 1048576 bytes"),
    ],
)
def test_bad_prompts(inputs: Path, tmp_path: Path, capsys, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    error = refused(capsys, *command(inputs, tmp_path / "out", "--prompts", str(path)))
    assert sentence in error
    assert not (tmp_path / "out").exists()


def test_settings_the_pipeline_does_not_take(inputs: Path, tmp_path: Path, capsys) -> None:
    error = refused(capsys, *command(inputs, tmp_path / "out", "--set", "colour=7"))
    assert "CogVideoXPipeline takes no colour, expected some of" in error
    error = refused(capsys, *command(inputs, tmp_path / "out", "--set", "prompt=x"))
    assert "prompt is among the settings" in error
    error = refused(capsys, "search", tmp_path, "--prompts", inputs / "a.txt", "--out", tmp_path / "out")
    assert "has no model_index.json, expected a pipeline saved by diffusers" in error
    with pytest.raises(SystemExit) as ended:
        main(command(inputs, tmp_path / "out", "--speedup", "0"))
    assert ended.value.code == 2
    with pytest.raises(SystemExit):
        main(command(inputs, tmp_path / "out", "--speedup", "2", "--max-error", "1"))


def test_candidates_of_other_tokens_are_refused(inputs: Path, copy: Path, tmp_path: Path, capsys) -> None:
    value = json.loads((copy / "candidates.json").read_text())
    value["geometry"]["frames"] = 5
    value["mass_stripes"] = []
    (tmp_path / "c.json").write_text(json.dumps(value))
    error = refused(capsys, *command(inputs, tmp_path / "out", "--candidates", str(tmp_path / "c.json")))
    assert "(= the model's tokens)" in error
