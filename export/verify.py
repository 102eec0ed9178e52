"""The exported graph in ONNX Runtime against the original model in torch, on the same random inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from kpl_engine.arrays import Float32, Ints, UInt8
from kpl_engine.encoder.tokenize import load_tokenizer
from kpl_engine.errors import ConfigError, EncoderError, ExportError, ParityError

__all__ = [
    "FP32_GATES",
    "Gates",
    "Parity",
    "check_batches",
    "check_parity",
    "image_reference",
    "num_inputs",
    "random_pixels",
    "random_tokens",
    "text_reference",
    "verify_graph",
    "verify_tokenizer",
]

WORDS = "a chest x-ray of lungs with small nodule, effusion and no fracture µg 5 mm Größe 肺"
TOKENIZER_TEXTS = (
    "",
    WORDS,
    WORDS.upper() + "; SUVmax=7.4 (T1/T2-weighted).",
    "it's the patient's  2nd\tfilm\nwe've seen &amp; “read” -- under_score",
    "\U0001fac1 Ｆｕｌｌ ﬁbrosis ΟΔΟΣ İstanbul",
    "effusion " * 400,
)
BATCHES = (1, 2, 3, 5)
LARGEST_BATCH = 1024  # its random images and their features have to fit into memory
MIN_INPUTS = 4  # one of each kind, also when the batches are smaller: an empty text alone proves little
REFERENCE_BATCH = 4  # none of BATCHES: the comparison is across batch sizes too


@dataclass(frozen=True)
class Gates:
    """The most a graph may differ from the original on unit features."""

    max_one_minus_cos: float
    max_abs: float


FP32_GATES = Gates(max_one_minus_cos=1e-6, max_abs=1e-4)


@dataclass(frozen=True)
class Parity:
    """What was measured, over all rows of all batches."""

    max_abs: float
    max_one_minus_cos: float
    batches: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "batches": list(self.batches)}


def random_pixels(num: int, height: int, width: int, seed: int = 0) -> UInt8:
    """Images for the comparison: noise, smooth blobs, black and white in turn. (num, h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num, height, width, 3), dtype=np.uint8)
    for i in range(1, num, 2):  # towers see smooth images in life, and noise excites them little
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        rows = np.linspace(0, 4.999, height).astype(int)
        columns = np.linspace(0, 4.999, width).astype(int)
        pixels[i] = coarse[rows][:, columns]
    if num > 3:
        pixels[2], pixels[3] = 0, 255
    return pixels


def random_tokens(tokenize: Callable[[list[str]], Tensor], vocab_size: int, num: int, seed: int = 0) -> Ints:
    """Token ids for the comparison, (num, context) int64: real texts, then the same layouts with random words.

    Start, end and padding stay where the tokenizer puts them, because pooling and masks depend on them.
    """
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    lengths = [0, 1, 400, *rng.integers(2, 60, max(num - 3, 0))]
    texts = [" ".join(rng.choice(words, int(length))) for length in lengths[:num]]
    tokens = tokenize(texts).numpy().astype(np.int64)  # (num, context) int64
    special = np.unique(tokenize([""]).numpy())
    ordinary = np.setdiff1d(np.arange(vocab_size), special)
    is_word = ~np.isin(tokens, special)
    is_word[: num // 2] = False
    tokens[is_word] = rng.choice(ordinary, int(is_word.sum()))
    return tokens


def verify_tokenizer(descriptor: bytes, tokenize: Callable[[list[str]], Tensor]) -> None:
    """Hold what the runtime reads from the descriptor to what open_clip's tokenizer gives, id by id.

    Raises
    ------
    ParityError
        The ids of a text differ.
    ExportError
        The runtime cannot read the descriptor.
    """
    wanted = tokenize(list(TOKENIZER_TEXTS)).numpy()  # (m, context) int64
    try:
        got = load_tokenizer(descriptor).encode(TOKENIZER_TEXTS, truncate=True).ids
    except EncoderError as error:
        raise ExportError(f"the runtime cannot read the tokenizer of this model: {error}") from error
    for text, ours, theirs in zip(TOKENIZER_TEXTS, got, wanted, strict=True):
        if not np.array_equal(ours, theirs):
            raise ParityError(
                f"tokenizer.json: the runtime's ids of {text[:60]!r} differ from open_clip's. Give another tokenizer "
                "with --tokenizer, or export the image tower alone with --no-text"
            )


def image_reference(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Float32]:
    """Pixels (n, h, w, 3) uint8 to features by torchvision's normalisation and the untouched model."""

    def encode(pixels: UInt8) -> Float32:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(torch.float32).div(255)
        features: Float32 = model.encode_image(normalize(images, list(mean), list(std)), normalize=True).numpy()
        return features

    return encode


def text_reference(model: nn.Module) -> Callable[[Any], Float32]:
    """Tokens (n, context) int64 to features by the untouched model."""

    def encode(tokens: Ints) -> Float32:
        features: Float32 = model.encode_text(torch.from_numpy(tokens), normalize=True).numpy()
        return features

    return encode


def verify_graph(
    path: Path,
    inputs: UInt8 | Ints,
    reference: Callable[[Any], Float32],
    batches: Sequence[int],
    gates: Gates = FP32_GATES,
) -> tuple[Parity, int]:
    """Run the graph at each batch size and hold it to ``gates``; returns what was measured and the width d.

    Small batches run over the first `MIN_INPUTS` inputs, larger ones once over their own number.

    Raises
    ------
    ParityError
        A gate is exceeded, a shape is wrong, or either side gives NaN or infinity.
    ExportError
        ONNX Runtime cannot load or run the graph.
    """
    wanted = _reference_features(reference, inputs)  # (n, d) float32
    session = _session(path)
    max_abs = max_one_minus_cos = 0.0
    for batch in batches:
        for start in range(0, max(MIN_INPUTS - batch, 0) + 1, batch):
            part = slice(start, start + batch)
            got = _run(session, inputs[part], path.name)
            measured = check_parity(got, wanted[part], gates, f"{path.name}, batch {batch}")
            max_abs, max_one_minus_cos = max(max_abs, measured[0]), max(max_one_minus_cos, measured[1])
    return Parity(max_abs, max_one_minus_cos, tuple(batches)), wanted.shape[1]


def check_parity(got: Float32, wanted: Float32, gates: Gates, what: str) -> tuple[float, float]:
    """Largest |difference| and largest 1 - cos over the rows of two (n, d) arrays, or `ParityError`.

    Two zero rows agree; a zero row against any other does not.
    """
    if got.shape != wanted.shape:
        raise ParityError(f"{what}: expected features of shape {wanted.shape}, the graph gave {got.shape}")
    for name, array in (("the original model", wanted), ("the exported graph", got)):
        num_bad = int((~np.isfinite(array)).any(axis=1).sum())
        if num_bad:
            raise ParityError(f"{what}: {name} gives NaN or infinite features for {num_bad} of {len(array)} inputs")
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    max_abs = float(np.abs(a - b).max())
    # |u - v|^2 / 2 of the unit rows equals 1 - cos without its cancellation
    max_one_minus_cos = float((np.square(_unit(a) - _unit(b)).sum(axis=1) / 2).max())
    if max_abs > gates.max_abs or max_one_minus_cos > gates.max_one_minus_cos:
        raise ParityError(
            f"{what}: the exported graph differs from the original model: max|Δ| {max_abs:.2e} (allowed "
            f"{gates.max_abs:.0e}), 1-cos {max_one_minus_cos:.2e} (allowed {gates.max_one_minus_cos:.0e}). Nothing was "
            "written; please report the architecture and the versions of torch and open_clip"
        )
    return max_abs, max_one_minus_cos


def _unit(rows: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray[Any, np.dtype[np.float64]] = rows / np.where(norms > 0, norms, 1.0)
    return unit


def _reference_features(reference: Callable[[Any], Float32], inputs: UInt8 | Ints) -> Float32:
    with torch.inference_mode():
        parts = [reference(inputs[i : i + REFERENCE_BATCH]) for i in range(0, len(inputs), REFERENCE_BATCH)]
    features: Float32 = np.concatenate(parts)  # (n, d) float32
    if features.ndim != 2:
        raise ExportError(
            f"the model gives features of shape {('n', *features.shape[1:])}, expected one vector for each input; "
            "its pool_type keeps all tokens, so it is no CLIP encoder as configured"
        )
    return features


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind exception types of onnxruntime share no public base
        raise ExportError(f"{path.name}: ONNX Runtime cannot load the exported graph: {error}") from error


def _run(session: onnxruntime.InferenceSession, inputs: UInt8 | Ints, name: str) -> Float32:
    try:
        features: Float32 = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    except Exception as error:  # as above
        raise ParityError(f"{name}: the exported graph fails at batch {len(inputs)}: {error}") from error
    return features


def num_inputs(batches: Sequence[int]) -> int:
    """How many inputs `verify_graph` needs."""
    return max(MIN_INPUTS, *batches)


def check_batches(max_batch: int) -> tuple[int, ...]:
    """The batch sizes to prove: 1, 2, 3, 5 and the maximum."""
    if not 1 <= max_batch <= LARGEST_BATCH:
        raise ConfigError(f"--max-batch: expected 1 to {LARGEST_BATCH}, got {max_batch}")
    return tuple(sorted({*(b for b in BATCHES if b <= max_batch), max_batch}))
