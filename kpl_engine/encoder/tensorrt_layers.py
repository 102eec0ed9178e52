"""What TensorRT's inspector says of a plan's layers, in every spelling we read of."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import suppress

__all__ = ["count_types"]

_SPELLINGS = {
    "fp16": re.compile(r"\b(?:fp16|half|float16)\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(?:bf16|bfloat16)\b", re.IGNORECASE),
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp8": re.compile(r"\b(?:fp8|e4m3\w*)\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(?:fp32|float|float32)\b", re.IGNORECASE),
}


def count_types(text: str) -> Counter[str]:
    """Types of the layers' outputs in the inspector's JSON; its form is no promise, so nothing of it is required."""
    counts: Counter[str] = Counter()
    with suppress(ValueError, AttributeError, TypeError):
        for layer in json.loads(text).get("Layers", ()):
            said = " ".join(
                str(output.get(key, ""))
                for output in layer.get("Outputs", ())
                for key in ("Format/Datatype", "Datatype", "DataType")
            )
            counts.update(name for name, spelling in _SPELLINGS.items() if spelling.search(said))
    return counts
