"""`kpl-engine bench` as its user meets it: the README's lines, bad input, what a killed run leaves."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kpl_engine.bench.results import read_result
from kpl_engine.cli.main import build_parser, main
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.imaging.sources import list_images
from tests.server.faults.process import Server

pytest.importorskip("mlperf_loadgen", reason="needs the bench extra")

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"^## How fast is it on your device\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]
SHORT = ["--duration", "0.3", "--samples", "30", "--check-samples", "3"]


def lines():
    """Of the section, without `pip` and comments."""
    block = re.search(r"^```bash\n(.*?)^```$", SECTION, re.M | re.S)[1]
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("kpl-engine")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As the reader's: a bundle and films."""
    made = tmp_path_factory.mktemp("reader")
    shutil.copytree(demo_bundle(), made / "lung.kpl")
    (made / "films").mkdir()
    for image in list_images(demo_images())[::4]:
        shutil.copy(image, made / "films" / image.name)
    return made


@pytest.fixture(scope="module")
def first(folder):
    """The README's first line: its result."""
    run(folder, [*lines()[0], *SHORT, "--skip", "cold", "-o", "before"])
    return folder / "before" / "result.json"


def run(folder, words, code=0):
    assert words[:2] == ["kpl-engine", "bench"]
    command = [sys.executable, "-m", "kpl_engine.cli.main", *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_every_line_of_the_readme_is_parsed():
    found = lines()
    assert len(found) == 4
    for words in found:
        build_parser().parse_args(words[1:])


def test_the_first_line(first):
    result = read_result(first)
    assert result["status"] == "complete"
    assert [each["scenario"] for each in result["scenarios"]] == ["SingleStream", "MultiStream", "Server", "Offline"]
    for each in result["scenarios"]:
        assert each["is_speed_told"]
        assert each["check_before"]["is_right"]
        assert each["check_after"]["is_right"]
        assert each["samples_per_s"] > 0
    assert "30" in result["subject"]["samples"]
    assert result["stages"]["unexplained_share"] < 0.2
    assert [point["batch"] for point in result["batches"]] == [1, 2, 4, 8]
    assert "cold_start" not in result
    assert shlex.split(result["command"])[:3] == ["kpl-engine", "bench", "lung.kpl"]
    page = (first.parent / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert not re.search(r"(src|href)=[\"']?https?:", page)


def test_the_line_with_a_peak(folder):
    words = [*lines()[1], *SHORT, "--skip", "cold", "stages", "batches", "-o", "peak", "--json"]
    words[words.index("15")] = "200"  # a busy machine has some peak, too
    result = json.loads(run(folder, words).stdout)
    assert result["probes"]
    assert [each["scenario"] for each in result["scenarios"]] == ["Server"]


def test_the_line_with_a_server(folder, tmp_path):
    with Server(tmp_path) as server:
        for address in (f"http://127.0.0.1:{server.http}", f"grpc://127.0.0.1:{server.grpc}"):
            words = [
                "kpl-engine",
                "bench",
                str(demo_bundle()),
                "--url",
                address,
                "--target-qps",
                "20",
                "--mode",
                "batch",
            ]
            run(folder, [*words, "--scenario", "SingleStream", "Server", *SHORT, "-o", "served"])
            result = read_result(folder / "served" / "result.json")
            assert result["status"] == "complete"
            assert result["subject"]["where"] == address
            assert "reply" in result["stages"]["order"]
            assert {"200", "OK"} & set(result["scenarios"][1]["codes"])


def test_compare_with_itself_finds_nothing(folder, first):
    done = run(folder, ["kpl-engine", "bench", "compare", str(first), str(first), "--json", "--fail-on-slower"])
    assert {row["verdict"] for row in json.loads(done.stdout)["rows"]} <= {"same within noise", "cannot tell"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.kpl"], "missing.kpl"),
        (["lung.kpl", "other.kpl"], "expected one bundle, got 2"),
        (["compare", "one.json"], "expected two results"),
        (["compare", "films", "films"], "films"),
        (["lung.kpl", "--duration", "nan"], "duration"),
        (["lung.kpl", "--duration", "-1"], "duration"),
        (["lung.kpl", "--target-qps", "1e12"], "target rate"),
        (["lung.kpl", "--target-qps", "0"], "target rate"),
        (["lung.kpl", "--latency-bound-ms", "0"], "latency bound"),
        (["lung.kpl", "--samples", "0"], "samples"),
        (["lung.kpl", "--samples", "3"], "kpl-engine fit"),
        (["lung.kpl", "--batches", "0"], "batch size"),
        (["lung.kpl", "--seed", "-1"], "seed"),
        (["lung.kpl", "--images", "nowhere"], "nowhere"),
        (["lung.kpl", "--images", "empty"], "empty"),
        (["lung.kpl", "--knowledge", "eye"], "eye"),
        (["lung.kpl", "--url", "ftp://host"], "ftp"),
        (["lung.kpl", "--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["lung.kpl", "-o", "lung.kpl/manifest.json"], "manifest.json"),
    ],
)
def test_bad_input_is_told_in_a_line(folder, words, told, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    code = main(["bench", *words, *([] if words[0] == "compare" else ["-o", "bad"] if "-o" not in words else [])])
    said = capsys.readouterr()
    assert code in (1, 2)
    assert told in said.err
    assert "Traceback" not in said.err
    assert not said.out


def test_a_result_of_another_format_is_refused(folder, first, capsys):
    result = json.loads(first.read_text())
    newer = folder / "newer.json"
    newer.write_text(json.dumps({**result, "kpl_engine_bench": 99}))
    assert main(["bench", "compare", str(first), str(newer)]) == 2
    assert "99" in capsys.readouterr().err


def test_a_killed_run_keeps_what_it_measured(folder):
    command = [sys.executable, "-m", "kpl_engine.cli.main", "bench", "lung.kpl", "-o", "killed", "--duration", "1"]
    with subprocess.Popen([*command, "--samples", "30"], cwd=folder, stderr=subprocess.DEVNULL) as process:
        path, end = folder / "killed" / "result.json", time.monotonic() + 60
        while not (path.exists() and read_result(path)["scenarios"]):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    result = read_result(path)
    assert result["status"] == "failed"
    assert "ended before" in result["error"]
    assert result["scenarios"][0]["samples_per_s"] > 0
    assert main(["bench", "compare", str(path), str(path)]) == 0
