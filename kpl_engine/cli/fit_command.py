"""``kpl-engine fit``: proxies from unlabelled images, kept in the bundle for mode ``frozen``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from kpl_engine.building import add_proxies, check_target
from kpl_engine.cli.common import (
    add_engine_options,
    add_method_options,
    engine_config,
    method_config,
    progress_bar,
    read_prior,
    report_problems,
    to_json,
)
from kpl_engine.engine import Engine
from kpl_engine.imaging.sources import expand_sources

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "fit",
        help="learn proxies from unlabelled images, for classify --mode frozen",
        description="Learn one vision proxy per class from unlabelled images and store them in the bundle.",
        epilog="example: kpl-engine fit lung.kpl unlabelled/ && kpl-engine classify lung.kpl new.png --mode frozen",
    )
    parser.add_argument("bundle", type=Path, help="bundle (*.kpl folder)")
    parser.add_argument("images", nargs="+", help="files, globs, folders, or - for a list of paths on stdin")
    parser.add_argument("--method", choices=("zeroshot", "proxy", "inmap", "kpl", "kpl_stream"), default="kpl")
    parser.add_argument("-o", "--output", type=Path, help="write to another bundle instead of this one")
    parser.add_argument("--json", action="store_true", help="print a record")
    add_engine_options(parser)
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit and store; exit code 1 when some images failed (the others were used)."""
    check_target(args.bundle, args.output)
    paths = expand_sources(args.images, sys.stdin)
    with Engine.load(args.bundle, args.device, engine_config(args)) as engine, progress_bar("images") as progress:
        base = engine.knowledge(args.knowledge)
        prior = read_prior(args.prior, base.classes)
        frozen, answers = engine.fit(
            paths,
            args.method,
            knowledge=base.name,
            prior=prior,
            settings=method_config(args),
            progress=progress,
        )
    entry = {"method": frozen.method, "num_images": frozen.num_images, "knowledge_fingerprint": base.fingerprint}
    target = add_proxies(args.bundle, base.name, *frozen.to_tensors(), entry, args.output)
    counts = Counter(label for label in answers.labels if label is not None)
    record = {
        "bundle": target,
        "knowledge": base.name,
        "method": frozen.method,
        "num_images": frozen.num_images,
        "num_failed": len(answers.failures),
        "labels": dict(sorted(counts.items())),
        "warnings": [{"code": notice.code, "message": notice.message} for notice in answers.warnings],
    }
    if args.json:
        print(to_json(record))
    else:
        shares = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        print(f"fitted {frozen.method} proxies for {base.name!r} on {frozen.num_images} images ({shares}) -> {target}")
    report_problems(answers.warnings, answers.failures)
    return 1 if answers.failures else 0
