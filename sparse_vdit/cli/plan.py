"""sparse-vdit plan: a plan from recorded errors and this machine's constants, in a second and without the model.

    sparse-vdit plan --from my-search --speedup 1.8
    sparse-vdit plan --from errors.safetensors --hardware hardware.json --max-error 0.02 --out plans/exact

With --verify and --model it also generates videos dense and under the plan.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..plan import SparsePlan
    from ..verify.request import Request

log = logging.getLogger(__name__)

T = TypeVar("T", int, float)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `plan`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan", help="choose again from recorded errors, without the model",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_origin(parser)
    add_dials(parser)
    parser.add_argument("--out", type=Path, help="folder for plan.json (default: that of the errors)")
    add_verification(parser)
    parser.add_argument("--model", help="with --verify or --target-psnr: what was searched")
    parser.add_argument("--prompts", type=Path, help="with --verify or --target-psnr: a file of prompts")
    add_settings(parser)
    return parser


def add_origin(parser: argparse.ArgumentParser) -> None:
    """What to plan from: shared by plan, explain and report."""
    parser.add_argument(
        "--from", dest="origin", type=Path, required=True, metavar="PATH",
        help="folder of a search, or its errors.safetensors",
    )  # fmt: skip
    parser.add_argument("--hardware", type=Path, help="hardware.json (default: that of the folder)")
    parser.add_argument("--batch", type=count, help="samples of a step (default: as in stock.json, else 1)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of q, k, v (default: as in stock.json)"
    )


def add_dials(parser: argparse.ArgumentParser) -> None:
    """What is asked of the plan: shared by search and plan."""
    group = parser.add_argument_group(
        "what is asked of the plan (one of the first four; default --max-error 0.02)"
    )
    dials = group.add_mutually_exclusive_group()
    dials.add_argument(
        "--speedup", type=positive, metavar="X", help="of a whole step: least error at that speed"
    )
    dials.add_argument("--time-per-step-ms", type=positive, metavar="MS", help="a step may take so long")
    dials.add_argument(
        "--max-error", type=not_negative, metavar="E", help="mean relative error: least time at that"
    )
    dials.add_argument(
        "--target-psnr", type=positive, metavar="DB", help="by bisection over real generations"
    )
    group.add_argument(
        "--objective", choices=("budget", "paper"), default="budget", help="rule (default budget)"
    )
    group.add_argument(
        "--remainder", choices=("fitted", "zero", "none"), default="fitted", help="bias of what is left out"
    )
    group.add_argument(
        "--weights", choices=("relative", "mse", "sensitivity"), help="what a head's error counts"
    )
    group.add_argument("--kinds", nargs="+", metavar="KIND", help="only patterns of these kinds")
    group.add_argument(
        "--dense-above", type=share, metavar="LEVEL", help="steps above this noise level are dense"
    )
    group.add_argument(
        "--max-layer-error", type=not_negative, metavar="E", help="most mean error of any layer"
    )
    group.add_argument(
        "--bins",
        type=edges,
        metavar="EDGES",
        help="noise bins of the plan: 1 for one, or edges such as 0,0.3,0.6,1",
    )
    group.add_argument("--penalty", type=not_negative, default=0.5, help="lambda of the paper (default 0.5)")
    group.add_argument("--threshold", type=not_negative, help="epsilon of the paper, where no dial is given")
    group.add_argument("--mode-density", type=share, default=0.25, help="of the paper's modes (default 0.25)")


def add_verification(parser: argparse.ArgumentParser) -> None:
    """Whether and how the plan is tried: shared by search and plan."""
    group = parser.add_argument_group("verification: real generations")
    group.add_argument(
        "--verify", type=count, nargs="?", const=2, metavar="N",
        help="generate N prompts of each file dense and under the plan (default 2)",
    )  # fmt: skip
    group.add_argument(
        "--others", type=Path, metavar="FILE", help="prompts not of the calibration: the transfer test"
    )
    group.add_argument("--tries", type=count, default=6, help="plans judged for --target-psnr (default 6)")
    group.add_argument("--no-videos", action="store_true", help="write no video files")
    group.add_argument("--no-progress", action="store_true", help="say nothing on the way")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """How the pipeline is called: shared by search and plan."""
    group = parser.add_argument_group("arguments of the pipeline")
    group.add_argument("--height", type=count, help="pixels")
    group.add_argument("--width", type=count, help="pixels")
    group.add_argument("--frames", type=count, help="frames of a video")
    group.add_argument("--steps", type=count, help="denoising steps (default 30; of the embedded model 12)")
    group.add_argument("--guidance", type=not_negative, help="guidance scale")
    group.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="more arguments, values as JSON or text"
    )
    group.add_argument(
        "--model-dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16",
        help="of the weights (default bfloat16; the embedded model is float32)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=whole, default=0, help="of the first prompt's noise; the next has the next"
    )


# ---- types of arguments ----


def count(text: str) -> int:
    """An integer from 1 on."""
    return checked(text, int, lambda value: value >= 1, "a whole number from 1 on")


def whole(text: str) -> int:
    """An integer from 0 on."""
    return checked(text, int, lambda value: value >= 0, "a whole number from 0 on")


def positive(text: str) -> float:
    """A number above 0."""
    return checked(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def not_negative(text: str) -> float:
    """A number from 0 on."""
    return checked(text, float, lambda value: 0 <= value < float("inf"), "a number from 0 on")


def share(text: str) -> float:
    """A number in 0..1."""
    return checked(text, float, lambda value: 0 <= value <= 1, "a number in 0..1")


def edges(text: str) -> tuple[float, ...]:
    """Edges of noise level."""
    if text.strip() == "1":
        return (0.0, 1.0)
    return tuple(share(part) for part in text.split(","))


def checked(text: str, kind: type[T], good: Callable[[T], bool], expected: str) -> T:
    value: T | None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not good(value):
        raise argparse.ArgumentTypeError(f"{text!r} is given, expected {expected}")
    return value


# ---- the work ----


def request_of(args: argparse.Namespace) -> Request:
    """The dials as they were turned."""
    from ..verify.request import Request

    # epsilon may be that of the recording's greedy choices
    follows_choice = args.objective == "budget" and getattr(args, "follow", "dense") == "choice"
    return Request(
        objective=args.objective,
        speedup=args.speedup,
        step_ms=args.time_per_step_ms,
        max_error=args.max_error,
        target_psnr=args.target_psnr,
        remainder=args.remainder,
        weights=args.weights,
        kinds=tuple(args.kinds) if args.kinds else None,
        dense_above=args.dense_above,
        max_layer_error=args.max_layer_error,
        penalty=args.penalty,
        threshold=None if follows_choice else args.threshold,
        bins=args.bins,
        mode_density=args.mode_density,
    )


def run(args: argparse.Namespace) -> int:
    """Choose, print what is predicted, write plan.json; verify if asked."""
    from ..verify.folder import Folder

    folder = Folder(args.origin, args.hardware, args.batch, args.dtype)
    request = request_of(args)
    if args.others is not None and args.verify is None:
        raise ValueError("plan: --others is given without --verify, expected both: it takes real generations")
    if args.verify is None and request.target_psnr is None:
        plan = request.choose(folder.errors, folder.cost, folder.stock)
        out = args.out or folder.folder
        written = plan.save_pretrained(out)
        print("\n".join([*prediction(plan), f"plan: {written}"]))
        return 0
    from ..search.weights import weights_of
    from .search import open_source, prompts_of, settings_of, verified

    if args.model is None or args.prompts is None:
        raise ValueError(
            "plan: --verify and --target-psnr take real generations, expected --model and --prompts too"
        )
    if folder.stock is None:
        raise ValueError(
            "plan: there is no stock.json beside the errors, expected it for --verify and --target-psnr"
        )
    settings = {**folder.stock.settings, **settings_of(args)}
    args.steps = args.steps or folder.stock.steps
    source = open_source(
        args, {key: value for key, value in settings.items() if key not in ("steps", "model")}
    )
    if folder.stock.weights is not None and folder.stock.weights != weights_of(source.pipe):
        raise ValueError(
            f"plan: {str(folder.folder)!r} was measured on other weights than those of {args.model!r}, expected its own"
        )
    verified(args, source, folder, request, prompts_of(args.prompts, args.seed), args.out or folder.folder)
    return 0


def prediction(plan: SparsePlan) -> list[str]:
    """What a plan promises, as lines."""
    found = plan.provenance.get("predicted", {})
    lines = [
        f"density {plan.density():.3f}, mean error of the heads {found.get('mean_error', float('nan')):.4g}"
    ]
    if "attention_ms" in found:
        dense, planned = found["dense_attention_ms"], found["attention_ms"]
        times = f"attention {planned:.4g} ms a step instead of {dense:.4g} ms"
        if "step_ms" in found:
            rest = found["step_ms"] - planned
            ceiling = f"{(dense + rest) / rest:.2f}x" if rest > 0 else "none"
            times += f"; attention is {dense / (dense + rest):.0%} of your step, ceiling {ceiling}"
            times += f"; predicted step {found['step_ms']:.4g} ms, {found['speedup']:.2f}x"
        lines.append(times)
    kinds: dict[str, int] = {}
    for part in plan.transformers.values():
        for kind, number in part.families().items():
            kinds[kind] = kinds.get(kind, 0) + number
    lines.append("heads: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()))
    above = {name: part.dense_above for name, part in plan.transformers.items()}
    lines += [f"{name}: dense above noise level {level:g}" for name, level in above.items() if level < 1]
    return lines
