"""Every setting of the server, checked when made; where a value came from is the command line's business."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kpl_engine.errors import ConfigError

__all__ = ["ServerSettings", "is_model_name", "model_name"]

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_ORIGIN = re.compile(r"\*|https?://[^\s/,]+")
_URL = re.compile(r"https?://[^\s/]+[^\s]*")
# Ranges of the integers, both ends included; ONNX Runtime takes minutes to start ten thousand threads.
_RANGES: dict[str, tuple[int, int]] = {
    "http_port": (0, 65535),
    "grpc_port": (0, 65535),
    "metrics_port": (0, 65535),
    "instances": (1, 256),
    "threads": (0, 1024),
    "decode_threads": (0, 1024),
    "max_batch": (0, 4096),
    "max_inflight_images": (0, 1 << 31),
    "max_inflight_bytes": (1, 1 << 62),
    "max_body_bytes": (1, 1 << 62),
    "max_images": (1, 1 << 20),
    "max_pixels": (1, 1 << 40),
    "max_connections": (1, 1 << 20),
}
_DAY_S = 86400.0
# Of the seconds: True where 0 means "do not wait".
_SECONDS: dict[str, bool] = {
    "deadline_s": False,
    "header_timeout_s": False,
    "body_timeout_s": False,
    "keep_alive_s": False,
    "drain_accept_s": True,
    "drain_finish_s": True,
    "snapshot_interval_s": False,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "grpc": ("auto", "on", "off"),
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
}

LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class ServerSettings:
    """Units are in the names; 0 means "chosen by the server" where a comment says so."""

    # what is served
    bundles: tuple[Path, ...] = ()  # a model is called like its file without .kpl
    repository: Path | None = None  # a folder of *.kpl that may be loaded at run time
    model_control: bool = True  # load and unload at run time
    # doors
    host: str = "127.0.0.1"
    http_port: int = 8000  # 0: any free one
    grpc: Literal["auto", "on", "off"] = "auto"  # auto: where grpcio is installed
    grpc_port: int = 8001
    metrics: bool = True
    metrics_port: int = 8002
    page: bool = True
    cors_origins: tuple[str, ...] = ()
    tokens_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # the machine
    device: str = "auto"
    instances: int = 1  # engines: one a GPU, or one a group of cores
    threads: int = 0  # of one encoder; 0: cores / instances
    decode_threads: int = 0  # 0: one a core
    max_batch: int = 0  # 0: 64 on a GPU, 8 on a CPU
    # limits
    max_inflight_images: int = 0  # 0: 8 x max_batch x instances
    max_inflight_bytes: int = 256 << 20
    max_body_bytes: int = 16 << 20
    max_images: int = 64  # of one request
    max_pixels: int = 50_000_000
    max_connections: int = 4096
    deadline_s: float = 10.0
    header_timeout_s: float = 10.0  # first byte of a connection to the end of the headers
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    # stopping
    drain_accept_s: float = 5.0  # not ready, still accepting
    drain_finish_s: float = 30.0
    # streams
    state_dir: Path | None = None  # None: streams are kept in memory only
    snapshot_interval_s: float = 30.0
    # what is told
    log_format: LogFormat = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = None  # OpenTelemetry over HTTP; needs the extra [otel]

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            is_whole = type(value) is int and least <= value <= most
            self._require(is_whole, name, f"a whole number from {least} to {most}")
        for name, may_be_zero in _SECONDS.items():
            self._check_seconds(name, may_be_zero)
        for name, choices in _CHOICES.items():
            self._require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")
        for name in ("model_control", "metrics", "page"):
            self._require(type(getattr(self, name)) is bool, name, "True or False")
        self._check_bundles()
        self._check_doors()
        self._check_files()

    def _require(self, ok: bool, name: str, expected: str, got: Any = None) -> None:
        if not ok:
            raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name) if got is None else got!r}")

    def _check_seconds(self, name: str, may_be_zero: bool) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        is_inside = is_number and (value > 0 or (may_be_zero and value == 0)) and value <= _DAY_S
        self._require(is_inside, name, f"seconds, {'0 or more' if may_be_zero else 'above 0'}, at most one day")

    def _check_bundles(self) -> None:
        names = [model_name(path) for path in self.bundles]
        for name in names:
            expected = "file names of letters, digits, '.', '_' and '-', since clients name models by them"
            self._require(_NAME.fullmatch(name) is not None, "bundles", expected, name)
        twice = sorted({name for name in names if names.count(name) > 1})
        self._require(not twice, "bundles", "bundles of different names", ", ".join(twice))
        is_folder = self.repository is None or self.repository.is_dir()
        self._require(is_folder, "repository", "a folder that exists")

    def _check_doors(self) -> None:
        is_host = isinstance(self.host, str) and re.fullmatch(r"[^\s/]+", self.host) is not None
        self._require(is_host, "host", "an address or a host name")
        ports = {"http_port": self.http_port}
        if self.grpc != "off":
            ports["grpc_port"] = self.grpc_port
        if self.metrics:
            ports["metrics_port"] = self.metrics_port
        for name, port in ports.items():
            other = next((key for key in ports if key != name and ports[key] == port != 0), None)
            self._require(other is None, name, f"another port than {other}")
        for origin in self.cors_origins:
            is_origin = _ORIGIN.fullmatch(origin) is not None
            self._require(is_origin, "cors_origins", "'*' or origins such as https://viewer.example:8443", origin)
        self._require(_DEVICE.fullmatch(self.device) is not None, "device", "auto, cpu, cuda or cuda:N")
        endpoint = self.otlp_endpoint
        is_url = endpoint is None or _URL.fullmatch(endpoint) is not None
        # The address itself may hold a password, so it is not repeated.
        self._require(is_url, "otlp_endpoint", "an address such as http://collector:4318", "something else")

    def _check_files(self) -> None:
        for name in ("tokens_file", "tls_cert", "tls_key"):
            path = getattr(self, name)
            self._require(path is None or path.is_file(), name, "a file that exists")
        missing = "tls_key" if self.tls_key is None else "tls_cert"
        is_pair = (self.tls_cert is None) == (self.tls_key is None)
        self._require(is_pair, missing, "certificate and key, both or neither", "only one of them")
        state = self.state_dir
        self._require(state is None or state.is_dir() or not state.exists(), "state_dir", "a folder")


def model_name(bundle: Path) -> str:
    """What clients call the model of ``bundle``: its file name without ``.kpl``."""
    return bundle.name.removesuffix(".kpl")


def is_model_name(name: str) -> bool:
    """Whether a model may be called so: 1 to 128 letters, digits, '.', '_', '-', the first a letter or a digit."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
