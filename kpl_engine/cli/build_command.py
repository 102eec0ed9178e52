"""``kpl-engine build``: a TensorRT plan for the GPU at hand, compared with the float32 graph before it is kept."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from kpl_engine.arrays import UInt8
from kpl_engine.bundle import Bundle
from kpl_engine.cli.common import to_json, warn
from kpl_engine.config import DecodeConfig
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.select import open_driver
from kpl_engine.encoder.plans import GATES, MAX_BATCH
from kpl_engine.encoder.tensorrt_library import import_tensorrt
from kpl_engine.errors import ConfigError, ImageError
from kpl_engine.imaging.decode import decode_image
from kpl_engine.imaging.preprocess import Preprocess
from kpl_engine.imaging.sources import expand_sources

__all__ = ["add_parser", "run"]

_MAX_IMAGES = 512

_DESCRIPTION = """\
Build the image tower of a bundle for the GPU of this machine with TensorRT (10.3 to 11.x) and store
the plan in the bundle. classify, fit and eval take it with --device auto or cuda when it fits: the same
GPU model, TensorRT and graph. Plans of other GPUs and versions stay; the same one is replaced.

The precision is written into the graph: layer norms, softmax and L2 norms stay float32. A plan is kept
only when its features are those of the float32 graph (1-cos: fp32 1e-6, fp16 1e-5, bf16 2e-4, int8 and
fp8 1e-3) for every batch size; that is checked again whenever it is loaded.

A plan holds code that runs on this machine. Use bundles with plans only from where you would take a
program: checksums show damage, not intent."""

_EPILOG = """\
examples:
  kpl-engine build lung.kpl --precision fp16 --max-batch 64
  kpl-engine build lung.kpl --portable              (runs on later TensorRT of this major, and on the lean runtime)
  kpl-engine build lung.kpl --precision int8 --images unlabelled/"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "build",
        help="build a TensorRT plan for this GPU into a bundle",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="bundle (*.kpl folder or stored zip)")
    parser.add_argument("--precision", choices=tuple(GATES), default="fp16", help="default fp16")
    parser.add_argument(
        "--max-batch", type=int, default=64, metavar="N", help=f"largest batch, 1 to {MAX_BATCH} (default 64)"
    )
    parser.add_argument(
        "--portable", action="store_true", help="for any GPU of this compute capability; a little slower"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: cuda)")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="your own images, files or folders: set the ranges of int8 and fp8; labels are compared on them. "
        "None is stored",
    )
    parser.add_argument("--workspace-mb", type=int, metavar="MB", help="most memory a layer may use while building")
    parser.add_argument("--optimization-level", type=int, default=3, choices=range(6), help="0 to 5 (default 3)")
    parser.add_argument("--no-timing-cache", action="store_true", help="keep no timings in the user's cache folder")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build, print what was measured; every failure is raised and leaves the bundle as it was."""
    # By name and only now: this module is the door from the runtime to the room that needs onnx.
    builder = importlib.import_module("kpl_engine.export.to_tensorrt")
    settings = builder.BuildSettings(
        precision=args.precision,
        max_batch=args.max_batch,
        is_portable=args.portable,
        workspace_bytes=None if args.workspace_mb is None else args.workspace_mb << 20,
        optimization_level=args.optimization_level,
    )
    if args.device in ("auto", "cpu"):
        raise ConfigError(f"--device: a plan is built on a GPU: expected cuda or cuda:N, got {args.device!r}")
    with Context(open_driver(args.device)) as context:
        library = import_tensorrt()
        report = builder.build_plan(
            args.bundle,
            context,
            settings,
            images=_read_images(args.bundle, args.images) if args.images else None,
            library=library,
            timing_caches=None if args.no_timing_cache else _cache_folder(),
            progress=warn,
        )
    for note in report.notes:
        warn(f"note: {note}")
    print(to_json(_record(report)) if args.json else _summary(report))
    return 0


def _read_images(bundle_path: Path, arguments: list[str]) -> UInt8:
    """Model input (n, h, w, 3) uint8 of the images named; every one must be readable."""
    paths = expand_sources(arguments)
    if len(paths) > _MAX_IMAGES:
        warn(f"note: {len(paths)} images were named, {_MAX_IMAGES} of them are used, evenly spread")
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, _MAX_IMAGES).astype(int)]
    with Bundle.open(bundle_path, verify=False) as bundle:
        preprocess = Preprocess.from_manifest({"fill": 0, **(bundle.manifest.get("preprocess") or {})})
    pictures = []
    for path in paths:
        decoded = decode_image(path, DecodeConfig(), str(path))
        pictures.append(preprocess.apply(decoded.pixels))
    if not pictures:
        raise ImageError("--images: found no images")
    return np.stack(pictures)


def _cache_folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # the XDG rules ignore a relative one
    return root / "kpl-engine" / "timings"


def _record(report: Any) -> dict[str, Any]:
    return {
        "bundle": report.path,
        "plan": report.plan.name,
        "bytes": report.num_bytes,
        **report.plan.to_manifest(),
        "cast": report.cast,
        "notes": report.notes,
        "timings_s": {name: round(seconds, 3) for name, seconds in report.timings_s.items()},
    }


def _summary(report: Any) -> str:
    plan, parity = report.plan, report.plan.parity
    layers = ", ".join(f"{count} {name}" for name, count in parity["layers"].items()) or "not told"
    lines = [
        f"plan {plan.name}: {report.num_bytes / 1e6:.0f} MB, batches up to {plan.max_batch}, "
        f"{sum(report.timings_s.values()):.0f} s",
        f"1-cos to float32 {parity['max_one_minus_cos']:.1e} (allowed {parity['gate']:.0e}); layers by type: {layers}",
    ]
    if parity["label_agreement"] is not None:
        lines.append(f"same zero-shot labels: {parity['label_agreement']:.1%} of {parity['num_label_images']} images")
    lines.append(f"written to {report.path}")
    return "\n".join(lines)
