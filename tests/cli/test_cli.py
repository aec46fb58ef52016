"""The command line: help, version, one line per error, the doctor in words and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_vdit
from sparse_vdit import cli
from sparse_vdit.cli import doctor


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sparse-vdit {sparse_vdit.__version__}\n"
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2


def test_every_file_here_is_a_subcommand() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__"}
    parser = cli.build_parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert set(action.choices) == files


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise ValueError("doctor: it is\nbroken")

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "sparse-vdit doctor: doctor: it is broken\n"
    assert captured.out == ""
    for argv in (["--debug", "doctor"], ["doctor", "--debug"]):
        with pytest.raises(ValueError, match="it is\nbroken"):
            cli.main(argv)


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", stop)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "sparse-vdit: interrupted\n"


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["build"]["version"] == sparse_vdit.__version__
    assert found["build"]["isa"] == sparse_vdit.build_info()["isa"]
    assert found["packages"]["torch"] is not None
    assert found["kernels"] == sparse_vdit.build_info()["engines"]
    assert {case.split()[0] for case in found["kernels"]} == {"float32", "bfloat16", "float16"}
    assert "WanTransformer3DModel" in found["models"]
    assert any(sentence.startswith("GPU: ") for sentence in found["missing"]) != found["build"]["with_cuda"]


def test_doctor_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("cpu", "threads", "packages", "torch door", "gpu", "kernels that would run here", "missing"):
        assert word in text


def test_doctor_tells_what_is_missing() -> None:
    info = {
        "isa": "portable",
        "isa_best": "avx2",
        "isa_env": "portable",
        "torch_extension": False,
        "with_cuda": False,
        "without_cuda_because": "no nvcc",
    }
    packages = dict.fromkeys(doctor.PACKAGES) | {"torch": "2.9.1+cpu", "diffusers": "0.36.0"}
    missing = doctor._missing(info, packages, [{"name": "H100"}])
    assert (
        "torch is 2.9.1+cpu, expected at least 2.10: needed for the torch operator and diffusers' pipelines."
        in missing
    )
    assert not any(sentence.startswith("diffusers ") for sentence in missing)
    assert "peft is not installed: needed for LoRA in diffusers." in missing
    assert any("SPARSE_VDIT_ISA=portable lowers" in sentence for sentence in missing)
    assert any("_torch was not built" in sentence for sentence in missing)
    assert "GPU: no nvcc. H100 stays unused." in missing


def run(tmp_path: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(
        argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_as_a_module_and_as_a_script(tmp_path: Path) -> None:
    found = run(tmp_path, sys.executable, "-m", "sparse_vdit", "--version")
    assert (found.returncode, found.stdout) == (0, f"sparse-vdit {sparse_vdit.__version__}\n")
    script = Path(sys.executable).parent / "sparse-vdit"
    if not script.exists():
        pytest.skip("the sparse-vdit script is not installed beside this Python")
    found = run(tmp_path, str(script), "--version")
    assert found.returncode == 0


@pytest.mark.parametrize(
    "absent", [["torch"], ["diffusers"], ["torch", "diffusers", "peft", "av", "matplotlib"]]
)
def test_doctor_without_torch_or_diffusers(tmp_path: Path, absent: list[str]) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}));"
        "from sparse_vdit.cli import main; sys.exit(main(['doctor', '--json']))"
    )
    found = run(tmp_path, sys.executable, "-c", code)
    assert found.returncode == 0, found.stderr
    findings = json.loads(found.stdout)
    for name in absent:
        assert findings["packages"][name] is None
        assert any(sentence.startswith(f"{name} is not installed") for sentence in findings["missing"])
    assert findings["models"] == []
    assert findings["kernels"]


def test_a_wrong_isa_is_one_sentence(tmp_path: Path) -> None:
    found = run(tmp_path, sys.executable, "-m", "sparse_vdit", "doctor", SPARSE_VDIT_ISA="quantum")
    assert found.returncode == 1
    assert "quantum" in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
