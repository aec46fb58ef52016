"""sparse-vdit report: everything in a search's folder as one HTML file, without the model.

sparse-vdit report --from my-search
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

from .plan import add_origin

log = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `report`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "report", help="a search as one HTML page",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_origin(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it lies."""
    from ..verify.folder import Folder
    from ..verify.page import check_packages, write_report

    check_packages()
    print(f"report: {write_report(Folder(args.origin, args.hardware, args.batch, args.dtype))}")
    return 0
