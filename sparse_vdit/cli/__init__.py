"""The command line: one file here per subcommand, each with `add_parser(subparsers)` and `run(args) -> int`.

A subcommand's file imports what is heavy inside `run`. Errors are one line on stderr and exit code 1;
`--debug` shows the traceback. Next: doctor.py.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import pkgutil
import sys
from collections.abc import Callable, Sequence


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand found in this folder."""
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="sparse-vdit", description="Sparse attention for diffusers' video transformers."
    )
    parser.add_argument("--version", action="version", version=f"sparse-vdit {__version__}")
    _add_debug(parser, default=False)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for found in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        module = importlib.import_module(f".{found.name}", __name__)
        subparser = module.add_parser(subparsers)
        # After the subcommand too; SUPPRESS keeps it from resetting the one before it.
        _add_debug(subparser, default=argparse.SUPPRESS)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except KeyboardInterrupt:
        print("sparse-vdit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if args.debug:
            raise
        print(f"sparse-vdit {args.command}: {_sentence(error)}", file=sys.stderr)
        return 1


def _add_debug(parser: argparse.ArgumentParser, default: bool | str) -> None:
    parser.add_argument("--debug", action="store_true", default=default, help="show an error's traceback")


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
