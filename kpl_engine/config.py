"""Frozen settings with units in their names. Checked when made; nothing here reads the environment."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from kpl_engine.errors import ConfigError

__all__ = [
    "SOLVERS",
    "DecodeConfig",
    "EncoderConfig",
    "EngineConfig",
    "LabelMethod",
    "MethodConfig",
    "MethodName",
    "ModeName",
    "OtIters",
    "Retrieval",
    "SolverConfig",
    "SolverName",
]

MethodName = Literal["zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta"]
ModeName = Literal["batch", "frozen", "stream"]
LabelMethod = Literal["softmax", "sinkhorn", "stable_greenkhorn", "stream"]
Retrieval = Literal["mean", "per_image", "all"]
SolverName = Literal["auto", "schedule", "schedule_dual", "schedule_primal", "schedule_split", "closed_form"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)
OtIters = int | Literal["converged"]
_DEVICE = re.compile(r"same|auto|cpu|cuda(:\d{1,3})?")
_MAX_THREADS = 1024  # far above any machine's worth; ONNX Runtime takes minutes to start ten thousand


def _require(ok: bool, owner: object, name: str, expected: str) -> None:
    if not ok:
        got = getattr(owner, name)
        raise ConfigError(f"{type(owner).__name__}.{name}: expected {expected}, got {got!r}")


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an integer beyond float64
        return False


@dataclass(frozen=True)
class MethodConfig:
    """The numbers of one method; the defaults are the published ones (method.md, letters).

    ``tau_t`` and ``tau_i`` are softmax temperatures of text and image logits, ``alpha`` the
    hardening threshold, ``gamma`` the class-prior exponent, ``lr`` the step size.
    ``ot_iters`` is a number of steps or ``"converged"``. ``min_batch`` is the fewest images a
    transductive answer is given for; ``None`` means four per class.
    """

    k: int = 8
    retrieval: Retrieval = "mean"
    tau_t: float = 0.01
    tau_i: float = 0.04
    alpha: float = 0.6
    gamma: float = 0.0
    lr: float = 10.0
    proxy_iters: int = 2000
    ot_iters: OtIters = 20
    solver: SolverName = "auto"
    min_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("tau_t", "tau_i", "lr"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 < value < float("inf"), self, name, "a number > 0")
        _require(_is_number(self.alpha), self, "alpha", "a number")
        _require(_is_number(self.gamma) and 0 <= self.gamma <= 1, self, "gamma", "a number from 0 to 1")
        _require(type(self.k) is int and self.k >= 1, self, "k", "an integer >= 1")
        _require(type(self.proxy_iters) is int and self.proxy_iters >= 0, self, "proxy_iters", "an integer >= 0")
        _require(
            self.ot_iters == "converged" or (type(self.ot_iters) is int and self.ot_iters >= 0),
            self,
            "ot_iters",
            "an integer >= 0 or 'converged'",
        )
        _require(self.retrieval in ("mean", "per_image", "all"), self, "retrieval", "'mean', 'per_image' or 'all'")
        _require(
            self.solver in SOLVERS,
            self,
            "solver",
            f"one of {', '.join(SOLVERS)}",
        )
        _require(
            self.min_batch is None or (type(self.min_batch) is int and self.min_batch >= 1),
            self,
            "min_batch",
            "None or an integer >= 1",
        )


@dataclass(frozen=True)
class EncoderConfig:
    """How the encoder runs.

    ``num_threads`` 0 means one per core. ``allow_spinning`` keeps idle threads busy-waiting:
    a little faster alone, 20-45 % slower for neighbours, hence off. ``batch_size`` is the most
    images sent through the graph at once.

    On a GPU only: ``use_tf32`` lets ONNX Runtime round the inputs of float32 matrix products of the image
    tower to 10 bits. ``use_cuda_graph`` replays ONNX Runtime's kernels as one CUDA graph for each power of
    two up to ``batch_size``. ``gpu_memory_bytes`` is the most that ONNX Runtime's arena may take for one
    tower; ``None`` is no limit.
    """

    num_threads: int = 0
    allow_spinning: bool = False
    enable_arena: bool = True
    graph_optimization: Literal["disable", "basic", "extended", "all"] = "all"
    batch_size: int = 8
    use_tf32: bool = False
    use_cuda_graph: bool = False
    gpu_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        is_count = type(self.num_threads) is int and 0 <= self.num_threads <= _MAX_THREADS
        _require(is_count, self, "num_threads", f"an integer from 0 to {_MAX_THREADS}")
        _require(type(self.batch_size) is int and self.batch_size >= 1, self, "batch_size", "an integer >= 1")
        _require(
            self.graph_optimization in ("disable", "basic", "extended", "all"),
            self,
            "graph_optimization",
            "'disable', 'basic', 'extended' or 'all'",
        )
        for name in ("use_tf32", "use_cuda_graph"):
            _require(type(getattr(self, name)) is bool, self, name, "True or False")
        limit = self.gpu_memory_bytes
        _require(
            limit is None or (type(limit) is int and 0 < limit < 1 << 63),
            self,
            "gpu_memory_bytes",
            "None or an integer >= 1",
        )


@dataclass(frozen=True)
class DecodeConfig:
    """Limits on one image file, checked before its pixels are decoded, and where pictures are resized.

    ``resize_on_gpu``: where the encoder works on a GPU it also resizes, with the bits of the CPU path.
    """

    max_file_bytes: int = 256 * 1024 * 1024
    max_pixels: int = 50_000_000
    num_threads: int = 2
    resize_on_gpu: bool = True

    def __post_init__(self) -> None:
        for name in ("max_file_bytes", "max_pixels", "num_threads"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, self, name, "an integer >= 1")
        _require(isinstance(self.resize_on_gpu, bool), self, "resize_on_gpu", "True or False")
        _require(self.num_threads <= _MAX_THREADS, self, "num_threads", f"at most {_MAX_THREADS}")


@dataclass(frozen=True)
class SolverConfig:
    """How the solver runs. ``num_threads`` 0 means as many as pay off, at most one a core.

    ``device`` is where proxies are learned: "same" as the encoder, or "auto", "cpu", "cuda", "cuda:N" whatever that
    runs on.
    """

    num_threads: int = 0
    device: str = "same"

    def __post_init__(self) -> None:
        is_count = type(self.num_threads) is int and 0 <= self.num_threads <= _MAX_THREADS
        _require(is_count, self, "num_threads", f"an integer from 0 to {_MAX_THREADS}")
        is_device = isinstance(self.device, str) and _DEVICE.fullmatch(self.device) is not None
        _require(is_device, self, "device", "'same', 'auto', 'cpu', 'cuda' or 'cuda:N'")


@dataclass(frozen=True)
class EngineConfig:
    """Everything `Engine.load` may be told."""

    method: MethodConfig = MethodConfig()
    encoder: EncoderConfig = EncoderConfig()
    decode: DecodeConfig = DecodeConfig()
    solver: SolverConfig = SolverConfig()

    def __post_init__(self) -> None:
        kinds = (MethodConfig, EncoderConfig, DecodeConfig, SolverConfig)
        for field, kind in zip(fields(self), kinds, strict=True):
            _require(isinstance(getattr(self, field.name), kind), self, field.name, f"a {kind.__name__}")
