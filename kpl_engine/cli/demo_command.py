"""``kpl-engine demo``: the main job on the embedded model and images."""

from __future__ import annotations

import argparse
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

from kpl_engine.classification import Classification
from kpl_engine.cli.classify_command import classification_record, classification_table
from kpl_engine.cli.common import check_output_folder, format_table, progress_bar, report_problems, to_json, warn
from kpl_engine.cli.eval_command import evaluation_record, methods_table
from kpl_engine.config import MethodName
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.engine import Engine
from kpl_engine.errors import InputError
from kpl_engine.evaluate import Evaluation, evaluate
from kpl_engine.imaging.decode import decode_image
from kpl_engine.imaging.sources import list_images
from kpl_engine.pictures import Tile, draw_confusion, draw_contact_sheet

__all__ = ["add_parser", "run"]

_NOTICE = "Synthetic phantoms and a small model trained on them: not for clinical use."
_METHODS: tuple[MethodName, ...] = ("zeroshot", "proxy", "inmap", "kpl")
_STAGES = ("read", "decode", "preprocess", "encode", "text_proxies", "labels", "proxies", "total")


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        help="classify the bundled images with the bundled model",
        description=f"Classify the bundled images with the bundled model. {_NOTICE}",
        epilog="example: kpl-engine demo --output demo-output",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("demo-output"), help="folder for the pictures")
    parser.add_argument("--rows", type=int, default=20, help="rows of the table to print; 0 prints all")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the main job; exit code 1 when an image failed."""
    if args.rows < 0:
        raise InputError(f"--rows: expected a number >= 0, got {args.rows}")
    check_output_folder(args.output)
    started = perf_counter()
    root = demo_images()
    with Engine.load(demo_bundle()) as engine, progress_bar("images") as progress:
        load_ms = (perf_counter() - started) * 1e3
        report = evaluate(engine, root, methods=_METHODS, progress=progress)
        result = engine.classify(list_images(root), progress=progress)
    sheet, confusion = args.output / "contact-sheet.png", args.output / "confusion-kpl.png"
    problem = _draw(report, result, sheet, confusion)
    if args.json:
        record = {"load_ms": load_ms, "answers": classification_record(result)}
        record["evaluation"] = evaluation_record(report, [confusion] * len(report.results))
        print(to_json(record))
    else:
        _print(report, result, load_ms, args.rows)
        print(f"\npictures: {'none' if problem else f'{sheet}, {confusion}'}\n{_NOTICE}")
    if problem:
        warn(f"the figures are complete, but the pictures could not be written: {problem}")
    return 1 if result.failures or problem else 0


def _draw(report: Evaluation, result: Classification, sheet: Path, confusion: Path) -> str:
    """Both pictures; says what went wrong, because a full disk must not cost the figures."""
    heading = "kpl on the bundled phantoms"
    try:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        _draw_sheet(report, result, sheet)
        draw_confusion(report["kpl"].metrics.confusion, report.classes, confusion, heading=heading)
    except OSError as error:
        return str(error)
    return ""


def _print(report: Evaluation, result: Classification, load_ms: float, num_rows: int) -> None:
    by_class = _by_class(result)
    in_turn = [index for group in zip_longest(*by_class.values()) for index in group if index is not None]
    print(classification_table(result, sorted(in_turn[: num_rows or None])))
    if 0 < num_rows < len(result.names):
        print(f"... {len(result.names) - num_rows} more (--rows 0 prints all)")
    print(f"\naccuracy on the {len(report.truth)} bundled images:\n{methods_table(report)}")
    best = max(report.results, key=lambda entry: entry.metrics.accuracy).method
    print(f"best on these phantoms: {best}. It depends on model and images: try yours with `kpl-engine eval`.")
    rows = [["load the bundle", f"{load_ms:.1f}"]]
    rows += [[stage.replace("_", " "), f"{result.timings_ms[stage]:.1f}"] for stage in _STAGES]
    print(f"\ntime of each stage, {len(result.names)} images:\n{format_table(['stage', 'ms'], rows)}")
    report_problems(result.warnings)


def _by_class(result: Classification) -> dict[str, list[int]]:
    """Positions of the images of every class folder."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(result.names):
        found.setdefault(Path(name).parent.name, []).append(index)
    return found


def _draw_sheet(report: Evaluation, result: Classification, path: Path) -> None:
    """Five images of every class folder."""
    tiles = [_tile(result, index, folder) for folder, found in _by_class(result).items() for index in found[:5]]
    figures = ", ".join(f"{r.method} {100 * r.metrics.accuracy:.1f} %" for r in report.results)
    draw_contact_sheet(tiles, path, heading=f"kpl-engine demo (synthetic, not for clinical use): {figures}")


def _tile(result: Classification, index: int, truth: str) -> Tile:
    label = result.labels[index]
    if label is None:
        raise RuntimeError(f"a bundled image failed: {result.failures}")
    probability = float(result.probabilities[index, result.class_indices[index]])
    reasons = (f"{e.similarity:.2f} {e.description}" for e in result.evidence[index])
    lines = (f"true: {truth}; text proxy: {result.text_labels[index]}", *reasons)
    pixels = decode_image(Path(result.names[index])).pixels
    return Tile(pixels, f"{label} {probability:.2f}", lines, is_right=label == truth)
