"""``kpl-engine knowledge``: descriptions of classes into a bundle, out of it, or just checked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kpl_engine.building import build_knowledge
from kpl_engine.bundle import Bundle
from kpl_engine.cli.common import format_table, progress_bar, to_json, warn
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.knowledge.template import DEFAULT_TEMPLATE
from kpl_engine.knowledge.text import read_knowledge

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Register the command and its three actions."""
    parser = subparsers.add_parser(
        "knowledge",
        help="build, show or check knowledge bases",
        description="Knowledge bases: descriptions of classes, embedded once and kept in a bundle.",
        epilog="example: kpl-engine knowledge build lung.json --encoder vit-b-32.kpl -o lung.kpl",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build(actions)
    for action, help_text, argument, path_help in (
        ("show", "list the knowledge bases of a bundle", "bundle", "bundle (*.kpl folder or stored zip)"),
        ("check", "parse a knowledge file and say what it holds", "file", "knowledge file (JSON)"),
    ):
        example = f"example: kpl-engine knowledge {action} {'lung.kpl' if action == 'show' else 'lung.json'}"
        child = actions.add_parser(action, help=help_text, description=help_text.capitalize() + ".", epilog=example)
        child.add_argument(argument, type=Path, help=path_help)
        child.add_argument("--json", action="store_true", help="print a record")
    parser.set_defaults(run=run)


def _add_build(actions: Any) -> None:
    build = actions.add_parser(
        "build",
        help="embed a knowledge file into a bundle",
        description="Embed each description once. A second build embeds only what is new; other knowledge bases "
        "in the output stay.",
        epilog="example: kpl-engine knowledge build lung.json --encoder vit-b-32.kpl -o lung.kpl",
    )
    build.add_argument("file", type=Path, help="knowledge file (JSON)")
    build.add_argument("--encoder", type=Path, required=True, help="bundle with the encoder, as `export` writes it")
    build.add_argument("-o", "--output", type=Path, required=True, help="bundle to write; may be the encoder's own")
    build.add_argument("--name", help="name of the knowledge base (default: from the file name)")
    build.add_argument(
        "--template",
        help=f"prompt with {{class}} and {{feature}} (default: the one used before, or {DEFAULT_TEMPLATE!r})",
    )
    build.add_argument("--truncate", action="store_true", help="shorten texts that exceed the encoder's context")
    build.add_argument("--force", action="store_true", help="replace an output made with another encoder")
    build.add_argument("--json", action="store_true", help="print a record")


def run(args: argparse.Namespace) -> int:
    """Run one action; errors propagate to the caller with their exit codes."""
    return {"build": _build, "show": _show, "check": _check}[args.action](args)


def _build(args: argparse.Namespace) -> int:
    with progress_bar("descriptions") as progress:
        report = build_knowledge(
            args.file,
            args.encoder,
            args.output,
            name=args.name,
            template=args.template,
            truncate=args.truncate,
            force=args.force,
            progress=progress,
        )
    if args.json:
        record = {
            **_record(report.knowledge),
            "bundle": report.path,
            "embedded": report.num_embedded,
            "reused": report.num_reused,
            "notices": report.notices,
        }
        print(to_json(record))
    else:
        base = report.knowledge
        print(
            f"knowledge base {base.name!r}: {len(base.classes)} classes, {len(base.embeddings)} descriptions; "
            f"embedded {report.num_embedded}, reused {report.num_reused} -> {report.path}"
        )
    _print_notices(report.notices)
    return 0


def _show(args: argparse.Namespace) -> int:
    with Bundle.open(args.bundle) as bundle:
        bases = [
            KnowledgeBase.from_tensors(*bundle.tensors(entry["file"]), f"{bundle.path}: {entry['file']}")
            for entry in bundle.manifest.get("knowledge", {}).values()
        ]
    if args.json:
        print(to_json({"bundle": args.bundle, "knowledge": [_record(base) for base in bases]}))
        return 0
    if not bases:
        print(f"{args.bundle} holds no knowledge base; add one with: kpl-engine knowledge build")
    for base in bases:
        print(f"{base.name}: template {base.template!r}")
        print(f"fingerprint {base.fingerprint}, text encoder {base.text_fingerprint}")
        rows = [[label, str(len(group))] for label, group in zip(base.classes, base.descriptions, strict=True)]
        print(format_table(["class", "descriptions"], rows))
    return 0


def _check(args: argparse.Namespace) -> int:
    text = read_knowledge(args.file)
    counts = dict(zip(text.classes, map(len, text.descriptions), strict=True))
    if args.json:
        print(to_json({"file": args.file, "classes": counts, "notices": text.notices}))
    else:
        print(format_table(["class", "descriptions"], [[label, str(count)] for label, count in counts.items()]))
    _print_notices(text.notices)
    return 0


def _print_notices(notices: tuple[str, ...]) -> None:
    for notice in notices:
        warn(f"notice: {notice}")


def _record(base: KnowledgeBase) -> dict[str, Any]:
    return {
        "name": base.name,
        "classes": dict(zip(base.classes, map(len, base.descriptions), strict=True)),
        "template": base.template,
        "text_fingerprint": base.text_fingerprint,
        "fingerprint": base.fingerprint,
    }
