"""docs/serving.md names every setting, status, metric and address that exists, and none that does not."""

import configparser
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the serve extra")

from kpl_engine.cli.main import build_parser
from kpl_engine.cli.serve_command import _shown
from kpl_engine.cli.settings_sources import OPTIONS, gather, read_toml
from kpl_engine.server import status
from kpl_engine.server.http.openapi import openapi_document
from kpl_engine.server.metrics import Metrics
from kpl_engine.server.settings import ServerSettings

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found, language
    return found


def rows(title):
    """Cells of the table under a heading, without its head."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)[1]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def flags_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))


def test_settings_with_their_defaults():
    told = {flag.strip("`"): default for flag, default, _ in rows("Settings")}
    known = {option.flag: _shown(option, getattr(ServerSettings, option.field)) for option in OPTIONS}
    del known["--bundles"]  # they are named without a flag
    assert told == known


def test_no_flag_is_named_that_does_not_exist():
    known = {option.flag for option in OPTIONS} | {"--config", "--print-config", "--no"}
    assert flags_of(PAGE) <= known


def test_statuses():
    known = {(str(each.http), each.grpc, each.reason) for _, each in status._TABLE}
    known.add((str(status._INTERNAL.http), status._INTERNAL.grpc, status._INTERNAL.reason))
    told = [tuple(row[:3]) for row in rows("Statuses")]
    assert len(told) == len(set(told))
    assert set(told) == known


def test_metrics():
    families = [each for each in Metrics().registry.collect() if each.name.startswith("kpl_")]
    known = {each.name + ("_total" if each.type == "counter" else "") for each in families}
    assert {name.strip("`") for name, _, _ in rows("Metrics")} == known
    assert set(re.findall(r"`(kpl_[a-z_]+)[`{]", PAGE)) == known


def test_labels_of_metrics():
    metrics = Metrics()
    made = {name: each for each in vars(metrics).values() for name, each in _collectors(each)}
    for name, labels, _ in rows("Metrics"):
        base = name.strip("`").removesuffix("_total")
        if base != "kpl_build_info":  # which nothing keeps
            assert ", ".join(made[base]._labelnames) == labels, base


def _collectors(found):
    several = found.values() if isinstance(found, dict) else [found]
    return [(each._name, each) for each in several if hasattr(each, "_labelnames")]


def test_addresses():
    known = {path for path in openapi_document(ServerSettings())["paths"] if "/versions/" not in path}
    table = " ".join(cell for row in rows("Addresses") for cell in row)
    told = set(re.findall(r"(?:GET|POST) (/[^`]*)`", table)) - {"/"}
    loads = {path for path in told if path.endswith("/load")}
    told |= {path.removesuffix("load") + "unload" for path in loads}
    assert told == known


def test_methods_of_grpc():
    pytest.importorskip("grpc", reason="needs the grpc extra")
    from kpl_engine.server.grpc.messages import methods

    section = PAGE[PAGE.index("gRPC, port 8001") : PAGE.index("## Settings")]
    told = set(re.findall(r"`([A-Z][A-Za-z]+)`", section))
    assert told == methods("inference.GRPCInferenceService").keys() | methods("grpc.health.v1.Health").keys()


def test_the_toml_example_is_one(tmp_path):
    (tmp_path / "serve.toml").write_text(blocks("toml")[0])
    (tmp_path / "tokens").write_text("")
    args = build_parser().parse_args(["serve"])
    settings, origins = gather(args, read_toml(tmp_path / "serve.toml"), tmp_path / "serve.toml", {})
    assert settings.max_body_bytes == 32 << 20
    assert origins["deadline_s"] == "serve.toml"


def commands():
    """The arguments of `kpl-engine` in every example."""
    yaml = pytest.importorskip("yaml", reason="reads the manifests")
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string(blocks("ini")[0])
    found = [shlex.split(unit["Service"]["ExecStart"])[1:]]
    manifests = [each for block in blocks("yaml") for each in yaml.safe_load_all(block)]
    for manifest in manifests:
        spec = manifest["spec"]
        spec = spec.get("template", {}).get("spec", spec)
        found += [each["args"] for each in spec.get("containers", ())]
    return found, manifests, unit


def test_the_commands_of_the_examples_are_understood():
    found, _, _ = commands()
    assert len(found) == 3
    for arguments in found:
        assert build_parser().parse_args(arguments).bundles


def test_the_manifests_give_the_server_its_time():
    _, manifests, unit = commands()
    assert [each["kind"] for each in manifests] == ["Deployment", "ServingRuntime", "InferenceService"]
    pod = manifests[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    drain_s = float(container["args"][container["args"].index("--drain-accept") + 1].removesuffix("s"))
    defaults = ServerSettings()
    assert pod["terminationGracePeriodSeconds"] > drain_s + defaults.drain_finish_s
    probe = container["readinessProbe"]
    assert drain_s > probe["periodSeconds"] * probe["failureThreshold"]
    assert float(unit["Service"]["TimeoutStopSec"]) > defaults.drain_accept_s + defaults.drain_finish_s
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": defaults.http_port, "grpc": defaults.grpc_port, "metrics": defaults.metrics_port}


def test_every_probe_asks_something_that_is_there():
    _, manifests, _ = commands()
    known = openapi_document(ServerSettings())["paths"]
    container = manifests[0]["spec"]["template"]["spec"]["containers"][0]
    for name in ("startupProbe", "readinessProbe"):
        assert container[name]["httpGet"]["path"] in known
    health = pytest.importorskip("kpl_engine.server.grpc.health", reason="needs the grpc extra")
    assert container["livenessProbe"]["grpc"]["service"] in health.SERVICES
