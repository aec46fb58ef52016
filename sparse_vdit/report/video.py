"""Frames to files: MP4 (H.264), GIF, animated WebP, PNG, and sheets of frames for the page.

A video is [F, 3, H, W] in 0..1. Small videos are enlarged by whole pixels (nearest neighbour), so that
a pixel stays a square. Files are for looking at; metrics never read them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .files import replacing

FPS = 8
VISIBLE = 256  # pixels of the smaller side, at least
SUFFIXES = (".mp4", ".gif", ".webp", ".png")


def to_pixels(video: Any, times: int = 1) -> np.ndarray:
    """Returns uint8 [F, H * times, W * times, 3] of a video [F, 3, H, W] in 0..1; values outside are clipped.

    Raises:
        ValueError: Not four dimensions, not three channels, or a value is not finite.
    """
    array = np.asarray(video, np.float32)
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(
            f"to_pixels: the video has the shape {array.shape}, expected [frames, 3, height, width]"
        )
    if not np.isfinite(array).all():
        raise ValueError("to_pixels: the video holds a value that is not finite, expected numbers in 0..1")
    pixels = (array.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.repeat(times, 1).repeat(times, 2))


def enlargement(video: Any) -> int:
    """Returns the whole factor that brings the smaller side to at least `VISIBLE` pixels."""
    return max(1, -(-VISIBLE // int(min(np.shape(video)[-2:]))))


def difference(reference: Any, candidate: Any, gain: float = 4.0) -> np.ndarray:
    """Returns `gain` x the absolute difference in heat colours, black, red, white: [F, 3, H, W] in 0..1."""
    error = np.abs(np.asarray(reference, np.float32) - np.asarray(candidate, np.float32)).mean(
        1, keepdims=True
    )
    heat = np.clip(gain * error, 0, 1)
    return np.concatenate([np.clip(3 * heat - shift, 0, 1) for shift in (0, 1, 2)], 1)


def side_by_side(videos: Sequence[Any], gap: int = 2) -> np.ndarray:
    """Sets videos of one height beside each other, `gap` white pixels apart: [F, 3, H, sum of W + gaps]."""
    arrays = [np.asarray(video, np.float32) for video in videos]
    bar = np.ones((*arrays[0].shape[:3], gap), np.float32)
    parts = [part for array in arrays for part in (bar, array)]
    return np.concatenate(parts[1:], 3)


def write(path: Path, video: Any, *, fps: int = FPS, times: int | None = None) -> None:
    """Writes a video file, whole or not at all.

    Args:
        path: Ends in .mp4, .gif, .webp (lossless) or .png (the frames in one row).
        video: [F, 3, H, W] in 0..1.
        fps: Frames per second.
        times: Whole enlargement; as large as it takes to be seen when None.

    Raises:
        ValueError: The suffix is not one of these.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"video.write: the file ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}"
        )
    pixels = to_pixels(video, enlargement(video) if times is None else times)
    with replacing(path) as draft:
        if path.suffix == ".mp4":
            _write_mp4(draft, pixels, fps)
        elif path.suffix == ".png":
            _sheet(pixels).save(draft, format="PNG", optimize=True)
        else:
            _write_animation(draft, pixels, fps)


def _write_mp4(path: Path, pixels: np.ndarray, fps: int) -> None:
    import av

    high, wide = pixels.shape[1:3]
    pixels = np.pad(
        pixels, ((0, 0), (0, high % 2), (0, wide % 2), (0, 0)), mode="edge"
    )  # 4:2:0 wants even sides
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = pixels.shape[2], pixels.shape[1], "yuv420p"
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _write_animation(path: Path, pixels: np.ndarray, fps: int) -> None:
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pixels]
    more: dict[str, Any] = (
        {"lossless": True, "quality": 100} if path.suffix == ".webp" else {"optimize": False}
    )
    form = path.suffix[1:].upper()
    images[0].save(
        path, format=form, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, **more
    )


def _sheet(pixels: np.ndarray) -> Any:
    """All frames in one row, as an image."""
    from PIL import Image

    frames, high, wide, _ = pixels.shape
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2, 3).reshape(high, frames * wide, 3)))


def sheet_uri(video: Any) -> str:
    """Returns a PNG of all frames in one row, not enlarged, as a data URI; the page animates it."""
    file = io.BytesIO()
    _sheet(to_pixels(video)).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
