"""``kpl-engine export``: an open_clip model to ONNX, compared with torch before anything is kept."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from kpl_engine.cli.common import format_table, to_json, warn
from kpl_engine.errors import ConfigError

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Export an open_clip model to a bundle: image.onnx, text.onnx, tokenizer and preprocessing data.
Needs the extra: pip install "kpl-engine[export]"

The graphs are run in ONNX Runtime against the original in torch; when they differ by more than
a gate (fp32: 1-cos 1e-6, max|difference| 1e-4 on unit features) nothing is written."""

_EPILOG = """\
examples:
  kpl-engine export --model ViT-B-32 --pretrained openai -o vit-b-32
  kpl-engine export --model ViT-B-32 --pretrained weights.safetensors -o vit-b-32
  kpl-engine export --model local-dir:biomedclip/ -o biomedclip      (works without a network)
  kpl-engine export --list siglip"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "export",
        help="turn an open_clip model into ONNX, proven equal to the original",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="architecture, local-dir:FOLDER or hf-hub:ORG/REPO")
    parser.add_argument("--pretrained", metavar="TAG|FILE|none", help="weights; none means random, for tests only")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="use this tokenizer: a Hugging Face folder, a tokenizer.json, a merges file, or 'clip'",
    )
    parser.add_argument("--no-text", action="store_true", help="export the image tower alone")
    parser.add_argument("--max-batch", type=int, default=64, metavar="N", help="largest batch compared (default 64)")
    parser.add_argument("--opset", type=int, metavar="N", help="ONNX opset (default 20)")
    parser.add_argument(
        "--external-data",
        choices=("auto", "always", "never"),
        default="auto",
        help="weights in a file beside the graph; auto: only over 2 GB",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle at -o")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--list", nargs="?", const="*", metavar="PATTERN", help="list architectures (that match PATTERN) and stop"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, print what was measured; every failure is raised."""
    if args.list is None and not (args.model and args.output):
        raise ConfigError("export needs --model and -o; see kpl-engine export --help, or --list for the names")
    # By name and only now: this module is the one door from the runtime to the room that imports torch.
    exporter = importlib.import_module("kpl_engine.export.exporter")
    if args.list is not None:
        names = exporter.architectures(args.list)
        print(to_json(names) if args.json else "\n".join(names))
        return 0 if names else 1
    report = exporter.export_encoder(
        args.model,
        args.pretrained,
        args.output,
        tokenizer=args.tokenizer,
        with_text=not args.no_text,
        max_batch=args.max_batch,
        opset=args.opset,
        external_data=args.external_data,
        overwrite=args.force,
        progress=warn,
    )
    print(to_json(_record(report)) if args.json else _summary(report))
    return 0


def _record(report: Any) -> dict[str, Any]:
    return {
        "path": report.path,
        "encoder": report.encoder,
        "preprocess": report.preprocess,
        "notes": report.notes,
        "timings_s": {name: round(seconds, 3) for name, seconds in report.timings_s.items()},
    }


def _summary(report: Any) -> str:
    encoder, parity = report.encoder, report.encoder["parity"]
    rows = [
        [
            tower,
            encoder[tower]["file"],
            f"{parity[tower]['max_abs']:.1e}",
            f"{parity[tower]['max_one_minus_cos']:.1e}",
            " ".join(map(str, parity[tower]["batches"])),
        ]
        for tower in ("image", "text")
        if encoder[tower] is not None
    ]
    table = format_table(["tower", "file", "max|diff|", "1-cos", "batches"], rows)
    title = f"{encoder['name']} ({encoder['pretrained']}), {encoder['embed_dim']} dimensions, fp32, equal to torch:"
    return f"{title}\n{table}\nwritten to {report.path}"
