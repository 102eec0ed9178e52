"""`kpl-engine serve --print-config`: each kind of setting from each place, and values that cannot be used."""

import json

import pytest

from kpl_engine.cli.main import main
from kpl_engine.cli.settings_sources import OPTIONS
from kpl_engine.errors import ConfigError
from kpl_engine.server.defaults import complete
from kpl_engine.server.settings import ServerSettings

# Setting, then text and value on the command line, in the file, in the environment.
KINDS = [
    ("http_port", (["--http-port", "1001"], 1001), ("http_port = 1002", 1002), ("1003", 1003)),
    ("max_body_bytes", (["--max-body-bytes", "1MiB"], 1 << 20), ('max_body_bytes = "2MiB"', 2 << 20), ("3kB", 3000)),
    ("deadline", (["--deadline", "500ms"], 0.5), ("deadline = 2", 2.0), ("1.5m", 90.0)),
    ("page", (["--no-page"], False), ("page = true", True), ("off", False)),
    ("grpc", (["--no-grpc"], "off"), ("grpc = true", "on"), ("auto", "auto")),
    ("log_format", (["--log-format", "json"], "json"), ('log-format = "text"', "text"), ("json", "json")),
    (
        "cors_origins",
        (["--cors-origins", "*"], ["*"]),
        ('cors_origins = ["http://a"]', ["http://a"]),
        ("http://b, http://c", ["http://b", "http://c"]),
    ),
]


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run ``kpl-engine serve`` in an empty folder with these variables alone; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, **variables):
        for name in ("KPL_CONFIG", *(option.variable for option in OPTIONS)):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            code = main(["serve", *map(str, arguments)])
        except SystemExit as stop:  # argparse
            code = stop.code
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def config(call, *arguments, **variables):
    code, out, err = call(*arguments, "--print-config", "--json", **variables)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(("name", "flag", "toml", "variable"), KINDS, ids=[row[0] for row in KINDS])
def test_flag_before_file_before_variable_before_default(call, tmp_path, name, flag, toml, variable):
    (tmp_path / "serve.toml").write_text(toml[0])
    environment = {"KPL_" + name.upper(): variable[0]}
    file = ("--config", "serve.toml")
    assert config(call, *flag[0], *file, **environment)[name] == {"value": flag[1], "origin": "flag"}
    assert config(call, *file, **environment)[name] == {"value": toml[1], "origin": "serve.toml"}
    assert config(call, **environment)[name] == {"value": variable[1], "origin": "KPL_" + name.upper()}
    assert config(call)[name]["origin"] == "default"


def test_every_setting_is_printed_and_has_a_flag(call):
    found = config(call, "a.kpl")
    assert list(found) == [option.name for option in OPTIONS]
    assert found["bundles"] == {"value": ["a.kpl"], "origin": "flag"}
    help_text = call("--help")[1]
    for option in OPTIONS[1:]:
        assert option.flag in help_text
    assert "kpl-engine serve lung.kpl" in help_text


def test_paths_of_the_file_are_relative_to_it_and_bundles_come_from_anywhere(call, tmp_path):
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "serve.toml").write_text('bundles = ["lung.kpl"]\nstate_dir = "state"')
    found = config(call, KPL_CONFIG=str(folder / "serve.toml"))
    assert found["bundles"]["value"] == [str(folder / "lung.kpl")]
    assert found["state_dir"]["value"] == str(folder / "state")
    assert config(call, KPL_BUNDLES="a.kpl:b/c.kpl")["bundles"]["value"] == ["a.kpl", "b/c.kpl"]


def test_the_table_names_origins_and_what_was_chosen(call):
    code, out, _ = call("a.kpl", "--device", "cpu", "--print-config", KPL_HOST="::1")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert rows["host"] == ["::1", "KPL_HOST"]
    assert rows["max_batch"] == ["8", "default,", "chosen", "for", "this", "machine"]
    assert rows["max_body_bytes"] == ["16MiB", "default"]
    assert rows["deadline"] == ["10s", "default"]


def test_secrets_are_not_printed(call, tmp_path):
    (tmp_path / "tokens").write_text("a-secret-of-the-house")
    arguments = ("--tokens-file", "tokens", "--otlp-endpoint", "http://me:hunter2@collector:4318", "--print-config")
    for more in ((), ("--json",)):
        code, out, err = call(*arguments, *more)
        assert code == 0
        assert "tokens" in out
        assert "collector:4318" in out
        assert "a-secret" not in out + err
        assert "hunter2" not in out + err


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--http-port", "70000"], {}, ["--http-port", "65535", "70000"]),
        (["--http-port", "eighty"], {}, ["--http-port", "whole number", "eighty"]),
        (["--http-port", "8001"], {}, ["--http-port", "grpc_port"]),
        (["--deadline", "10 parsecs"], {}, ["--deadline", "10s", "parsecs"]),
        (["--header-timeout", "0"], {}, ["--header-timeout", "above 0"]),
        (["--max-body-bytes", "-1"], {}, ["--max-body-bytes"]),
        (["--tls-cert", "here"], {}, ["--tls-cert", "exists"]),
        (["--device", "tpu"], {}, ["--device", "cuda:N", "tpu"]),
        (["--otlp-endpoint", "ftp://me:hunter2@x"], {}, ["--otlp-endpoint", "http://collector"]),
        (["a/lung.kpl", "b/lung.kpl"], {}, ["BUNDLE", "different names", "lung"]),
        (["l\u00fcng.kpl"], {}, ["BUNDLE", "letters"]),
        ([], {"KPL_PAGE": "perhaps"}, ["KPL_PAGE", "true or false", "perhaps"]),
        ([], {"KPL_HTTP_PORT": "tcp://10.0.0.1:80"}, ["KPL_HTTP_PORT", "enableServiceLinks"]),
        (["--config", "missing.toml"], {}, ["--config", "missing.toml"]),
        ([], {}, ["nothing to serve"]),
        (["a.kpl", "--json"], {}, ["--print-config"]),
    ],
)
def test_bad_values_are_told_with_their_place(call, arguments, variables, words):
    code, out, err = call(*arguments, **variables)
    assert code == 2
    assert not out
    for word in words:
        assert word in err
    assert "hunter2" not in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("htp_port = 1", ["serve.toml", "htp_port", "nearest", "'http_port'"]),
        ("deadline_s = 1", ["'deadline'"]),
        ("http_port = true", ["serve.toml, http_port", "whole number"]),
        ('page = "x"', ["serve.toml, page", "true or false"]),
        ("host = 3", ["serve.toml, host", "text"]),
        ("cors_origins = [1]", ["serve.toml, cors_origins", "list of texts"]),
        ("bundles = 3", ["serve.toml, bundles", "list of paths"]),
        ("http_port = 1\nhttp-port = 2", ["twice"]),
        ("http_port = ", ["not TOML"]),
    ],
)
def test_bad_files_are_told_with_the_key(call, tmp_path, text, words):
    (tmp_path / "serve.toml").write_text(text)
    code, _, err = call("--config", "serve.toml", "--print-config")
    assert code == 2
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "wrong",
    [
        {"http_port": True},
        {"deadline_s": float("nan")},
        {"deadline_s": 1e9},
        {"keep_alive_s": 0},
        {"instances": 0},
        {"log_level": "loud"},
        {"page": 1},
        {"host": "a b"},
        {"cors_origins": ("viewer",)},
    ],
)
def test_settings_are_checked_when_made(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: expected"):
        ServerSettings(**wrong)
    assert ServerSettings(drain_accept_s=0).drain_accept_s == 0


def test_what_is_chosen_fits_the_machine_and_what_was_given_stays():
    on_cpu = complete(ServerSettings(instances=2), is_gpu=False, cores=6)
    assert (on_cpu.max_batch, on_cpu.max_inflight_images, on_cpu.threads, on_cpu.decode_threads) == (8, 128, 3, 6)
    assert complete(ServerSettings(), is_gpu=True, cores=6).max_batch == 64
    given = ServerSettings(max_batch=3, max_inflight_images=5, threads=7, decode_threads=9)
    assert complete(given, is_gpu=True, cores=6) == given
    assert complete(ServerSettings(instances=8), is_gpu=False, cores=2).threads == 1
