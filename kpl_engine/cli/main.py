"""The door of ``kpl-engine``: one sub-command a file, errors to exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kpl_engine import __version__
from kpl_engine.cli import (
    classify_command,
    demo_command,
    doctor_command,
    eval_command,
    export_command,
    fit_command,
    knowledge_command,
)
from kpl_engine.errors import KplError

__all__ = ["build_parser", "main"]

_COMMANDS = (
    demo_command,
    export_command,
    knowledge_command,
    fit_command,
    classify_command,
    eval_command,
    doctor_command,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with every sub-command."""
    parser = argparse.ArgumentParser(
        prog="kpl-engine",
        description="Knowledge-enhanced zero-shot classification of medical images. Not a medical device.",
        epilog="exit codes: 0 done, 1 failed or some images failed, 2 bad usage or input",
    )
    parser.add_argument("--version", action="version", version=f"kpl-engine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed, 2 bad usage or input, 130 interrupted."""
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KplError as error:
        print(f"kpl-engine {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("kpl-engine: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) left. Keep the interpreter from complaining while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
