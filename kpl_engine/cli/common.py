"""What the commands share: tables, progress bars, option groups. Reads the terminal, never the network."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kpl_engine.classification import Failure
from kpl_engine.config import SOLVERS, DecodeConfig, EncoderConfig, EngineConfig, MethodConfig, SolverConfig
from kpl_engine.errors import ConfigError, InputError
from kpl_engine.solver.base import Notice

__all__ = [
    "add_engine_options",
    "add_method_options",
    "check_output_folder",
    "engine_config",
    "format_table",
    "method_config",
    "printable",
    "progress_bar",
    "read_prior",
    "report_problems",
    "to_json",
    "warn",
]


def printable(text: str) -> str:
    """``text`` with everything that could move a cursor or colour a terminal escaped; file names may hold it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def warn(message: str) -> None:
    """One line on stderr."""
    print(printable(message), file=sys.stderr)


def report_problems(
    warnings: Sequence[Notice] = (), failures: Sequence[Failure] = (), notes: Sequence[str] = ()
) -> None:
    """Notes, warnings and failed images, one line each on stderr."""
    for text in notes:
        warn(f"note: {text}")
    for notice in warnings:
        warn(f"warning [{notice.code}]: {notice.message}")
    for failure in failures:
        warn(f"failed: {failure.message}")


def to_json(value: Any) -> str:
    """ASCII JSON with two-space indentation; NaN and infinities become null, since JSON has neither.

    ASCII, because a file name need not be valid in any encoding, and the reader's may not be ours.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], max_width: int | None = None) -> str:
    """Columns padded to their widest cell; numbers (a cell that parses as one) to the right.

    ``max_width`` shortens the last column so that a line fits a terminal of that many characters.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    if max_width is not None:
        widths[-1] = max(12, min(widths[-1], max_width - sum(widths[:-1]) - 2 * (len(widths) - 1)))
    lines = []
    for row in (header, *rows):
        cells = [_pad(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return "\n".join(lines)


def _pad(cell: str, width: int) -> str:
    if len(cell) > width:
        cell = cell[: width - 3] + "..."
    try:
        float(cell.rstrip("% "))
    except ValueError:
        return cell.ljust(width)
    return cell.rjust(width)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, shown only on a terminal and only after two seconds of work."""
    from tqdm import tqdm

    bar: Any = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc=title, delay=2.0, leave=False, file=sys.stderr, disable=None)
        bar.n = done
        bar.refresh() if done == total else bar.update(0)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()


def check_output_folder(path: Path) -> None:
    """Raise `InputError` when ``path`` can be no folder to write in: before the work, not after it. Makes nothing."""
    place = path
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = "is not a folder" if not place.is_dir() else "is not writable"
        raise InputError(f"cannot write to the folder {str(path)!r}: {str(place)!r} {reason}; choose another with -o")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that loads a bundle."""
    group = parser.add_argument_group("engine")
    group.add_argument("--knowledge", metavar="NAME", help="knowledge base; needed when the bundle has several")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--threads", type=int, default=0, help="threads of encoder and solver; 0 means one per core")
    group.add_argument("--decode-threads", type=int, default=2, help="threads that decode images")
    group.add_argument("--batch-size", type=int, default=8, help="most images sent through the encoder at once")
    group.add_argument("--max-pixels", type=int, default=DecodeConfig().max_pixels, help="largest image accepted")


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The settings behind `add_engine_options`; KPL_THREADS stands in for ``--threads``."""
    threads = args.threads
    from_environment = os.environ.get("KPL_THREADS")
    if threads == 0 and from_environment:
        if not from_environment.isdecimal():
            raise ConfigError(f"KPL_THREADS: expected a whole number, got {from_environment!r}")
        threads = int(from_environment)
    return EngineConfig(
        encoder=EncoderConfig(num_threads=threads, batch_size=args.batch_size),
        decode=DecodeConfig(num_threads=args.decode_threads, max_pixels=args.max_pixels),
        solver=SolverConfig(num_threads=threads),
    )


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """The numbers of the method, with their published defaults."""
    default = MethodConfig()
    group = parser.add_argument_group("method (published defaults)")
    group.add_argument("--k", type=int, default=default.k, help=f"descriptions kept per class ({default.k})")
    group.add_argument("--retrieval", choices=("mean", "per_image", "all"), default=default.retrieval)
    group.add_argument("--gamma", type=float, default=default.gamma, help=f"class prior exponent ({default.gamma})")
    group.add_argument("--tau-t", type=float, default=default.tau_t, help=f"text temperature ({default.tau_t})")
    group.add_argument("--tau-i", type=float, default=default.tau_i, help=f"image temperature ({default.tau_i})")
    group.add_argument("--alpha", type=float, default=default.alpha, help=f"hardening threshold ({default.alpha})")
    group.add_argument("--lr", type=float, default=default.lr, help=f"step size ({default.lr})")
    group.add_argument("--proxy-iters", type=int, default=default.proxy_iters, help=f"steps ({default.proxy_iters})")
    group.add_argument("--ot-iters", default=str(default.ot_iters), help="label steps, or 'converged' (20)")
    group.add_argument("--solver", choices=SOLVERS, default="auto")
    group.add_argument("--min-batch", type=int, default=None, help="fewest images to adapt to (four per class)")
    group.add_argument(
        "--prior", metavar="CLASS=SHARE,...", help="known class shares, for example normal=0.8,effusion=0.2"
    )


def method_config(args: argparse.Namespace) -> MethodConfig:
    """The settings behind `add_method_options`."""
    ot_iters: Any = args.ot_iters
    if ot_iters != "converged":
        try:
            ot_iters = int(ot_iters)
        except ValueError:
            raise ConfigError(f"--ot-iters: expected a whole number or 'converged', got {ot_iters!r}") from None
    return MethodConfig(
        k=args.k,
        retrieval=args.retrieval,
        gamma=args.gamma,
        tau_t=args.tau_t,
        tau_i=args.tau_i,
        alpha=args.alpha,
        lr=args.lr,
        proxy_iters=args.proxy_iters,
        ot_iters=ot_iters,
        solver=args.solver,
        min_batch=args.min_batch,
    )


def read_prior(text: str | None, classes: Sequence[str]) -> list[float] | None:
    """Class shares from ``name=share,...``; every class must be named once. ``None`` stays ``None``."""
    if text is None:
        return None
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            raise InputError(f"--prior: expected CLASS=SHARE,... got {part!r}") from None
        if name.strip() in shares:
            raise InputError(f"--prior: expected each class once, got {name.strip()!r} twice")
        shares[name.strip()] = share
    if set(shares) != set(classes):
        raise InputError(
            f"--prior: expected a share for every class ({', '.join(classes)}), got {', '.join(shares) or 'none'}"
        )
    return [shares[name] for name in classes]
