"""``kpl-engine bench``: MLPerf's scenarios with the answers checked, and ``bench compare`` of two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, get_args

from kpl_engine.cli.common import check_output_folder, to_json, warn
from kpl_engine.config import MethodName
from kpl_engine.errors import ConfigError

__all__ = ["add_parser", "run"]

_EPILOG = """examples:
  kpl-engine bench lung.kpl --images films/
  kpl-engine bench lung.kpl --scenario Server --find-peak --latency-bound-ms 15
  kpl-engine bench lung.kpl --url http://127.0.0.1:8000 --target-qps 200 --duration 600
  kpl-engine bench compare before/result.json after/result.json
"""
_SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
_PARTS = ("stages", "batches", "cold")


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "bench",
        help="latency and throughput by MLPerf's scenarios, with the answers checked",
        description="Run MLPerf Inference's scenarios through MLCommons LoadGen on a bundle, in process or against a "
        "running server, hold the answers to the float64 reference before and after, and write a table, a JSON file "
        "and a report in HTML. Not a result that MLCommons has verified. Needs the extra [bench].",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="kpl-engine bench BUNDLE [options]\n       kpl-engine bench compare BEFORE.json AFTER.json [--json]",
    )
    parser.add_argument("target", nargs="+", metavar="BUNDLE", help="bundle, or: compare BEFORE.json AFTER.json")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-output"), help="folder of result and report")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    _add_load(parser.add_argument_group("load"))
    _add_subject(parser.add_argument_group("what is measured"))
    compare = parser.add_argument_group("compare")
    compare.add_argument(
        "--allow-other", action="store_true", help="compare results of other machines, bundles or settings"
    )
    compare.add_argument("--fail-on-slower", action="store_true", help="exit with 1 when something became slower")
    parser.set_defaults(run=run)


def _add_load(group: Any) -> None:
    group.add_argument("--scenario", nargs="+", choices=_SCENARIOS, default=list(_SCENARIOS), help="(all four)")
    group.add_argument("--duration", type=float, default=10.0, metavar="S", help="least seconds of a scenario (10)")
    group.add_argument(
        "--target-qps", type=float, metavar="Q", help="rate of Server (70 %% of what a short closed loop reaches)"
    )
    group.add_argument("--find-peak", action="store_true", help="highest rate whose p99 keeps the latency bound")
    group.add_argument(
        "--latency-bound-ms", type=float, default=15.0, metavar="MS", help="bound of Server (15, MLPerf's for ResNet)"
    )
    group.add_argument("--url", help="http://host:8000 or grpc://host:8001 (https, grpcs): a running server")
    group.add_argument("--model", help="its name of the bundle (the file name)")
    group.add_argument("--token-file", type=Path, help="holds the server's bearer token")


def _add_subject(group: Any) -> None:
    group.add_argument("--images", nargs="+", type=Path, default=[], help="files, globs, folders (pictures made here)")
    group.add_argument(
        "--input",
        choices=("files", "pixels", "features"),
        default="files",
        help="files: decoding is measured; pixels: it is left out; features: the encoder is left out too (files)",
    )
    group.add_argument("--samples", type=int, default=64, metavar="N", help="pictures drawn from (64)")
    group.add_argument("--check-samples", type=int, default=16, metavar="N", help="answers checked each time (16)")
    group.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="sizes (1 2 4 8)")
    group.add_argument(
        "--skip", nargs="+", choices=_PARTS, default=[], help="leave out the stages, the batch sizes, the cold start"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    group.add_argument("--knowledge", help="knowledge base (the only one)")
    group.add_argument("--method", choices=get_args(MethodName), help="(what was fitted, or kpl)")
    group.add_argument("--mode", choices=("frozen", "batch"), help="(frozen)")
    group.add_argument("--seed", type=int, default=0, help="of made pictures and of the draws (0)")


def run(args: argparse.Namespace) -> int:
    """Measure or compare; exit code 1 when an answer was wrong, or a scenario ended early."""
    if args.target[0] == "compare":
        return _compare(args)
    if len(args.target) != 1:
        raise ConfigError(f"expected one bundle, got {len(args.target)}: {' '.join(args.target)}")
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from kpl_engine.bench.report import html, terminal
    from kpl_engine.bench.run import run_bench
    from kpl_engine.bench.settings import BenchSettings

    settings = BenchSettings(
        bundle=Path(args.target[0]),
        url=args.url,
        model=args.model,
        token_file=args.token_file,
        scenarios=tuple(dict.fromkeys(args.scenario)),
        duration_s=args.duration,
        target_qps=args.target_qps,
        find_peak=args.find_peak,
        latency_bound_ms=args.latency_bound_ms,
        images=tuple(args.images),
        input_kind=args.input,
        num_samples=args.samples,
        device=args.device,
        method=args.method,
        mode=args.mode,
        knowledge=args.knowledge,
        batch_sizes=tuple(sorted(set(args.batches))),
        parts=tuple(part for part in _PARTS if part not in args.skip),
        check_samples=args.check_samples,
        seed=args.seed,
    )
    check_output_folder(args.output)
    with _progress() as progress:
        result = run_bench(settings, args.output / "result.json", progress)
    report = args.output / "report.html"
    try:
        report.write_text(html.render(result), encoding="utf-8")
    except OSError as error:  # the result is on disk already
        warn(f"the figures are in {args.output / 'result.json'}, but the report could not be written: {error}")
    print(to_json(result) if args.json else terminal.render(result, get_terminal_size().columns))
    warn(f"-> {args.output / 'result.json'}, {report}")
    return 0 if result["status"] == "complete" else 1


def _compare(args: argparse.Namespace) -> int:
    from kpl_engine.bench.compare import compare, comparison_record
    from kpl_engine.bench.report import terminal
    from kpl_engine.bench.results import read_result

    if len(args.target) != 3:
        raise ConfigError("compare: expected two results, kpl-engine bench compare BEFORE.json AFTER.json")
    before, after = (read_result(Path(path)) for path in args.target[1:])
    found = compare(before, after, allow_other=args.allow_other)
    print(to_json(comparison_record(found)) if args.json else terminal.render_comparison(found))
    is_slower = any(row.verdict == "slower" for row in found.rows)
    return 1 if args.fail_on_slower and is_slower else 0


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A line on stderr that says what runs now and how far it is, on a terminal only."""
    is_terminal = sys.stderr.isatty()

    def show(what: str, share: float) -> None:
        if is_terminal:
            print(f"\r\x1b[K{what} {share:.0%}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
