"""Every setting of the server, checked when made; where a value came from is the command line's business."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["ServerSettings"]

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
