"""Small copies of judged videos for the page: `clips.safetensors`, and whole ones as MP4 beside it.

A copy has at most `FRAMES` frames and `SIDE` pixels on its smaller side (means over whole pixels). Metrics are
measured on the videos themselves, never on these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.plan import SparsePlan
from sparse_vdit.report import page, video
from sparse_vdit.report.compare import Run

from .judge import GROUPS, Judged, Verification
from .tensors import load_arrays, save_arrays

FORMAT = "sparse_vdit.clips 1"
FILE_NAME = "clips.safetensors"
FRAMES, SIDE = 17, 192
SHOWN = 3  # clips of a group
GAIN = 4.0  # of the difference pictures

Pixels = NDArray[np.uint8]
Pairs = dict[tuple[str, int], tuple[Pixels, Pixels]]


class Clips:
    """Takes the videos of `verify` (its `keep`): small copies to memory, whole ones to MP4 files.

    Args:
        folder: of the search; videos go to `folder/videos`. None: no files.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self.pairs: Pairs = {}

    def __call__(self, group: str, number: int, dense: Run, sparse: Run) -> None:
        """Keeps a pair."""
        if number < SHOWN:
            self.pairs[group, number] = (small(dense.video), small(sparse.video))
        if self._folder is not None:
            for name, run in (("dense", dense), ("sparse", sparse)):
                video.write(self._folder / "videos" / f"{group}-{number:03d}-{name}.mp4", run.video)

    def save(self, folder: str | os.PathLike[str], plan: SparsePlan) -> Path:
        """Writes `folder/clips.safetensors`."""
        arrays = {
            f"{group}/{number:03d}/{name}": pixels
            for (group, number), pair in self.pairs.items()
            for name, pixels in zip(("dense", "sparse"), pair, strict=True)
        }
        return save_arrays(Path(folder) / FILE_NAME, FORMAT, {"plan_hash": plan.hash}, arrays)


def small(frames: NDArray[Any]) -> Pixels:
    """A copy [f, h, w, 3] in 0..255 of a video [F, 3, H, W] in 0..1."""
    count, _, high, wide = frames.shape
    chosen = np.unique(np.linspace(0, count - 1, min(count, FRAMES)).round().astype(int))
    step = -(-min(high, wide) // SIDE)
    high, wide = high // step * step, wide // step * step
    cut = np.asarray(frames, np.float32)[chosen, :, :high, :wide]
    mean = cut.reshape(len(chosen), 3, high // step, step, wide // step, step).mean(axis=(3, 5))
    return video.to_pixels(mean)


def load_clips(folder: str | os.PathLike[str], plan: SparsePlan) -> Pairs:
    """Reads `folder/clips.safetensors`; empty if there is none, or if it is of another plan.

    Raises:
        ValueError: a file that cannot be read; one sentence.
    """
    found = load_arrays(Path(folder) / FILE_NAME, FORMAT, ("plan_hash",))
    if found is None or found[0]["plan_hash"] != plan.hash:
        return {}
    pairs: Pairs = {}
    shapes = {pixels.shape for pixels in found[1].values()}
    for group in GROUPS:
        for number in range(SHOWN):
            pair = tuple(found[1].get(f"{group}/{number:03d}/{name}") for name in ("dense", "sparse"))
            if pair[0] is not None and pair[1] is not None:
                pairs[group, number] = (_checked(pair[0], shapes), _checked(pair[1], shapes))
    return pairs


def _checked(pixels: NDArray[Any], shapes: set[tuple[int, ...]]) -> Pixels:
    good = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[-1] == 3 and len(shapes) == 1
    if not good or pixels.shape[0] > FRAMES or min(pixels.shape) < 1 or max(pixels.shape) > 4096:
        raise ValueError(
            f"clips: an array is {pixels.dtype} {pixels.shape}, expected uint8 frames of one shape"
        )
    return pixels


def page_clips(
    pairs: Mapping[tuple[str, int], tuple[Pixels, Pixels]], found: Verification
) -> list[page.Clip]:
    """The pairs with their numbers, for the page."""
    made = []
    for (group, number), (dense, sparse) in pairs.items():
        judged: Sequence[Judged] = found.groups.get(group, ())
        if number >= len(judged):
            continue
        one = judged[number]
        views = [("dense", _video(dense)), ("sparse", _video(sparse))]
        views.append((f"difference × {GAIN:g}", video.difference(views[0][1], views[1][1], GAIN)))
        numbers = [
            ("PSNR", "equal" if one.psnr_db is None else f"{one.psnr_db:.1f} dB"),
            ("SSIM", f"{one.ssim:.3f}"),
            ("step", f"{one.plan_ms:.0f} ms instead of {one.dense_ms:.0f} ms"),
            ("prompt", "of the calibration" if group == GROUPS[0] else "not of the calibration"),
        ]
        sheets = [(name, video.sheet_uri(frames)) for name, frames in views]
        made.append(page.Clip(one.prompt or "(no prompt)", one.seed, sheets, numbers))
    return made


def _video(pixels: Pixels) -> NDArray[np.float32]:
    frames: NDArray[np.float32] = np.moveaxis(pixels.astype(np.float32) / np.float32(255), -1, 1)
    return frames
