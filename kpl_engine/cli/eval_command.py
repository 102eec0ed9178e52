"""``kpl-engine eval``: accuracy of every method on a labelled folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kpl_engine.cli.common import (
    add_engine_options,
    add_method_options,
    check_output_folder,
    engine_config,
    format_table,
    method_config,
    progress_bar,
    read_prior,
    report_problems,
    to_json,
    warn,
)
from kpl_engine.engine import Engine
from kpl_engine.evaluate import ALL_METHODS, PUBLISHED_ORDER, Evaluation, MethodResult, evaluate
from kpl_engine.pictures import draw_confusion

__all__ = ["add_parser", "evaluation_record", "methods_table", "run"]


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "eval",
        help="accuracy of every method on a labelled folder",
        description="Accuracy on an ImageFolder layout (FOLDER/<class>/*, or FOLDER/val/<class>/*). The three figures "
        "that the published program prints come first, in its order.",
        epilog="example: kpl-engine eval lung.kpl Shenzhen/ --output report/",
    )
    parser.add_argument("bundle", type=Path, help="bundle (*.kpl folder or stored zip)")
    parser.add_argument("folder", type=Path, help="folder with one sub-folder of images per class")
    parser.add_argument("--methods", nargs="+", choices=ALL_METHODS, default=list(ALL_METHODS))
    parser.add_argument("--show", choices=ALL_METHODS, default="kpl", help="method of the per-class table (kpl)")
    parser.add_argument("-o", "--output", type=Path, default=Path("eval-output"), help="folder for the pictures")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_engine_options(parser)
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate; exit code 1 when some images failed, or a picture could not be written."""
    check_output_folder(args.output)
    with Engine.load(args.bundle, args.device, engine_config(args)) as engine, progress_bar("images") as progress:
        base = engine.knowledge(args.knowledge)
        report = evaluate(
            engine,
            args.folder,
            methods=args.methods,
            knowledge=base.name,
            settings=method_config(args),
            prior=read_prior(args.prior, base.classes),
            progress=progress,
        )
    pictures, problem = _draw_all(report, args.output)
    if args.json:
        print(to_json(evaluation_record(report, pictures)))
    else:
        _print_report(report, args.show, pictures)
    report_problems((), report.failures, report.notices)
    if problem:
        warn(f"the figures are complete, but not all pictures could be written: {problem}")
    return 1 if report.failures or problem else 0


def _draw_all(report: Evaluation, folder: Path) -> tuple[list[Path | None], str]:
    """A confusion matrix per method, ``None`` where it could not be written, and why: the figures outlive that."""
    pictures: list[Path | None] = []
    problem = ""
    for result in report.results:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pictures.append(_draw(report, result, folder))
        except OSError as error:
            pictures.append(None)
            problem = str(error)
    return pictures, problem


def _draw(report: Evaluation, result: MethodResult, folder: Path) -> Path:
    path = folder / f"confusion-{result.method}.png"
    heading = f"{result.method}: top-1 {result.metrics.accuracy:.1%} of {result.metrics.num_images}"
    draw_confusion(result.metrics.confusion, report.classes, path, heading=heading)
    return path


def _print_report(report: Evaluation, show: str, pictures: Sequence[Path | None]) -> None:
    for title, method in PUBLISHED_ORDER:
        print(f"accuracy of {title}: {100 * report[method].metrics.accuracy:.2f}")
    print(f"\n{methods_table(report)}")
    shown = next((result for result in report.results if result.method == show), report.results[0])
    print(f"\nper class, {shown.method}:\n{_class_table(report, shown)}")
    print(f"\nconfusion matrices: {', '.join(str(path) for path in pictures if path) or 'none'}")
    codes: dict[tuple[str, str], list[str]] = {}
    for result in report.results:
        for notice in result.answers.warnings:
            codes.setdefault((notice.code, notice.message), []).append(result.method)
    for (code, message), methods in codes.items():
        warn(f"warning [{code}] {', '.join(methods)}: {message}")


def methods_table(report: Evaluation) -> str:
    """One row per method: top-1, balanced accuracy, macro-F1, AUROC, ECE."""
    rows = []
    for result in report.results:
        m = result.metrics
        used = "" if result.answers.method_used == result.method else f"answered by {result.answers.method_used}"
        figures = [100 * m.accuracy, 100 * m.balanced_accuracy, 100 * m.macro_f1]
        rows.append([result.method, *(f"{x:.2f}" for x in figures), f"{m.auroc:.4f}", f"{m.ece:.4f}", used])
    return format_table(["method", "top-1 %", "balanced %", "macro-F1 %", "AUROC", "ECE", ""], rows)


def _class_table(report: Evaluation, result: MethodResult) -> str:
    rows = [
        [name, str(m.support), *(f"{100 * x:.2f}" for x in (m.precision, m.recall, m.f1)), f"{m.auroc:.4f}"]
        for name, m in zip(report.classes, result.metrics.per_class, strict=True)
    ]
    return format_table(["class", "images", "precision %", "recall %", "F1 %", "AUROC"], rows)


def evaluation_record(report: Evaluation, pictures: Sequence[Path | None]) -> dict[str, Any]:
    """The whole evaluation as plain data, what ``--json`` prints."""
    methods = {}
    for result, picture in zip(report.results, pictures, strict=True):
        m = result.metrics
        methods[result.method] = {
            "method_used": result.answers.method_used,
            "top1": m.accuracy,
            "balanced_accuracy": m.balanced_accuracy,
            "macro_f1": m.macro_f1,
            "auroc": m.auroc,
            "ece": m.ece,
            "confusion": m.confusion,
            "confusion_png": picture,
            "per_class": {
                name: {"images": k.support, "precision": k.precision, "recall": k.recall, "f1": k.f1, "auroc": k.auroc}
                for name, k in zip(report.classes, m.per_class, strict=True)
            },
            "warnings": [{"code": w.code, "message": w.message} for w in result.answers.warnings],
            "timings_ms": dict(result.answers.timings_ms),
        }
    return {
        "folder": report.root,
        "num_images": len(report.truth),
        "num_failed": len(report.failures),
        "classes": list(report.classes),
        "published": {title: 100 * report[method].metrics.accuracy for title, method in PUBLISHED_ORDER},
        "methods": methods,
        "failures": [{"file": f.name, "error": f.message} for f in report.failures],
        "notices": list(report.notices),
    }
