"""Make everything the demo ships: test images, checkpoint, exported encoder, knowledge base, `demo.kpl`.

    python tests/phantom/build_demo.py                 # from the committed checkpoint
    python tests/phantom/build_demo.py --retrain       # train the checkpoint first

Synthetic phantoms only: not for clinical use. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from generator import write_images

from kpl_engine.building import build_knowledge
from kpl_engine.export.exporter import export_encoder

__all__ = ["CHECKPOINT", "KNOWLEDGE", "KNOWLEDGE_NAME", "TEMPLATE", "build_bundle"]

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "kpl_engine" / "data"
CHECKPOINT = HERE / "phantom-clip-v1"  # the folder's name is the encoder's name in the manifest
KNOWLEDGE = HERE / "knowledge.json"
KNOWLEDGE_NAME = "chest"
# the published template, and of those tried the best for zeroshot on the check films
TEMPLATE = "a photo of a {class}, which has {feature}"
MAX_BATCH = 32


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build_bundle(checkpoint: Path, output: Path) -> Path:
    """Export ``checkpoint`` and embed the knowledge file; what was at ``output`` is replaced."""
    with tempfile.TemporaryDirectory() as work:
        encoder, fresh = Path(work) / "encoder", Path(work) / "fresh.kpl"
        export_encoder(f"local-dir:{checkpoint}", None, encoder, max_batch=MAX_BATCH, progress=_progress)
        build_knowledge(KNOWLEDGE, encoder, fresh, name=KNOWLEDGE_NAME, template=TEMPLATE)
        if output.exists():
            shutil.rmtree(output)
        shutil.copytree(fresh, output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="open_clip local-dir checkpoint to export")
    parser.add_argument("--retrain", action="store_true", help="train the checkpoint first")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that gets images/ and demo.kpl/")
    options = parser.parse_args()
    if options.retrain:
        from train import train

        train(options.checkpoint)
    size = write_images(options.data / "images")
    _progress(f"{options.data / 'images'}: {size} bytes")
    bundle = build_bundle(options.checkpoint, options.data / "demo.kpl")
    total = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    _progress(f"{bundle}: {total} bytes")


if __name__ == "__main__":
    main()
