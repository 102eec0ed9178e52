"""``kpl-engine serve``: bundles answered over HTTP and gRPC until a signal stops it."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from kpl_engine.cli.common import format_table, to_json, warn
from kpl_engine.cli.settings_sources import OPTIONS, Option, Origins, gather, read_toml
from kpl_engine.errors import ConfigError, MissingExtraError
from kpl_engine.server.defaults import CHOSEN, complete
from kpl_engine.server.settings import ServerSettings

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Answer the Open Inference Protocol v2 over HTTP and gRPC, and POST /v1/classify for curl and browsers.
Images of all requests are encoded together; a request is refused at once where the server is full.

Every setting can also stand in a TOML file (--config) or in the environment as KPL_NAME; a flag goes
before the file, the file before the environment. --print-config shows each with where it came from."""

_EPILOG = """\
examples:
  kpl-engine serve lung.kpl
  kpl-engine serve lung.kpl eye.kpl --host 0.0.0.0 --tokens-file tokens.txt --tls-cert cert.pem --tls-key key.pem
  kpl-engine serve --config serve.toml --log-format json --print-config
  curl -F image=@film.png http://127.0.0.1:8000/v1/classify

signals: SIGTERM and SIGINT stop (twice: at once), SIGHUP reads tokens, certificate and changed bundles again"""

# Group, then (field, metavar, help); the default is added.
_GROUPS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "models": (
        ("repository", "FOLDER", "*.kpl in it may be loaded at run time"),
        ("model_control", "", "load and unload models at run time"),
    ),
    "doors": (
        ("host", "ADDRESS", "address to listen at"),
        ("http_port", "PORT", "HTTP; 0 is any free one"),
        ("grpc", "", "gRPC; by default where grpcio is installed"),
        ("grpc_port", "PORT", "gRPC; 0 is any free one"),
        ("metrics", "", "Prometheus metrics, at a port of their own without token or TLS"),
        ("metrics_port", "PORT", "metrics; 0 is any free one"),
        ("page", "", "the page at /"),
        ("cors_origins", "ORIGINS", "origins whose pages may call, separated by commas"),
        ("tokens_file", "FILE", "bearer tokens, one a line, NAME: before it if you like"),
        ("tls_cert", "FILE", "certificate chain, PEM"),
        ("tls_key", "FILE", "its key, PEM without pass phrase"),
    ),
    "machine": (
        ("device", "DEVICE", "auto, cpu, cuda or cuda:N"),
        ("instances", "N", "encoders: one a GPU, or one a group of cores"),
        ("threads", "N", "of one encoder; 0: cores / instances"),
        ("decode_threads", "N", "threads that decode images; 0: one a core"),
        ("max_batch", "N", "largest encoder batch; 0: 64 on a GPU, 8 on a CPU"),
    ),
    "limits": (
        ("max_inflight_images", "N", "admitted and not answered; 0: 8 x max-batch x instances"),
        ("max_inflight_bytes", "SIZE", "of all bodies held"),
        ("max_body_bytes", "SIZE", "of one request"),
        ("max_images", "N", "of one request"),
        ("max_pixels", "N", "of one image"),
        ("max_connections", "N", "open at once"),
        ("deadline_s", "TIME", "from admission to answer"),
        ("header_timeout_s", "TIME", "a client has for its headers"),
        ("body_timeout_s", "TIME", "a client has for its body"),
        ("keep_alive_s", "TIME", "an idle connection is kept"),
    ),
    "stopping and state": (
        ("drain_accept_s", "TIME", "still accepting after the signal, not ready any more"),
        ("drain_finish_s", "TIME", "for what was accepted to be answered"),
        ("state_dir", "FOLDER", "snapshots of streams; without it they are kept in memory only"),
        ("snapshot_interval_s", "TIME", "between snapshots"),
    ),
    "logs and traces": (
        ("log_format", "FORMAT", "text or json"),
        ("log_level", "LEVEL", "debug, info, warning or error"),
        ("otlp_endpoint", "URL", "OpenTelemetry collector, http://HOST:4318; needs the extra [otel]"),
    ),
}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "serve",
        help="answer over HTTP and gRPC",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help="bundle; its file name is the model's name")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file of settings (or KPL_CONFIG)")
    parser.add_argument("--print-config", action="store_true", help="print every setting with its origin, and leave")
    parser.add_argument("--json", action="store_true", help="with --print-config: as JSON")
    options = {option.field: option for option in OPTIONS}
    for title, rows in _GROUPS.items():
        group = parser.add_argument_group(title)
        for field, metavar, text in rows:
            _add_flag(group, options[field], metavar, text)
    parser.set_defaults(run=run)


def _add_flag(group: Any, option: Option, metavar: str, text: str) -> None:
    default = getattr(ServerSettings, option.field)
    told = f"{text} (default {_shown(option, default)})"
    if option.kind in ("flag", "switch"):
        group.add_argument(option.flag, dest=option.field, action=argparse.BooleanOptionalAction, help=told)
    else:
        group.add_argument(option.flag, dest=option.field, metavar=metavar, help=told.replace("%", "%%"))


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; returns 0, or 1 where a worker died."""
    given = os.environ.get("KPL_CONFIG", "")
    config = args.config or (Path(given) if given else None)
    settings, origins = gather(args, read_toml(config) if config else {}, config, os.environ)
    chosen = complete(settings)
    if args.print_config:
        print(_config_json(chosen, origins) if args.json else _config_table(chosen, settings, origins))
        return 0
    if args.json:
        raise ConfigError("--json: expected --print-config beside it; logs as JSON are --log-format json")
    if not settings.bundles and settings.repository is None:
        raise ConfigError("nothing to serve: name a bundle (kpl-engine serve lung.kpl) or give --repository FOLDER")
    _tell_unknown_variables()
    try:
        from kpl_engine.server.run import serve
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "kpl_engine"):
            raise
        raise MissingExtraError(package, "serve", "kpl-engine serve") from error
    return serve(chosen, notify_socket=os.environ.get("NOTIFY_SOCKET", ""))


def _tell_unknown_variables() -> None:
    """A misspelt variable is passed over, since other programs may have KPL_* too; so it is told."""
    import difflib

    known = [option.variable for option in OPTIONS]
    for name in os.environ:
        if name.startswith("KPL_") and name not in (*known, "KPL_CONFIG"):
            near = difflib.get_close_matches(name, known, 1, 0.85)
            if near:
                warn(f"note: {name} is no setting of serve; did you mean {near[0]}?")


def _config_table(chosen: ServerSettings, given: ServerSettings, origins: Origins) -> str:
    rows = []
    for option in OPTIONS:
        origin = origins[option.field]
        if option.field in CHOSEN and getattr(given, option.field) == 0:
            origin += ", chosen for this machine"
        rows.append([option.name, _shown(option, getattr(chosen, option.field)), origin])
    return format_table(["setting", "value", "origin"], rows)


def _config_json(chosen: ServerSettings, origins: Origins) -> str:
    record = {}
    for option in OPTIONS:
        value = getattr(chosen, option.field)
        plain = _without_password(value) if isinstance(value, str) else value
        record[option.name] = {"value": [*map(str, plain)] if isinstance(plain, tuple) else plain}
        record[option.name]["origin"] = origins[option.field]
    return to_json(record)


def _shown(option: Option, value: Any) -> str:
    if value is None or value == ():
        return "none"
    if option.kind == "seconds":
        return f"{value:g}s"
    if option.kind == "size":
        return next(
            (f"{value >> bits}{unit}" for bits, unit in _UNITS if value >= 1 << bits and not value % (1 << bits))
        )
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return ("on" if value else "off") if isinstance(value, bool) else _without_password(str(value))


_UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B"))


def _without_password(text: str) -> str:
    return re.sub(r"(?<=//)[^/@\s]+@", "[not told]@", text)
