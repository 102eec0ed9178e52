"""What the manifest says of an exported encoder, and the hashes everything later is tied to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .environment import package_versions

if TYPE_CHECKING:
    from .load import LoadedModel
    from .to_onnx import WrittenGraph
    from .verify import Parity

__all__ = ["IMAGE", "TEXT", "TOKENIZER", "Tower", "canonical", "encoder_fields", "hash_files"]

IMAGE, TEXT, TOKENIZER = "image.onnx", "text.onnx", "tokenizer.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Tower:
    """One written graph, how far it is from the original, its width d and the hash of its files."""

    graph: WrittenGraph
    parity: Parity
    width: int
    fingerprint: str


def encoder_fields(
    loaded: LoadedModel, image: Tower, text: Tower | None, descriptor: bytes, opset: int
) -> dict[str, Any]:
    """The manifest's ``encoder``; ``descriptor`` is the tokenizer's JSON, empty without a text tower."""
    from .verify import FP32_GATES

    versions = package_versions()
    preprocess = loaded.preprocess
    size = {"height": preprocess["height"], "width": preprocess["width"]}
    fields: dict[str, Any] = {
        "name": loaded.name,
        "pretrained": loaded.pretrained,
        "source": f"open_clip {versions['open_clip']}",
        "embed_dim": image.width,
        "precision": "fp32",
        "opset": opset,
        "logit_scale": float(loaded.model.logit_scale.detach().exp().reshape(-1)[0]),
        "image": {**_graph_fields(image, "pixels"), **size},
        "text": None,
        "parity": {"image": image.parity.as_dict(), "text": None, "gates": asdict(FP32_GATES)},
        "versions": versions,
    }
    parts = [image.fingerprint, "", "", _hash_bytes(canonical(preprocess))]
    if text is not None:
        context_length = json.loads(descriptor)["context_length"]
        fields["text"] = {**_graph_fields(text, "tokens"), "context_length": context_length, "tokenizer": TOKENIZER}
        fields["parity"]["text"] = text.parity.as_dict()
        parts[1:3] = [text.fingerprint, _hash_bytes(descriptor)]
    fields["fingerprint"] = _hash_bytes("\n".join(parts).encode())
    return fields


def _graph_fields(tower: Tower, input_name: str) -> dict[str, Any]:
    return {
        "file": tower.graph.path.name,
        "data": [path.name for path in tower.graph.data],
        "input": input_name,
        "output": "features",
        "fingerprint": tower.fingerprint,
    }


def canonical(value: Any) -> bytes:
    """JSON with one spelling, so that equal content has equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _hash_bytes(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def hash_files(paths: tuple[Path, ...]) -> str:
    """sha256 over the files one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return "sha256:" + digest.hexdigest()
