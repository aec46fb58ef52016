"""`record`: killed at any point and started again, it ends in the same bytes; other searches are refused."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import geometry_of  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402
from sparse_vdit.search import Candidates, HeadErrors, Recorder, Sample, models_of, record  # noqa: E402
from sparse_vdit.search.weights import weights_of  # noqa: E402

from sparse_vdit.search import errors_file, recording  # noqa: E402  isort: skip
from sparse_vdit.search import journal as journal_module  # noqa: E402
from sparse_vdit.search import recorder as recorder_module  # noqa: E402

pytestmark = pytest.mark.models
SAMPLES = (Sample("a", 0), Sample("b", 1))


def search(out: Path, small: tiny.Tiny, *, samples: Any = SAMPLES, **options: Any) -> dict[str, HeadErrors]:
    """Two prompts of four steps on both experts of a small Wan, two calls a step: 16 measured steps."""
    patterns = (Pattern.full(), Pattern.diagonal(half_width=0), Pattern.multi_diagonal(half_width=3))
    kept = {name: options.pop(name) for name in ("overwrite", "settings", "progress") if name in options}
    made = Recorder(
        models_of(small.pipe),
        Candidates(geometry_of(small), patterns, (1,)),
        (0.0, 0.7, 0.95, 1.0),
        **({"rows": 8, "power": 1} | options),
    )
    return record(
        small.pipe,
        samples,
        out,
        recorder=made,
        observe=sparse_vdit.observe,
        generate=lambda pipe, sample: small.run(seed=sample.seed),
        **({"progress": False} | kept),
    )


def killed(act: Callable[[], object]) -> int:
    """Runs `act` in a process of its own; returns the signal that ended it, 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            act()
            os._exit(0)
        finally:
            os._exit(77)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the search hangs")


def at_the_nth(place: Any, name: str, number: int, *, after: bool = False) -> None:
    """From now on, in this process: the n-th call of place.name is met by kill -9, before (or after) it acts."""
    real, calls = getattr(place, name), itertools.count(1)

    def dies(*arguments: Any, **named: Any) -> Any:
        last = next(calls) == number
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*arguments, **named)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(place, name, dies)


def torn(number: int) -> None:
    """The n-th write to a journal gets no farther than half."""
    real, calls = os.pwrite, itertools.count(1)

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if next(calls) == number:
            real(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(descriptor, data, offset)

    journal_module.os.pwrite = half


KILLS: dict[str, tuple[Callable[[], None], int]] = {
    # how to die, and how many steps (of 8) are on the disk by then
    "in the middle of the third step": (lambda: at_the_nth(recorder_module, "probe", 7), 2),
    "while a backward pass runs": (lambda: at_the_nth(recorder_module, "gradient_power", 2), 1),
    "while a record is written": (lambda: torn(2 + 3), 2),
    "between write and sync": (lambda: at_the_nth(journal_module.os, "fsync", 7), 3),
    "just after a record": (lambda: at_the_nth(journal_module.Journal, "append", 1 + 3, after=True), 3),
    "between part and journal": (lambda: at_the_nth(recording, "save", 1, after=True), 4),
    "in the second prompt": (lambda: at_the_nth(journal_module.Journal, "append", 2 + 6, after=True), 6),
    "before the file has its name": (lambda: at_the_nth(os, "replace", 4), 8),
    "before the parts are deleted": (lambda: at_the_nth(recording.shutil, "rmtree", 1), 8),
}


@pytest.fixture(scope="module")
def small() -> tiny.Tiny:
    torch.set_num_threads(1)
    return tiny.wan(2, layers=1)


@pytest.fixture(scope="module")
def whole(small: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a search that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "errors.safetensors"
    search(out, small)
    assert os.listdir(out.parent) == ["errors.safetensors"]
    return out.read_bytes()


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_started_again(
    moment: str, small: tiny.Tiny, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "errors.safetensors"
    prepare, on_disk = KILLS[moment]

    def dies() -> None:
        prepare()
        search(out, small)

    assert killed(dies) == signal.SIGKILL
    appended: list[int] = []
    append = journal_module.Journal.append

    def counted(journal: Any, data: bytes) -> None:
        appended.append(len(data))
        append(journal, data)

    monkeypatch.setattr(journal_module.Journal, "append", counted)
    search(out, small)
    assert out.read_bytes() == whole
    assert os.listdir(tmp_path) == ["errors.safetensors"]
    steps = [length for length in appended if length > 400]  # the shorter ones open a journal
    assert len(steps) == 8 - on_disk


def test_killed_again_and_again_while_following_its_choice(small: tiny.Tiny, tmp_path: Path) -> None:
    """The trajectory of a resumed prompt is that of the choices in the journal."""
    options: dict[str, Any] = {"follow": "choice", "penalty": 0.036, "threshold": 0.05, "power": 0}
    search(tmp_path / "whole.safetensors", small, **options)
    dense = search(tmp_path / "dense.safetensors", small, power=0)
    assert HeadErrors.load(tmp_path / "whole.safetensors", "transformer_2").plain.tolist() != (
        dense["transformer_2"].plain.tolist()
    ), "a choice that is dense throughout shows nothing"
    out = tmp_path / "errors.safetensors"

    def dies() -> None:
        at_the_nth(journal_module.Journal, "append", 3, after=True)
        search(out, small, **options)

    kills = 0
    while killed(dies) == signal.SIGKILL:
        kills += 1
    assert kills >= 3
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_prompts_may_be_split_and_merged(small: tiny.Tiny, whole: bytes, tmp_path: Path) -> None:
    """Two machines by hand: the second takes over the mass stripes of the first; prompts keep their numbers."""
    first = search(tmp_path / "a.safetensors", small, samples=SAMPLES[:1])
    stripes = {name: part.stripes for name, part in first.items()}
    assert all((blocks >= 0).all() for blocks in stripes.values())
    whole_path = tmp_path / "whole.safetensors"
    whole_path.write_bytes(whole)
    both = errors_file.load(whole_path)
    for name, part in first.items():
        assert (both[name].calls == 2 * part.calls).all()
        assert (both[name].stripes == part.stripes).all()


def test_a_finished_search_is_not_run_again(small: tiny.Tiny, tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "errors.safetensors"
    out.write_bytes(whole)
    found = search(out, small, progress=True)
    assert set(found) == {"transformer", "transformer_2"}
    with pytest.raises(
        ValueError, match=r"is of another search \(.*\), expected another name or to overwrite it"
    ):
        search(out, small, seed=1)
    assert out.read_bytes() == whole
    search(out, small, seed=1, samples=SAMPLES[:1], power=0, overwrite=True)
    assert HeadErrors.load(out, "transformer").seed == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 9}, "record: rows is 9, expected 8 as in the interrupted search in"),
        ({"samples": SAMPLES[:1]}, "record: samples is .*, expected .* as in the interrupted search"),
        ({"settings": {"height": 64}}, "record: settings is {'height': 64}, expected {}"),
        ({"power": 0}, r"record: power is \[0, 1, 3\], expected \[1, 1, 3\]"),
    ],
)
def test_another_search_in_the_way(
    change: dict[str, Any], sentence: str, small: tiny.Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "errors.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search(out, InterruptedTiny(small))
    before = sorted(path.name for path in (tmp_path / "errors.safetensors.parts").iterdir())
    assert before == ["prompt-00000.journal", "search.json"]
    with pytest.raises(ValueError, match=sentence):
        search(out, small, **change)
    assert sorted(path.name for path in (tmp_path / "errors.safetensors.parts").iterdir()) == before


@pytest.mark.parametrize("change", ["values", "dtype"])
def test_other_weights_are_not_mixed_in(change: str, tmp_path: Path) -> None:
    """Neither into a finished file nor into an interrupted search; the file notes whose they are."""
    model = tiny.wan(2, layers=1)
    out, cut = tmp_path / "errors.safetensors", tmp_path / "cut.safetensors"
    found = search(out, model, power=0, samples=SAMPLES[:1])
    before = weights_of(model.pipe)
    assert found["transformer_2"].provenance["weights"] == before
    with pytest.raises(KeyboardInterrupt):
        search(cut, InterruptedTiny(model), power=0, samples=SAMPLES[:1])
    if change == "values":
        with torch.no_grad():
            next(model.pipe.transformer_2.parameters()).mul_(1.5)
    else:
        model.pipe.transformer_2.to(torch.bfloat16)
    assert weights_of(model.pipe)["transformer"] == before["transformer"]
    with pytest.raises(ValueError, match=r"errors.safetensors' was measured on other weights, expected"):
        search(out, model, power=0, samples=SAMPLES[:1])
    with pytest.raises(ValueError, match=r"the interrupted search in .* was measured on other weights, expe"):
        search(cut, model, power=0, samples=SAMPLES[:1])


class InterruptedTiny:
    """A small pipeline whose user loses patience before anything is drawn."""

    def __init__(self, small: tiny.Tiny) -> None:
        self.pipe, self.layout = small.pipe, small.layout

    def run(self, seed: int) -> None:
        raise KeyboardInterrupt


def test_a_damaged_part_is_named(small: tiny.Tiny, tmp_path: Path) -> None:
    out = tmp_path / "errors.safetensors"
    assert killed(lambda: (at_the_nth(recording, "total", 1), search(out, small, power=0))) == signal.SIGKILL
    part = tmp_path / "errors.safetensors.parts" / "prompt-00001.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"errors: .*prompt-00001.safetensors' is no whole safetensors file"):
        search(out, small, power=0)
    part.write_bytes(whole)
    search(out, small, power=0)
    assert out.exists()


def test_what_resuming_says(small: tiny.Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "errors.safetensors"
    assert killed(lambda: (torn(4), search(out, small, power=0))) == signal.SIGKILL
    with caplog.at_level(logging.INFO):
        search(out, small, power=0)
    assert "kept 1 records, cut off" in caplog.text
    assert "prompt 0: 1 steps are in the journal, its trajectory runs again" in caplog.text


def test_the_bar_counts_all_steps_and_can_be_off(
    small: tiny.Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(tmp_path / "a.safetensors", small, power=0)
    assert capsys.readouterr().err == ""
    search(tmp_path / "b.safetensors", small, power=0, progress=True)
    assert "8/8" in capsys.readouterr().err


def test_the_stock_call_and_its_settings(small: tiny.Tiny, tmp_path: Path) -> None:
    """Without `generate` the pipeline is called with the prompt, a seeded generator and the settings."""
    calls: list[dict[str, Any]] = []

    class Pipe:
        transformer, transformer_2 = small.pipe.transformer, small.pipe.transformer_2
        scheduler = small.pipe.scheduler

        def __call__(self, **named: Any) -> Any:
            calls.append(named)
            return small.run(seed=0)

    patterns = (Pattern.full(), Pattern.diagonal(half_width=0))
    made = Recorder(models_of(small.pipe), Candidates(geometry_of(small), patterns), (0.0, 1.0), rows=4)
    settings = {"height": 64, "latents": torch.ones(2), "output_type": "latent"}
    errors = record(
        Pipe(),
        ["a cat"],
        tmp_path / "e.safetensors",
        recorder=made,
        observe=lambda pipe, recorder: sparse_vdit.observe(small.pipe, recorder),
        settings=settings,
        progress=False,
    )
    assert calls[0]["prompt"] == "a cat"
    assert calls[0]["height"] == 64
    assert calls[0]["generator"].initial_seed() == 0
    about = errors["transformer"].provenance
    assert about["samples"] == [{"prompt": "a cat", "seed": 0}]
    assert about["settings"]["latents"].startswith("float32 [2] ")
    assert json.loads(json.dumps(about)) == about
    with pytest.raises(TypeError, match="record: a prompt is int, expected a string"):
        Sample(3)  # type: ignore[arg-type]
