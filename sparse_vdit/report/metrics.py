"""How near two videos are: PSNR, SSIM, FLIP and, where the video library has it, VMAF.

All take decoded frames [F, 3, H, W] in 0..1, never compressed files. PSNR pools the squared error of the
whole video, so that one identical frame does not make it infinite; the worst frame is reported beside it.
SSIM is Wang's: Gaussian 11x11 window, sigma 1.5, valid area only, mean over the colour channels (as
scikit-image with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 11  # pixels of SSIM's window
SIGMA = 1.5  # pixels
VMAF_SIDE = 256  # pixels; VMAF's filters need a picture larger than its coarsest scale


@dataclass(frozen=True)
class Fidelity:
    """Distances of a video from its reference.

    Attributes:
        psnr_db: PSNR of the pooled squared error, in dB; inf for equal videos.
        psnr_worst_frame_db: PSNR of the worst frame.
        ssim: Mean SSIM over frames.
        flip: Mean FLIP error over frames, 0 is equal; None where `flip-evaluator` is missing.
        vmaf: Mean VMAF over frames, 0..100; None where libvmaf is missing.
    """

    psnr_db: float
    psnr_worst_frame_db: float
    ssim: float
    flip: float | None
    vmaf: float | None


def _pair(reference: Any, candidate: Any, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Checks two videos and returns them as float64 [F, 3, H, W]."""
    pair = []
    for name, video in (("reference", reference), ("candidate", candidate)):
        array = np.asarray(video, np.float64)
        if array.ndim != 4:
            raise ValueError(
                f"{who}: {name} has {array.ndim} dimensions, expected 4 [frames, channels, height, width]"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{who}: {name} holds a value that is not finite, expected numbers in 0..1")
        pair.append(array)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            f"{who}: candidate has the shape {pair[1].shape}, expected {pair[0].shape} like the reference"
        )
    return pair[0], pair[1]


def _decibels(squared_error: float, peak: float) -> float:
    return math.inf if squared_error == 0 else 10 * math.log10(peak * peak / squared_error)


def psnr(reference: Any, candidate: Any, *, peak: float = 1.0) -> float:
    """Returns 10 log10(peak^2 / mean squared error over all frames), in dB; inf for equal videos."""
    x, y = _pair(reference, candidate, "psnr")
    return _decibels(float(np.mean((x - y) ** 2)), peak)


def psnr_frames(reference: Any, candidate: Any, *, peak: float = 1.0) -> list[float]:
    """Returns the PSNR of every frame, in dB."""
    x, y = _pair(reference, candidate, "psnr_frames")
    return [_decibels(float(error), peak) for error in np.mean((x - y) ** 2, axis=(1, 2, 3))]


def _window() -> np.ndarray:
    line = np.arange(WINDOW) - WINDOW // 2
    weights: np.ndarray = np.exp(-0.5 * (line / SIGMA) ** 2)
    return np.asarray(weights / weights.sum())


def _blur(pictures: np.ndarray) -> np.ndarray:
    """Filters the last two axes with the window, valid area only: [..., H, W] -> [..., H - 10, W - 10]."""
    weights = _window()
    high, wide = pictures.shape[-2] - WINDOW + 1, pictures.shape[-1] - WINDOW + 1
    rows = np.asarray(sum(weight * pictures[..., i : i + high, :] for i, weight in enumerate(weights)))
    return np.asarray(sum(weight * rows[..., :, i : i + wide] for i, weight in enumerate(weights)))


def ssim(reference: Any, candidate: Any, *, peak: float = 1.0) -> float:
    """Returns the mean SSIM over frames and channels.

    Args:
        reference: [F, 3, H, W], H and W at least 11.
        candidate: The same shape.
        peak: Largest possible value minus the smallest one.

    Raises:
        ValueError: The shapes differ or a picture is smaller than the window.
    """
    x, y = _pair(reference, candidate, "ssim")
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(
            f"ssim: a picture is {x.shape[-2]}x{x.shape[-1]}, expected at least {WINDOW}x{WINDOW}"
        )
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    both = _blur(x * y) - mean_x * mean_y
    likeness = (
        (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    return float(likeness.mean())


def has_flip() -> bool:
    """Says whether `flip` can run."""
    return importlib.util.find_spec("flip_evaluator") is not None


def flip(reference: Any, candidate: Any) -> float | None:
    """Returns the mean FLIP error (LDR) over frames, 0..1, or None without the package `flip-evaluator`."""
    x, y = _pair(reference, candidate, "flip")
    if not has_flip():
        return None
    import flip_evaluator

    errors = []
    for one, other in zip(x, y, strict=True):
        pair = [
            np.ascontiguousarray(frame.clip(0, 1).transpose(1, 2, 0), np.float32) for frame in (one, other)
        ]
        _, error, _ = flip_evaluator.evaluate(*pair, "LDR", applyMagma=False)
        errors.append(error)
    return float(np.mean(errors))


def has_vmaf() -> bool:
    """Says whether the installed PyAV was built with libvmaf."""
    if importlib.util.find_spec("av") is None:
        return False
    import av.filter

    return "libvmaf" in av.filter.filters_available


def vmaf(reference: Any, candidate: Any) -> float | None:
    """Returns the mean VMAF (model vmaf_v0.6.1) over frames, 0..100, or None where PyAV lacks libvmaf.

    Small pictures are enlarged by whole pixels to at least `VMAF_SIDE` first; no codec is involved.
    """
    x, y = _pair(reference, candidate, "vmaf")
    if not has_vmaf():
        return None
    times = max(1, math.ceil(VMAF_SIDE / min(x.shape[-2:])))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "vmaf.json"
        run_filter("libvmaf", f"log_fmt=json:log_path={log}", to_pixels(x, times), to_pixels(y, times))
        scores = json.loads(log.read_text(encoding="utf-8"))
    return float(scores["pooled_metrics"]["vmaf"]["mean"])


def to_pixels(video: np.ndarray, times: int) -> np.ndarray:
    """Enlarges by whole pixels: [F, 3, H, W] in 0..1 -> uint8 [F, H * times, W * times, 3]."""
    pixels = (video.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels.repeat(times, 1).repeat(times, 2)


def run_filter(name: str, options: str, reference: np.ndarray, candidate: np.ndarray) -> None:
    """Runs a filter of PyAV that compares two videos and writes its findings to a file named in its options.

    Args:
        name: `libvmaf`, `psnr` or `ssim`; its first input is the candidate.
        options: In FFmpeg's form, such as `stats_file=/tmp/x.log`.
        reference: uint8 [F, H, W, 3].
        candidate: The same shape.
    """
    import av
    import av.filter

    graph = av.filter.Graph()
    high, wide = reference.shape[1:3]
    sources = [
        graph.add_buffer(width=wide, height=high, format="yuv444p", time_base=Fraction(1, 8))
        for _ in range(2)
    ]
    judge, sink = graph.add(name, options), graph.add("buffersink")
    for place, source in enumerate(sources):
        source.link_to(judge, 0, place)
    judge.link_to(sink)
    graph.configure()
    for time, pair in enumerate(zip(candidate, reference, strict=True)):
        for source, pixels in zip(sources, pair, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv444p"
            )
            frame.pts, frame.time_base = time, Fraction(1, 8)
            source.push(frame)
    for source in sources:
        source.push(None)
    with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            sink.pull()


def measure(reference: Any, candidate: Any) -> Fidelity:
    """Returns every metric that can run here.

    Args:
        reference: [F, 3, H, W] in 0..1.
        candidate: The same shape.
    """
    return Fidelity(
        psnr(reference, candidate),
        min(psnr_frames(reference, candidate)),
        ssim(reference, candidate),
        flip(reference, candidate),
        vmaf(reference, candidate),
    )
