"""Dense against a plan on tiny pipelines: what is compared, what is counted, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import mixed_plan, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402
from sparse_vdit.errors import SparseVDiTError  # noqa: E402
from sparse_vdit.report.compare import Run  # noqa: E402
from sparse_vdit.report.metrics import psnr, ssim  # noqa: E402
from sparse_vdit.search import Sample  # noqa: E402
from sparse_vdit.verify import Source, Verification, mean_psnr, verify  # noqa: E402
from sparse_vdit.verify.clips import Clips, load_clips, page_clips, small  # noqa: E402
from sparse_vdit.verify.source import stock_source  # noqa: E402

pytestmark = pytest.mark.models


def frames_of(latents: Any) -> np.ndarray:
    """Latents as frames of 16 x 16 pixels."""
    video = torch.sigmoid(latents[0].float())
    video = video if video.shape[1] <= 16 and video.shape[0] <= 8 else video.transpose(0, 1)
    return np.repeat(np.repeat(video[:, :3].numpy(), 2, 2), 2, 3)


def source_of(tiny_: tiny.Tiny, steps: int = 2) -> Source:
    def make(sample: Sample, steps: int, decode: bool) -> Any:
        return frames_of(tiny_.run(seed=sample.seed, num_inference_steps=steps))

    return Source(tiny_.pipe, make, steps)


def test_numbers_are_those_of_the_videos() -> None:
    made = tiny.cogvideox()
    source, plan = source_of(made), mixed_plan(made, remainder=0.0)
    kept: dict[tuple[str, int], tuple[Run, Run]] = {}
    groups = {"calibration": [Sample("a", 1), Sample("b", 2)], "others": [Sample("c", 3)]}
    found = verify(source, plan, groups, keep=lambda g, n, d, s: kept.__setitem__((g, n), (d, s)))
    for (group, number), (dense, sparse) in kept.items():
        sample, judged = groups[group][number], found.groups[group][number]
        assert (judged.prompt, judged.seed) == (sample.prompt, sample.seed)
        alone = frames_of(made.run(seed=sample.seed))
        assert (dense.video == alone).all()
        with sparse_vdit.applied(made.pipe, plan):
            assert np.allclose(sparse.video, frames_of(made.run(seed=sample.seed)), atol=1e-6)
        assert judged.psnr_db == pytest.approx(psnr(dense.video, sparse.video))
        assert judged.ssim == pytest.approx(ssim(dense.video, sparse.video))
        assert judged.dense_ms == pytest.approx(1e3 * np.mean(dense.seconds))
    assert found.plan_hash == plan.hash
    assert found.noise == pytest.approx((0.999, 0.499))
    assert found.speedup == pytest.approx(np.sum(found.dense_ms) / np.sum(found.plan_ms))
    own = np.mean([judged.psnr_db for judged in found.groups["calibration"]])
    assert found.transfer_db == pytest.approx(found.groups["others"][0].psnr_db - own)
    measured = mean_psnr(source, groups["calibration"])(plan)
    errors = [10 ** (-judged.psnr_db / 10) for judged in found.groups["calibration"]]
    assert measured == pytest.approx(-10 * math.log10(np.mean(errors)), abs=1e-3)


def test_a_full_plan_is_equal_and_needs_no_sparse_call() -> None:
    made = tiny.cogvideox()
    source, plan = source_of(made), uniform_plan(made, Pattern.full())
    found = verify(source, plan, [Sample("a")])
    assert found.all[0].psnr_db is None
    assert found.all[0].ssim == pytest.approx(1)
    assert found.psnr_db() is None
    assert found.transfer_db is None
    assert mean_psnr(source, [Sample("a")])(plan) == math.inf
    warm = uniform_plan(made, Pattern.diagonal(half_width=0), dense_above=0.1)
    assert verify(source, warm, [Sample("a")]).psnr_db() is None


def test_steps_of_two_calls_are_added() -> None:
    """Wan's guidance calls the transformer twice a step."""
    made = tiny.wan(2)
    calls: list[int] = []
    for module in (made.pipe.transformer, made.pipe.transformer_2):
        module.register_forward_hook(lambda *_: calls.append(1))
    run = source_of(made, 4).run(Sample("a"))
    assert len(calls) == 8
    assert len(run.seconds) == len(run.noise) == 4
    assert sorted(run.noise, reverse=True) == list(run.noise)


def test_dense_and_sparse_take_turns() -> None:
    made = tiny.cogvideox()
    order: list[bool] = []
    source = source_of(made, 1)

    def make(sample: Sample, steps: int, decode: bool) -> Any:
        order.append(bool(sparse_vdit.explain(made.pipe).layers))
        return source.make(sample, steps, decode)

    verify(Source(made.pipe, make, 1), mixed_plan(made), [Sample("a"), Sample("b"), Sample("c")])
    assert order == [False, True, True, False, False, True]


def test_a_plan_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.cogvideox()
    source = source_of(made)

    def deaf(sample: Sample, steps: int, decode: bool) -> Any:
        sparse_vdit.remove(made.pipe)
        return source.make(sample, steps, decode)

    class Nothing:
        sparse_calls = 0

    monkeypatch.setattr("sparse_vdit.models.explain", lambda _: Nothing)
    with pytest.raises(SparseVDiTError, match="made 0 calls of the sparse kernel, expected some"):
        verify(source, mixed_plan(made), [Sample("a")])


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [(np.zeros((2, 4, 16, 16)), "the frames have shape"), (np.full((2, 3, 16, 16), np.nan), "not finite")],
)
def test_bad_frames(frames: np.ndarray, sentence: str) -> None:
    made = tiny.cogvideox()
    with pytest.raises(ValueError, match=sentence):
        Source(made.pipe, lambda *_: frames, 1).run(Sample("a"))


def test_refusals() -> None:
    made = tiny.cogvideox()
    with pytest.raises(ValueError, match="there are no samples"):
        verify(source_of(made), mixed_plan(made), [])
    with pytest.raises(ValueError, match="has no vae, expected one to decode videos with"):
        stock_source(made.pipe, steps=1).run(Sample("a"))
    with pytest.raises(ValueError, match="takes no colour, expected some of"):
        stock_source(made.pipe, steps=1, settings={"colour": 1})


JUDGED = {
    "prompt": "a", "seed": 1, "dense_ms": 2.0, "plan_ms": 1.0, "psnr_db": None,
    "psnr_worst_frame_db": None, "ssim": 1.0,
}  # fmt: skip


def verification(**changed: Any) -> Verification:
    document = {
        "format": "sparse_vdit.verification", "format_version": 1, "plan_hash": "0" * 64, "noise": [1.0, 0.5],
        "groups": {"calibration": [JUDGED]},
        "dense_ms": [2.0, 2.0], "plan_ms": [1.0, 1.0],
    }  # fmt: skip
    return Verification.from_json(document | changed)


def test_file_and_back(tmp_path: Path) -> None:
    found = verification()
    assert Verification.load(found.save(tmp_path).parent) == found
    assert found.speedup == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"plan_hash": 7}, "plan_hash is 7"),
        ({"groups": {}}, "the groups are"),
        ({"groups": {"mine": []}}, "the groups are"),
        ({"groups": {"calibration": []}}, "group calibration has 0 samples, expected at least one"),
        ({"plan_ms": [1.0, 0.0]}, "plan_ms is 0.0, expected numbers above 0"),
        ({"plan_ms": [-1.0, 1.0]}, "plan_ms is -1.0, expected numbers above 0"),
        (
            {"groups": {"calibration": [JUDGED | {"plan_ms": 0}]}},
            "plan_ms of a sample is 0, expected a number",
        ),
        ({"groups": {"calibration": [{}]}}, "verification"),
        ({"groups": {"calibration": 3}}, "groups is no object of lists"),
        ({"noise": [1.0]}, "dense_ms has 2 steps, expected 1"),
        ({"dense_ms": ["1", 2]}, "dense_ms is '1', expected a finite number"),
        ({"plan_ms": 1}, "plan_ms is 1, expected a list"),
        ({"format_version": True}, "format_version is True"),
    ],
)
def test_bad_documents(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        verification(**changes)
    assert sentence in str(error.value)


# ---- clips ----


def test_clips_are_small_copies_bound_to_the_plan(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("PIL")
    made = tiny.cogvideox(layers=1)
    plan = uniform_plan(made, Pattern.skip())
    frames = rng.random((20, 3, 400, 500), dtype=np.float32)
    copy = small(frames)
    assert copy.shape == (17, 133, 166, 3)
    mean = frames[0, :, :3, :3].mean(axis=(1, 2))
    assert np.abs(copy[0, 0, 0] / 255 - mean).max() < 1 / 255
    clips = Clips(None)
    run = Run(frames, (1.0,), (1.0,))
    clips("calibration", 0, run, run)
    clips("calibration", 3, run, run)  # more than are shown
    clips.save(tmp_path, plan)
    found = load_clips(tmp_path, plan)
    assert list(found) == [("calibration", 0)]
    assert (found["calibration", 0][1] == copy).all()
    shown = page_clips(found, verification())
    assert [name for name, _ in shown[0].views] == ["dense", "sparse", "difference × 4"]
    assert ("PSNR", "equal") in shown[0].numbers
    assert load_clips(tmp_path, uniform_plan(made, Pattern.full())) == {}
    data = (tmp_path / "clips.safetensors").read_bytes()
    (tmp_path / "clips.safetensors").write_bytes(data[:-5])
    with pytest.raises(ValueError, match=r"clips\.safetensors cannot be read"):
        load_clips(tmp_path, plan)
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
