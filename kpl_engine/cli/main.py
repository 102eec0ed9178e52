"""The door of ``kpl-engine``: one sub-command a file, errors to exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

from kpl_engine import __version__
from kpl_engine.errors import KplError

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """The parser with every sub-command."""
    # Here and not above, so that `main` is there to answer a Ctrl-C while they load.
    from kpl_engine.cli import (
        bench_command,
        build_command,
        classify_command,
        demo_command,
        doctor_command,
        eval_command,
        export_command,
        fit_command,
        knowledge_command,
        serve_command,
    )

    parser = argparse.ArgumentParser(
        prog="kpl-engine",
        description="Knowledge-enhanced zero-shot classification of medical images. Not a medical device.",
        epilog="exit codes: 0 done, 1 failed or some images failed, 2 bad usage or input",
    )
    parser.add_argument("--version", action="version", version=f"kpl-engine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo_command.add_parser(commands)
    export_command.add_parser(commands)
    build_command.add_parser(commands)
    knowledge_command.add_parser(commands)
    fit_command.add_parser(commands)
    classify_command.add_parser(commands)
    eval_command.add_parser(commands)
    serve_command.add_parser(commands)
    bench_command.add_parser(commands)
    doctor_command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed, 2 bad usage or input, 130 interrupted."""
    title = "kpl-engine"
    try:
        if not _prepare_streams():
            print(f"{title}: standard output is closed; send it to a file or to /dev/null", file=sys.stderr)
            return 2
        args = build_parser().parse_args(argv)
        title = f"kpl-engine {args.command}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; what matters is raised as well
            code: int = args.run(args)
        sys.stdout.flush()
    except KplError as error:
        print(f"{title}: {_printable_lines(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("kpl-engine: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_stdout()  # the reader (head, less) left
        return 1
    except ImportError as error:  # also what a Ctrl-C becomes inside the start-up of some compiled packages
        print(f"{title}: a package cannot be loaded: {error}; try again, or install kpl-engine again", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"{title}: not enough memory; give fewer images at once, or smaller ones", file=sys.stderr)
        return 1
    except OSError as error:
        place = f"{error.filename!a}: " if error.filename is not None else ""
        print(f"{title}: {place}{error.strerror or error}", file=sys.stderr)
        _flush_or_discard()
        return 1
    return code


def _prepare_streams() -> bool:
    """Make the three streams fit for any file name; False when standard output is closed."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if sys.stderr is None:
        # The next file opened would become descriptor 2, and libraries write their complaints there.
        while os.open(os.devnull, os.O_WRONLY) < 2:
            pass
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115  as long as the process
    return sys.stdout is not None


def _printable_lines(text: str) -> str:
    from kpl_engine.cli.common import printable

    return "\n".join(printable(line) for line in text.split("\n"))


def _flush_or_discard() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_stdout()


def _discard_stdout() -> None:
    """Keep the interpreter from complaining, while it shuts down, about output that nobody takes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
