"""``kpl-engine classify``: a bundle and images in, a table, JSON or CSV out."""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kpl_engine.classification import Classification
from kpl_engine.cli.common import (
    add_engine_options,
    add_method_options,
    engine_config,
    format_table,
    method_config,
    progress_bar,
    read_prior,
    report_problems,
    to_json,
)
from kpl_engine.engine import Engine
from kpl_engine.imaging.sources import expand_sources

__all__ = ["add_parser", "classification_record", "classification_table", "run"]

_METHODS = ("zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta")


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "classify",
        help="label images",
        description="Label images with a bundle. Adapts to all images given together (mode batch).",
        epilog="example: kpl-engine classify lung.kpl films/ --csv > labels.csv",
    )
    parser.add_argument("bundle", type=Path, help="bundle (*.kpl folder or stored zip)")
    parser.add_argument("images", nargs="+", help="files, globs, folders, or - for a list of paths on stdin")
    parser.add_argument("--method", choices=_METHODS, default=None, help="default: kpl; in mode frozen what was fitted")
    parser.add_argument("--mode", choices=("batch", "frozen"), default="batch")
    parser.add_argument("--top", type=int, default=2, metavar="N", help="descriptions shown per image")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="everything, as JSON")
    output.add_argument("--csv", action="store_true", help="one line per image, as CSV")
    add_engine_options(parser)
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Classify; exit code 1 when some images failed."""
    paths = expand_sources(args.images, sys.stdin)
    with Engine.load(args.bundle, args.device, engine_config(args)) as engine, progress_bar("images") as progress:
        base = engine.knowledge(args.knowledge)
        result = engine.classify(
            paths,
            args.method,
            args.mode,
            knowledge=base.name,
            prior=read_prior(args.prior, base.classes),
            settings=method_config(args),
            top_evidence=args.top,
            progress=progress,
        )
        notices = engine.notices
    if args.json:
        print(to_json(classification_record(result, notices)))
    elif args.csv:
        print(_to_csv(result), end="")
    else:
        print(classification_table(result))
        print(f"\n{_summary(result)}")
    report_problems(result.warnings, result.failures, notices)
    return 1 if result.failures else 0


def classification_table(result: Classification, positions: Sequence[int] | None = None) -> str:
    """File, label, probability, best descriptions and text-proxy label, of all images or those at ``positions``."""
    rows = []
    for i in range(len(result.names)) if positions is None else positions:
        name = result.names[i]
        if result.labels[i] is None:
            rows.append([Path(name).name, "failed", "-", "-", "-"])
            continue
        reasons = "; ".join(f"{e.description} ({e.similarity:.3f})" for e in result.evidence[i])
        label, text_label = str(result.labels[i]), str(result.text_labels[i])
        if result.is_undecided[i]:
            label += " (undecided)"
        probability = float(result.probabilities[i, result.class_indices[i]])
        rows.append([Path(name).name, label, f"{probability:.3f}", text_label, reasons])
    width = shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else None
    return format_table(["file", "label", "prob", "text proxy", "best-matching descriptions (cosine)"], rows, width)


def classification_record(result: Classification, notices: tuple[str, ...] = ()) -> dict[str, Any]:
    """The whole answer as plain data, what ``--json`` prints."""
    failed = {failure.index: failure.message for failure in result.failures}
    images = []
    for i, name in enumerate(result.names):
        entry: dict[str, Any] = {"file": name, "label": result.labels[i]}
        if i in failed:
            entry["error"] = failed[i]
        else:
            entry |= {
                "probability": float(result.probabilities[i, result.class_indices[i]]),
                "margin": float(result.margins[i]),
                "undecided": bool(result.is_undecided[i]),
                "probabilities": dict(zip(result.classes, result.probabilities[i].tolist(), strict=True)),
                "text_label": result.text_labels[i],
                "evidence": [
                    {"description": e.description, "similarity": e.similarity, "kept": e.is_kept}
                    for e in result.evidence[i]
                ],
            }
        images.append(entry)
    return {
        "knowledge": result.knowledge,
        "method": result.method,
        "method_used": result.method_used,
        "mode": result.mode,
        "classes": list(result.classes),
        "images": images,
        "num_failed": len(result.failures),
        "agreement_with_text_proxy": result.agreement,
        "warnings": [{"code": notice.code, "message": notice.message} for notice in result.warnings],
        "notices": list(notices),
        "timings_ms": {stage: round(ms, 3) for stage, ms in result.timings_ms.items()},
    }


def _to_csv(result: Classification) -> str:
    buffer = io.StringIO()
    # Before Python 3.13 a lone carriage return is not quoted, and no CSV reader takes it bare.
    is_odd = any("\r" in name for name in result.names)
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if is_odd else csv.QUOTE_MINIMAL)
    writer.writerow(["file", "label", "probability", "margin", "text_label", *result.classes, "error"])
    failed = {failure.index: failure.message for failure in result.failures}
    for i, name in enumerate(result.names):
        if i in failed:
            writer.writerow([name, "", "", "", "", *[""] * len(result.classes), failed[i]])
            continue
        row = result.probabilities[i]
        numbers = [f"{value:.6f}" for value in row]
        top, margin = f"{row[result.class_indices[i]]:.6f}", f"{result.margins[i]:.6f}"
        writer.writerow([name, result.labels[i], top, margin, result.text_labels[i], *numbers, ""])
    return buffer.getvalue()


def _summary(result: Classification) -> str:
    used = result.method if result.method == result.method_used else f"{result.method_used} (asked: {result.method})"
    answered = int(result.is_ok.sum())
    failed = f", {len(result.failures)} failed" if result.failures else ""
    agreement = f", labels agree with the text proxy on {result.agreement:.0%}" if answered else ""
    seconds = result.timings_ms["total"] / 1e3
    return f"{answered} images{failed}; method {used}, mode {result.mode}{agreement}; {seconds:.2f} s"
