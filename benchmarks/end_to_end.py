"""Time of each stage from image files to labels, for 1, 8, 64 and 512 images with ViT-B-32.

Random weights (`--pretrained none`): the time of a matrix product does not depend on what is in
it. The images are JPEG files of 512 x 512 made here. Sizes take turns within one run; the figures
are medians. Stages that run beside the encoder (read, decode, preprocess) are sums over threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from record import machine_record, save

from kpl_engine import Engine
from kpl_engine.building import build_knowledge
from kpl_engine.export.exporter import export_encoder

STAGES = ("read", "decode", "preprocess", "encode", "text_proxies", "labels", "proxies", "total")


def make_images(folder: Path, count: int) -> list[Path]:
    """Smooth random pictures, so that they compress and decode as photographs do."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        coarse = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        path = folder / f"{index:04d}.jpg"
        Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def make_bundle(folder: Path, model: str) -> Path:
    """Encoder with random weights and a knowledge base of two classes with twelve descriptions."""
    knowledge = {
        name: [f"{word} {part}" for word in ("clear", "hazy", "dense") for part in ("apex", "base", "hilum", "pleura")]
        for name in ("normal", "effusion")
    }
    (folder / "lung.json").write_text(json.dumps(knowledge))
    export_encoder(model, "none", folder / "encoder", max_batch=8)
    build_knowledge(folder / "lung.json", folder / "encoder", folder / "lung.kpl")
    return folder / "lung.kpl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds without the largest size")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.repeats = [1, 8, 64], 2
    with tempfile.TemporaryDirectory() as scratch:
        bundle = make_bundle(Path(scratch), args.model)
        paths = make_images(Path(scratch) / "images", max(args.sizes))
        samples: dict[int, list[dict[str, float]]] = {size: [] for size in args.sizes}
        with Engine.load(bundle, "cpu") as engine:
            engine.classify(paths[:8])  # warm-up
            for _ in range(args.repeats):
                for size in args.sizes:
                    samples[size].append(dict(engine.classify(paths[:size]).timings_ms))
    rows = {
        size: {stage: statistics.median(sample.get(stage, 0.0) for sample in runs) for stage in STAGES}
        for size, runs in samples.items()
    }
    print("images  " + "".join(f"{stage:>14}" for stage in STAGES) + "    (median ms)")
    for size, row in rows.items():
        print(f"{size:6d}  " + "".join(f"{row[stage]:14.2f}" for stage in STAGES))
    record = machine_record(("kpl-engine", "onnxruntime", "numpy", "pillow"))
    record |= {"model": args.model, "repeats": args.repeats, "median_ms": rows, "samples_ms": samples}
    print(f"-> {save('end_to_end' + ('-quick' if args.quick else ''), record)}")


if __name__ == "__main__":
    main()
