"""The README's section on the server: its lines run against the server they start, only the ports differ."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.imaging.sources import list_images

pytest.importorskip("starlette", reason="needs the serve extra")
pytest.importorskip("grpc", reason="needs the grpc extra")

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"^## As a server\n(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A folder as the reader's, the second line of the section run in it, and the ports it took."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(demo_bundle(), folder / "lung.kpl")
    for name, image in zip(("film.png", "second.png"), list_images(demo_images()), strict=False):
        shutil.copy(image, folder / name)
    command = shlex.split(blocks("bash")[0].splitlines()[1])
    assert command[:2] == ["kpl-engine", "serve"]
    program = [sys.executable, "-m", "kpl_engine.cli.main", *command[1:]]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--drain-accept", "0s"]
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([*program, *ports], cwd=folder, stdout=stream, stderr=stream)
    try:
        yield folder, *_wait_for_ports(process, log)
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


def _wait_for_ports(process, log):
    for _ in range(600):
        told = log.read_text()
        http, grpc = (
            re.search(r"ready.*?http://127\.0\.0\.1:(\d+)", told),
            re.search(r"grpc://127\.0\.0\.1:(\d+)", told),
        )
        if http and grpc:
            return http[1], grpc[1]
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the server did not start: {log.read_text()}")


def run(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("line", blocks("bash")[1].splitlines())
def test_curl_lines_run(line, server):
    folder, http, _ = server
    command = shlex.split(line.replace(":8000", f":{http}"))
    assert command[0] == "curl"
    done = subprocess.run(
        [command[0], "-sS", "--fail-with-body", *command[1:]],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    told = json.loads(done.stdout)
    if "/v1/classify" in line:
        assert len(told["images"]) == line.count("image=@") or "--data-binary" in line
        assert all(image["label"] for image in told["images"])
    else:
        assert {entry["name"] for entry in told["inputs"]} == {"image", "pixels", "features"}


@pytest.mark.parametrize("door", ["http", "grpc"])
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_lines_run(code, door, server):
    """In processes of their own: the clients' start-up and threads are theirs. The lines for HTTP serve for gRPC."""
    folder, http, grpc = server
    if door == "grpc" and "tritonclient" not in code:
        pytest.skip("no client of gRPC")
    if door == "grpc":
        code = code.replace("tritonclient.http", "tritonclient.grpc").replace("8000", "8001")
        code = re.sub(r", reply\.get_response\(\).*\)$", ")", code, flags=re.MULTILINE)
    code = code.replace(":8000", f":{http}").replace(":8001", f":{grpc}")
    done = run([sys.executable, "-c", code], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
