"""Metrics against their definitions, written a second time and slowly, and against FFmpeg's own filters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_vdit.report import metrics


def _pair(rng: np.random.Generator, shape: tuple[int, ...] = (3, 3, 19, 23), noise: float = 0.1):
    x = rng.random(shape)
    return x, (x + noise * rng.standard_normal(shape)).clip(0, 1)


def test_psnr_is_the_pooled_one() -> None:
    x, y = _pair(np.random.default_rng(0))
    y[0] = x[0]  # an equal frame must not make the mean infinite
    assert metrics.psnr(x, y) == pytest.approx(-10 * math.log10(((x - y) ** 2).sum() / x.size))
    frames = metrics.psnr_frames(x, y)
    assert frames[0] == math.inf
    assert frames[2] == pytest.approx(-10 * math.log10(((x[2] - y[2]) ** 2).mean()))


def test_psnr_of_known_distance() -> None:
    x = np.full((2, 3, 16, 16), 0.5)
    assert metrics.psnr(x, x + 0.1) == pytest.approx(20.0)
    assert metrics.psnr(255 * x, 255 * x + 25.5, peak=255) == pytest.approx(20.0)
    assert metrics.psnr(x, x) == math.inf


def _slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang's SSIM of one plane by explicit windows: 11x11 Gaussian of sigma 1.5, those that fit."""
    weights = np.array([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    weights /= weights.sum()
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (plane[row : row + 11, column : column + 11] for plane in (x, y))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            both = (weights * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + 1e-4) * (2 * both + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))
            )
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_ssim_is_wangs(noise: float) -> None:
    x, y = _pair(np.random.default_rng(1), (2, 3, 17, 14), noise)
    slow = np.mean([_slow_ssim(a, b) for f, g in zip(x, y, strict=True) for a, b in zip(f, g, strict=True)])
    assert metrics.ssim(x, y) == pytest.approx(slow, abs=1e-9)


def test_ssim_like_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    x, y = _pair(np.random.default_rng(2), (2, 3, 40, 32))
    theirs = np.mean(
        [
            skimage.structural_similarity(
                a,
                b,
                channel_axis=0,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for a, b in zip(x, y, strict=True)
        ]
    )
    assert metrics.ssim(x, y) == pytest.approx(theirs, abs=1e-6)


def test_ssim_knows_equal_and_inverted() -> None:
    x, _ = _pair(np.random.default_rng(3))
    assert metrics.ssim(x, x) == pytest.approx(1.0)
    assert metrics.ssim(x, 1 - x) < 0


@pytest.mark.parametrize(
    "measure", [metrics.psnr, metrics.psnr_frames, metrics.ssim, metrics.flip, metrics.vmaf]
)
def test_bad_videos_are_refused(measure) -> None:
    x = np.zeros((2, 3, 16, 16))
    with pytest.raises(
        ValueError, match=r"candidate has the shape \(2, 3, 16, 15\), expected \(2, 3, 16, 16\)"
    ):
        measure(x, x[..., 1:])
    with pytest.raises(ValueError, match="reference has 3 dimensions, expected 4"):
        measure(x[0], x[0])
    with pytest.raises(ValueError, match="candidate holds a value that is not finite"):
        measure(x, x + math.nan)


def test_ssim_refuses_pictures_below_its_window() -> None:
    x = np.zeros((1, 3, 10, 64))
    with pytest.raises(ValueError, match="a picture is 10x64, expected at least 11x11"):
        metrics.ssim(x, x)


def test_flip_grows_with_the_error() -> None:
    pytest.importorskip("flip_evaluator")
    rng = np.random.default_rng(4)
    x, near = _pair(rng, (1, 3, 32, 32), 0.01)
    far = (x + 0.3 * rng.standard_normal(x.shape)).clip(0, 1)
    same, little, much = (metrics.flip(x, y) for y in (x, near, far))
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < little < much <= 1


def test_filter_plumbing_against_ffmpegs_psnr(tmp_path) -> None:
    """`vmaf` runs through `run_filter`; FFmpeg's own psnr filter shows that it feeds both videos."""
    pytest.importorskip("av")
    x, y = _pair(np.random.default_rng(5), (4, 3, 32, 32))
    log = tmp_path / "psnr.log"
    metrics.run_filter("psnr", f"stats_file={log}", metrics.to_pixels(x, 2), metrics.to_pixels(y, 2))
    lines = log.read_text().splitlines()
    assert len(lines) == 4
    theirs = float(lines[1].split("psnr_y:")[1].split()[0])
    luma = np.array([0.299, 0.587, 0.114])[:, None, None]
    error = (((x[1] - y[1]) * luma).sum(0) ** 2).mean() * (219 / 255) ** 2  # 8-bit video range
    assert theirs == pytest.approx(-10 * math.log10(error), abs=0.2)


def test_vmaf_orders_videos() -> None:
    if not metrics.has_vmaf():
        assert metrics.vmaf(np.zeros((2, 3, 16, 16)), np.zeros((2, 3, 16, 16))) is None
        pytest.skip("this PyAV has no libvmaf")
    x, near = _pair(np.random.default_rng(6), (3, 3, 64, 64), 0.02)
    assert metrics.vmaf(x, x) > metrics.vmaf(x, near) > metrics.vmaf(x, 1 - x)


def test_enlarging_repeats_pixels() -> None:
    x = np.zeros((1, 3, 2, 2))
    x[0, 1, 0, 1] = 1
    pixels = metrics.to_pixels(x, 3)
    assert pixels.shape == (1, 6, 6, 3)
    assert (pixels[0, :3, 3:, 1] == 255).all()
    assert pixels.sum() == 9 * 255
