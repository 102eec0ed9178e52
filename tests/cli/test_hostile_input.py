"""What a clumsy or hostile user does to the commands: no traceback, no broken JSON or CSV, no lost figures."""

import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kpl_engine.cli import common, demo_command, eval_command
from kpl_engine.cli.main import main
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.imaging.sources import list_images

BUNDLE = str(demo_bundle())
IMAGES = str(demo_images())
COMMAND = [sys.executable, "-m", "kpl_engine"]
ODD_NAMES = [
    b"new\nline.png",
    b"carriage\rreturn.png",
    b"red\x1b[31m.png",
    b"bad\xff.png",
    b'quo"te,.png',
    b"-dash.png",
]


@pytest.fixture
def odd_folder(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    source = list_images(demo_images())[0]
    for name in ODD_NAMES:
        shutil.copy(source, os.path.join(os.fsencode(folder), name))
    (folder / "torn\n\x1b.png").write_bytes(b"\x89PNG")
    return folder


def run(*arguments, **options):
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, check=False, timeout=60, **options)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


def shell(command, cwd):
    done = subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done


def test_odd_file_names_leave_json_csv_and_terminal_whole(odd_folder):
    by_json = run("classify", BUNDLE, odd_folder, "--json")
    record = json.loads(by_json.stdout.decode("ascii"))
    assert by_json.returncode == 1
    assert {os.fsencode(os.path.basename(entry["file"])) for entry in record["images"]} >= set(ODD_NAMES)
    rows = list(csv.reader(io.StringIO(run("classify", BUNDLE, odd_folder, "--csv").stdout.decode(), newline="")))
    assert len(rows) == len(ODD_NAMES) + 2
    assert len({len(row) for row in rows}) == 1
    assert any("carriage\rreturn.png" in row[0] for row in rows)
    table = run("classify", BUNDLE, odd_folder)
    for stream in (table.stdout, table.stderr):
        assert b"\x1b" not in stream
        assert b"\r" not in stream
    assert table.stderr.count(b"failed: ") == table.stderr.count(b"torn") == 1


def test_a_list_on_standard_input_from_any_editor(odd_folder):
    paths = [os.path.join(os.fsencode(odd_folder), name) for name in (b"bad\xff.png", b"-dash.png")]
    for text in (b"\n".join(paths), b"\xef\xbb\xbf" + paths[1] + b"\r\n\r\n   \r\n" + paths[0]):
        done = run("classify", BUNDLE, "-", "--json", input=text)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["images"]) == 2


@pytest.mark.parametrize("command", [f"classify {BUNDLE} {IMAGES} --json", "doctor"])
def test_a_full_disk_behind_standard_output_is_named(command, tmp_path):
    done = shell(f"{sys.executable} -m kpl_engine {command} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert os.strerror(errno.ENOSPC) in done.stderr


def test_closed_streams(tmp_path):
    call = f"{sys.executable} -m kpl_engine classify {BUNDLE} {IMAGES} --csv"
    done = shell(f"{call} >&-", tmp_path)
    assert (done.returncode, "standard output is closed" in done.stderr) == (2, True)
    done = shell(f"{call} 2>&- | head -n 1", tmp_path)
    assert done.stdout.startswith("file,label,")
    done = shell(f"{call} <&- | wc -l", tmp_path)
    assert int(done.stdout) == len(list_images(demo_images())) + 1


def test_interrupted_at_any_moment(tmp_path):
    for delay in (0.15, 0.3, 0.6):
        process = subprocess.Popen([*COMMAND, "demo"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        # Before Python has reached the command itself nothing of ours can answer.
        assert process.returncode in (0, 130) or b"kpl_engine/cli" not in err


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        code = main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return invoke


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--rows", "-1"], "--rows"),
        (["demo", "-o", "taken"], "is not a folder"),
        (["demo", "-o", "taken/below"], "is not a folder"),
        (["eval", BUNDLE, IMAGES, "-o", "taken"], "choose another with -o"),
        (["classify", BUNDLE, IMAGES, "--prior", "normal=1,normal=2"], "twice"),
        (["classify", BUNDLE, IMAGES, "--top", "-1"], "top_evidence"),
        (["classify", BUNDLE, IMAGES, "--threads", "10000"], "num_threads"),
        (["classify", BUNDLE, IMAGES, "--decode-threads", "10000"], "num_threads"),
        (["classify", "/dev/zero", IMAGES], "/dev/zero"),
        (["classify", "pipe", IMAGES], "pipe"),
        (["knowledge", "check", "pipe"], "pipe"),
        (["knowledge", "show", "/dev/zero"], "/dev/zero"),
        (["fit", BUNDLE, IMAGES, "-o", "taken"], "taken"),
        (["fit", BUNDLE, IMAGES, "-o", "absent/x.kpl"], "absent"),
        (["fit", "absent/x.kpl", IMAGES], "no bundle"),
    ],
)
def test_refused_at_once_with_two(call, tmp_path, arguments, says, monkeypatch):
    (tmp_path / "taken").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("kpl_engine.engine.Engine.encode", lambda *_, **__: pytest.fail("worked before it looked"))
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert (tmp_path / "taken").read_text() == "mine"


def test_figures_survive_a_full_disk_for_the_pictures(call, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(eval_command, "draw_confusion", fail)
    code, out, err = call("eval", BUNDLE, IMAGES, "--json")
    assert code == 1
    assert json.loads(out)["methods"]["kpl"]["confusion_png"] is None
    assert os.strerror(errno.ENOSPC) in err
    code, out, _ = call("eval", BUNDLE, IMAGES)
    assert code == 1
    assert "image proxy + OT" in out
    monkeypatch.setattr(demo_command, "draw_confusion", fail)
    code, out, err = call("demo")
    assert code == 1
    assert "zeroshot" in out
    assert os.strerror(errno.ENOSPC) in err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ImportError("initialization failed"), 1, "initialization failed"),
        (MemoryError(), 1, "fewer images"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "a\nb"), 1, r"'a\nb': Permission denied"),
    ],
)
def test_what_the_machine_does_is_one_line(call, monkeypatch, error, code, says):
    def fail(*_):
        raise error

    monkeypatch.setattr("kpl_engine.cli.doctor_command.examine", fail)
    result, out, err = call("doctor")
    assert (result, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


def test_json_has_no_infinity():
    assert json.loads(common.to_json({"a": [float("inf"), -float("inf"), float("nan"), 1.5]})) == {
        "a": [None, None, None, 1.5]
    }
