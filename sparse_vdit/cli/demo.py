"""sparse-vdit demo: the embedded model, dense and sparse, side by side in one HTML report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .plan import checked


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `demo`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo", help="generate videos dense and sparse and compare them", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("sparse-vdit-demo"), help="folder for the results")
    parser.add_argument(
        "--model", type=Path, help="another checkpoint folder (config.json, weights.safetensors)"
    )
    parser.add_argument("--seeds", type=_count, default=3, help="videos, at most (default 3)")
    parser.add_argument("--steps", type=_count, default=12, help="denoising steps (default 12)")
    dial = parser.add_mutually_exclusive_group()
    dial.add_argument("--density", type=_share, default=0.25, help="mean density of the plan (default 0.25)")
    dial.add_argument(
        "--speedup", type=_factor, help="instead: how many times faster a step should be, as predicted"
    )
    parser.add_argument("--block", type=_count, default=64, help="tokens of a block (default 64)")
    parser.add_argument("--clips", type=_count, default=12, help="clips of the held-out loss (default 12)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    return parser


def _count(text: str) -> int:
    return checked(text, int, lambda value: value >= 1, "a whole number from 1 on")


def _share(text: str) -> float:
    return checked(text, float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def _factor(text: str) -> float:
    return checked(text, float, lambda value: 1 < value < 1000, "a number above 1 and below 1000")


def run(args: argparse.Namespace) -> int:
    """Run the comparison and say where the report lies."""
    from ..demo.pipeline import MODEL
    from ..demo.run import Settings
    from ..demo.run import run as compare

    found = compare(
        Settings(
            args.out, args.model or MODEL, args.seeds, args.steps, args.block, args.density, args.clips,
            not args.no_progress, args.speedup,
        )
    )  # fmt: skip
    print(summary(found))
    print(f"\nreport: {args.out / 'report.html'}")
    return 0


def summary(found: dict[str, Any]) -> str:
    """The main figures of a report as lines of text."""
    psnr = "equal" if found["psnr_db"] is None else f"{found['psnr_db']:.2f} dB"
    rise = found["heldout_loss_sparse"] / found["heldout_loss_dense"] - 1
    lines = [
        f"dense   {found['dense_s_per_step']:.3f} s per step",
        f"sparse  {found['sparse_s_per_step']:.3f} s per step, {found['speedup']:.2f} times faster "
        f"(predicted {found['speedup_predicted']:.2f}), density {found['density']:.3f}",
        f"PSNR {psnr}, SSIM {found['ssim']:.4f}, held-out loss {rise:+.2%}",
        f"search  {found['search']['options']} options per head in {found['search']['seconds_in_all']:.0f} s "
        f"({found['search']['dense_generations']:.1f} dense generations)",
    ]
    for name, control in found["controls"].items():
        other = "equal" if control["psnr_db"] is None else f"{control['psnr_db']:.2f} dB"
        worse = control["heldout_loss"] / found["heldout_loss_dense"] - 1
        lines.append(f"  {name:<9} PSNR {other}, SSIM {control['ssim']:.4f}, held-out loss {worse:+.2%}")
    families = ", ".join(f"{count} {kind}" for kind, count in found["head_families"].items())
    return "\n".join([*lines, f"heads: {families}"])
