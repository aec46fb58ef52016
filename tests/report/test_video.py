"""Video files hold the frames that were given, and are whole or not there."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest

from sparse_vdit.report import files, video


@pytest.fixture
def clip() -> np.ndarray:
    """Flat colours that differ in every frame and quarter, [5, 3, 16, 16]."""
    frames = np.zeros((5, 3, 16, 16), np.float32)
    for number in range(5):
        frames[number, 0, :8] = number / 4
        frames[number, 1, :, 8:] = 1 - number / 4
        frames[number, 2, 8:, :8] = 0.5
    return frames


def test_mp4_is_decoded_to_the_same_frames(clip, tmp_path) -> None:
    av = pytest.importorskip("av")
    video.write(tmp_path / "a.mp4", clip)
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == video.FPS
    assert len(decoded) == 5
    assert decoded[0].shape == (256, 256, 3)
    for picture, frame in zip(decoded, clip, strict=True):
        quarters = picture.reshape(2, 128, 2, 128, 3)[:, 32:96, :, 32:96].mean((1, 3)) / 255
        assert np.abs(quarters - frame[:, 4::8, 4::8].transpose(1, 2, 0)).max() < 0.03


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_have_all_frames(clip, tmp_path, suffix) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / f"a{suffix}"
    video.write(path, clip, times=1)
    with image.open(path) as opened:
        assert opened.n_frames == 5
        opened.seek(3)
        picture = np.asarray(opened.convert("RGB"), np.float32) / 255
    assert np.abs(picture - clip[3].transpose(1, 2, 0)).max() < 0.02


def test_png_and_the_pages_sheet_hold_the_frames_in_a_row(clip, tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    video.write(tmp_path / "a.png", clip, times=1)
    sheet = base64.b64decode(video.sheet_uri(clip).removeprefix("data:image/png;base64,"))
    for source in (tmp_path / "a.png", io.BytesIO(sheet)):
        pixels = np.asarray(image.open(source))
        assert pixels.shape == (16, 80, 3)
        assert (pixels.reshape(16, 5, 16, 3).transpose(1, 0, 2, 3) == video.to_pixels(clip)).all()


def test_side_by_side_and_difference(clip) -> None:
    both = video.side_by_side([clip, clip[:, ::-1]], gap=2)
    assert both.shape == (5, 3, 16, 34)
    assert (both[..., 16:18] == 1).all()
    assert (both[..., 18:] == clip[:, ::-1]).all()
    assert not video.difference(clip, clip).any()
    assert video.difference(clip, clip + 0.25).max() == 1


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (np.zeros((2, 1, 4, 4)), r"expected \[frames, 3, height, width\]"),
        (np.full((2, 3, 4, 4), np.nan), "not finite"),
    ],
)
def test_bad_videos_leave_no_file(tmp_path, bad, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        video.write(tmp_path / "a.gif", bad)
    with pytest.raises(ValueError, match=r"ends in '\.mkv', expected one of \.mp4"):
        video.write(tmp_path / "a.mkv", np.zeros((1, 3, 4, 4)))
    assert not list(tmp_path.iterdir())


def test_a_failing_write_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "report.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(KeyboardInterrupt):
        _interrupted_write(path)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def _interrupted_write(path) -> None:
    with files.replacing(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
