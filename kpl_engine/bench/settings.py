"""What one run of the benchmark does; checked here, read from flags by `cli.bench_command`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kpl_engine.config import MethodName, ModeName
from kpl_engine.errors import ConfigError

__all__ = ["SCENARIOS", "BenchSettings", "InputKind", "ScenarioName"]

ScenarioName = Literal["SingleStream", "MultiStream", "Server", "Offline"]
InputKind = Literal["files", "pixels", "features"]
SCENARIOS: tuple[ScenarioName, ...] = get_args(ScenarioName)

_MOST_QPS = 1e6
_MOST_S = 7 * 86_400.0


@dataclass(frozen=True)
class BenchSettings:
    """One run.

    Parameters
    ----------
    bundle : Path
        What is measured in process; with ``url`` also what the answers of the server are checked against.
    url : str, optional
        ``http://host:8000``, ``https://``, ``grpc://host:8001`` or ``grpcs://``: a running server instead of this
        process.
    model : str, optional
        The server's name of the bundle; None is the bundle's file name.
    token_file : Path, optional
        Holds the bearer token of the server.
    scenarios : tuple of str
        Of `SCENARIOS`, in the order they run.
    duration_s : float
        Least seconds of a scenario. MLPerf's rules ask for 600; less is said in the report.
    target_qps : float, optional
        Queries a second of ``Server``, samples a second expected of ``Offline``. None: ``Server`` takes 70 % of what
        a closed loop reaches before it, and says so.
    find_peak : bool
        Look for the highest rate of ``Server`` whose p99 keeps ``latency_bound_ms``.
    latency_bound_ms : float
        The bound of ``Server``; MLPerf's for ResNet-50 is 15 ms.
    images : tuple of Path
        Files, globs or folders; empty means smooth random pictures made for the run.
    input_kind : str
        "files": encoded pictures, decoding is measured. "pixels": RGB arrays of the encoder's size, decoding is left
        out. "features": unit image features, the encoder is left out.
    num_samples : int
        Pictures that LoadGen draws from.
    device, method, mode, knowledge
        As `Engine.load` and `Engine.classify`; ``mode`` None is "frozen" where proxies are fitted, else they are
        fitted on the samples before the run, and the report says so.
    batch_sizes : tuple of int
        Of the throughput curve.
    parts : tuple of str
        Which of "stages", "batches", "cold" are measured beside the scenarios.
    check_samples : int
        Pictures whose answers are held to the float64 reference before and after each scenario.
    seed : int
        Of the pictures that are made and of LoadGen's draws.
    """

    bundle: Path
    url: str | None = None
    model: str | None = None
    token_file: Path | None = None
    scenarios: tuple[ScenarioName, ...] = SCENARIOS
    duration_s: float = 10.0
    target_qps: float | None = None
    find_peak: bool = False
    latency_bound_ms: float = 15.0
    images: tuple[Path, ...] = ()
    input_kind: InputKind = "files"
    num_samples: int = 64
    device: str = "auto"
    method: MethodName | None = None
    mode: ModeName | None = None
    knowledge: str | None = None
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    parts: tuple[str, ...] = ("stages", "batches", "cold")
    check_samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for scenario in self.scenarios:
            if scenario not in SCENARIOS:
                raise ConfigError(f"scenario: expected one of {', '.join(SCENARIOS)}, got {scenario!r}")
        if self.input_kind not in get_args(InputKind):
            raise ConfigError(f"input: expected one of {', '.join(get_args(InputKind))}, got {self.input_kind!r}")
        for part in self.parts:
            if part not in ("stages", "batches", "cold"):
                raise ConfigError(f"parts: expected some of stages, batches, cold, got {part!r}")
        _check_number("duration", self.duration_s, 0.1, _MOST_S, "s")
        _check_number("latency bound", self.latency_bound_ms, 1e-3, 6e5, "ms")
        if self.target_qps is not None:
            _check_number("target rate", self.target_qps, 1e-3, _MOST_QPS, "queries/s")
        for name, value, most in (
            ("samples", self.num_samples, 100_000),
            ("check samples", self.check_samples, 10_000),
            *(("batch size", size, 4096) for size in self.batch_sizes),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"{name}: expected 1 to {most}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: expected 0 to 2^63 - 1, got {self.seed}")


def _check_number(name: str, value: float, least: float, most: float, unit: str) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(f"{name}: expected {least:g} to {most:g} {unit}, got {value:g}")
