"""sparse-vdit calibrate: measures what this machine takes for the pieces of an attention call -> hardware.json."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..search.hardware import Hardware, Machine

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `calibrate`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "calibrate", help="measure this machine for the cost model", description=__doc__
    )
    parser.add_argument(
        "--out", type=Path, default=Path("hardware.json"), help="file to write; entries of this machine stay"
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="per head size; 20 to 60 is enough (default 30)"
    )
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64], metavar="D", help="default 64")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of q, k and v"
    )
    parser.add_argument(
        "--block", type=int, nargs="+", default=[64], metavar="N", help="tokens per block: one number, or of "
        "queries and of keys (default 64)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print the constants and the check, write the file."""
    from ..search.calibration import calibrate
    from ..search.hardware import Machine

    if len(args.block) > 2:
        raise ValueError(f"calibrate: --block has {len(args.block)} numbers, expected 1 or 2")
    machine = _known(args.out, Machine.here())
    for head_dim in args.head_dim:
        found = calibrate(
            dtype=args.dtype,
            head_dim=head_dim,
            block_q=args.block[0],
            block_k=args.block[-1],
            seconds=args.seconds,
            progress=not args.quiet,
        )
        machine = machine.with_entries([found])
        written = machine.save(args.out)  # what is measured is kept, whatever happens to the next one
        print("\n".join(_lines(found)))
        if found.is_doubtful:
            logger.warning("calibrate: %s", found.doubt)
    print(f"written to {written}: {len(machine.entries)} entries")
    return 0


def _known(path: Path, here: Machine) -> Machine:
    """This machine, with the entries of the file if they are its own."""
    from ..search.hardware import Machine, file_of

    if not file_of(path).exists():
        return here
    old = Machine.load(path)
    difference = here.difference(old)
    if difference is None:
        return here.with_entries(old.entries)
    logger.warning("calibrate: the entries of %s are dropped: %s", path, difference)
    return here


def _lines(hardware: Hardware) -> list[str]:
    from ..search.hardware import NAMES

    dtype, head_dim, block_q, block_k = hardware.key
    lines = [f"{hardware.engine}: {dtype}, head_dim {head_dim}, blocks {block_q} x {block_k}"]
    for name in NAMES:
        value = f"{hardware[name]:.3f}" if name.endswith("_us") else f"{hardware[name]:.0f}"
        lines.append(f"  {name:<13} {value:>12}")
    lines.append(
        f"check: mixed layers, predicted against measured: median {100 * hardware.median_error:.1f} %, worst "
        f"{100 * hardware.worst_error:.1f} %"
    )
    return lines
