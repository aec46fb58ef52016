"""sparse-vdit explain: what a plan does, and with --why LAYER HEAD, why a head has its pattern.

sparse-vdit explain --from my-search --why 3 1
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .plan import add_origin, whole


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `explain`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "explain", help="what a plan does, and why a head has its pattern",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_origin(parser)
    parser.add_argument("--plan", type=Path, help="plan.json or its folder (default: that of the search)")
    parser.add_argument(
        "--why",
        type=whole,
        nargs=2,
        metavar=("LAYER", "HEAD"),
        help="the options of that head and why this one",
    )
    parser.add_argument("--bin", type=whole, help="noise bin, 0 is the least noisy (default: all)")
    parser.add_argument("--transformer", help="which, where there are two")
    parser.add_argument("--every", action="store_true", help="all options, not just those on the front")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the plan, or the reasons of one head."""
    from ..plan import SparsePlan
    from ..verify.folder import PLAN, Folder
    from ..verify.why import why

    folder = Folder(args.origin, args.hardware, args.batch, args.dtype)
    plan = SparsePlan.from_pretrained(args.plan if args.plan is not None else folder.folder / PLAN)
    if args.why is None:
        print(plan.summary())
        return 0
    layer, head = args.why
    print(
        why(
            folder.errors, folder.cost, plan, layer, head,
            bin_=args.bin, transformer=args.transformer, every=args.every,
        )
    )  # fmt: skip
    return 0
