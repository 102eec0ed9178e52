"""A result on disk: whole or not at all, and nothing read that is not one."""

import copy
import json
import math
import os
import stat

import pytest

from kpl_engine.bench import results
from kpl_engine.bench.fields import check_fields
from kpl_engine.bench.records import Result
from kpl_engine.bench.results import check_writable, read_result, tells_speed, without_speed, write_result
from kpl_engine.errors import InputError, KplError
from tests.bench.made_results import make_result


@pytest.fixture(scope="module")
def made():
    return make_result(1, count=300)


@pytest.fixture
def result(made):
    return copy.deepcopy(made)


def written(tmp_path, value):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(value))
    return path


def test_what_is_written_is_read(tmp_path, result):
    path = tmp_path / "new" / "folder" / "result.json"
    check_writable(path)
    write_result(path, result)
    assert read_result(path) == result
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_partial_result_is_one(tmp_path, result):
    for key in ("scenarios", "probes", "peak_qps", "batches", "stages", "cold_start", "commit"):
        del result[key]
    result |= {"status": "failed", "error": "the server at http://127.0.0.1:1 closed the connection"}
    write_result(tmp_path / "r.json", result)
    assert read_result(tmp_path / "r.json") == result


def test_a_write_that_fails_leaves_what_was_there(tmp_path, result, monkeypatch):
    path = tmp_path / "result.json"
    write_result(path, result)
    before = path.read_bytes()

    def refuse(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", refuse)
    with pytest.raises(KplError, match="No space left on device; what it held before is still there"):
        write_result(path, result | {"status": "failed"})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_the_file_and_its_name_are_on_disk_before_it_is_said(tmp_path, result, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(results.os, "fsync", lambda handle: (done.append(os.fstat(handle).st_mode), fsync(handle))[1])
    monkeypatch.setattr(results.os, "replace", lambda *names: (done.append("replace"), replace(*names))[1])
    write_result(tmp_path / "result.json", result)
    assert [each if each == "replace" else stat.S_ISDIR(each) for each in done] == [False, "replace", True]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_told_with_its_place(tmp_path, result, value):
    result["scenarios"][2]["resources"]["cpu_cores"] = value
    with pytest.raises(KplError, match=r"scenarios\.2\.resources\.cpu_cores is (nan|inf), which is no measurement"):
        write_result(tmp_path / "result.json", result)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the result .*; choose one that you may write to"):
        check_writable(tmp_path / "file" / "result.json")
    with pytest.raises(InputError, match=r"cannot write the result '/proc/"):  # not even for the superuser
        check_writable(results.Path("/proc/kpl/result.json"))
    with pytest.raises(InputError, match="expected a file, that is a folder"):
        check_writable(tmp_path)


def test_a_trial_leaves_nothing(tmp_path):
    (tmp_path / "result.json").write_text("old")
    check_writable(tmp_path / "result.json")
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "old"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"kpl", "not JSON: .* line 1"),
        (b'{"kpl_engine_bench": 1, "status": "comp', "the file ends in the middle: it was cut off"),
        (b"[]", "expected a result of kpl-engine bench"),
        (b'{"schema": 3}', "expected a result of kpl-engine bench"),
        (b'{"kpl_engine_bench": true}', "expected a result of kpl-engine bench"),
        (b'{"kpl_engine_bench": 2}', "expected format 1, got 2, of a newer kpl-engine; upgrade"),
        (b'{"kpl_engine_bench": 0}', "expected format 1, got 0, of an older kpl-engine; measure again"),
        (b'{"kpl_engine_bench": 1, "kpl_engine_bench": 1}', "stands twice"),
        (b'{"kpl_engine_bench": 1, "peak_qps": NaN}', "NaN is not a JSON number"),
        (b'{"kpl_engine_bench": 1, "peak_qps": 1e999}', "does not fit a float64"),
        (b'{"kpl_engine_bench": 1, "date": "\xff"}', "not UTF-8"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested deeper"),
        (b'{"kpl_engine_bench": 1}', "command: the field is missing"),
    ],
)
def test_what_is_no_result_is_refused_by_what_it_is(tmp_path, data, message):
    path = tmp_path / "result.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"cannot read the result '.*result\.json': .*{message}"):
        read_result(path)


def change(result, place, value):
    *way, last = place.split(".")
    for step in way:
        result = result[int(step) if step.isdigit() else step]
    if value is KeyError:
        del result[last]
    else:
        result[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("status", "done", "status: expected one of complete, failed, wrong, got 'done'"),
        ("machine.cores", 2.5, "machine.cores: expected a whole number, got 2.5"),
        ("machine.cores", True, "machine.cores: expected a whole number, got True"),
        ("machine.load_average", 0.5, "machine.load_average: expected a list, got 0.5"),
        ("machine.gpus", [1], r"machine\.gpus\[0\]: expected a text, got 1"),
        ("machine", None, "machine: expected an object, got null"),
        ("versions.numpy", None, "versions.numpy: expected a text, got null"),
        ("subject.fingerprint", KeyError, "subject.fingerprint: the field is missing"),
        ("surprise", 1, "surprise: there is no such field"),
        ("scenarios.1.scenario", KeyError, r"scenarios\[1\]\.scenario: the field is missing"),
        ("scenarios.0.latency.samples", "fast", r"scenarios\[0\]\.latency\.samples: expected a list, got 'fast'"),
        ("scenarios.0.latency.samples", [], "1 to 20000 samples, got 300, 1 and 0"),
        ("scenarios.0.latency.samples", [1.0, "2"], r"samples\[1\]: expected a number, got '2'"),
        ("scenarios.0.latency.samples", [1.0, False], r"samples\[1\]: expected a number, got False"),
        ("scenarios.0.latency.every", 0, "expected a count and every of at least 1"),
        ("scenarios.0.latency.percentiles.95", {"value": 1.0, "low": None, "high": None}, "expected some of 50, 90"),
        ("scenarios.0.latency.mean.low", "1", r"mean\.low: expected a number or null, got '1'"),
        ("scenarios.0.latency.mean.low", None, "expected low <= high or null for both"),
        ("scenarios.0.latency.mean.low", 1e9, "expected low <= high or null for both"),
        ("scenarios.0.is_valid", 1, r"scenarios\[0\]\.is_valid: expected true or false, got 1"),
        ("scenarios.0.loadgen", {"a": []}, r"loadgen\.a: expected a number or a text, got a list"),
        ("probes", {}, "probes: expected a list, got an object"),
        ("batches.0.batch", "8", r"batches\[0\]\.batch: expected a whole number"),
        ("stages.stages.encode.count", KeyError, r"stages\.stages\.encode\.count: the field is missing"),
    ],
)
def test_a_field_that_is_not_as_it_should_be_is_named(tmp_path, result, place, value, message):
    change(result, place, value)
    with pytest.raises(InputError, match=message):
        read_result(written(tmp_path, result))


def test_settings_are_anybodys(tmp_path, result):
    result["settings"]["whatever"] = {"a": [1, None, {"b": True}]}
    assert read_result(written(tmp_path, result)) == result


def test_a_text_among_loadgens_numbers_is_read(result):
    result["scenarios"][0]["loadgen"] = {"SUT name": "PySUT", "qps": 3}
    check_fields(result, Result)


def test_a_file_over_the_limit_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    with path.open("wb") as stream:
        stream.truncate(results.MAX_BYTES + 1)
    monkeypatch.setattr(results, "parse_strict", None)  # would fail if it were called
    with pytest.raises(InputError, match=f"{results.MAX_BYTES + 1} bytes, more than a result can have"):
        read_result(path)


def test_what_is_no_file_does_not_keep_the_reader_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="expected a plain file"):
        read_result(tmp_path / "pipe")
    with pytest.raises(InputError, match="expected a plain file"):
        read_result(tmp_path)
    with pytest.raises(InputError, match=r"No such file or directory; name the result\.json"):
        read_result(tmp_path / "none.json")


def test_a_run_with_a_wrong_answer_has_no_speed(result):
    assert tells_speed(result)
    wrong = copy.deepcopy(result)
    wrong["scenarios"][1]["is_speed_told"] = False
    assert not tells_speed(wrong)
    assert not tells_speed(result | {"status": "wrong"})
    left = without_speed(wrong)
    assert set(result) - set(left) == {"probes", "peak_qps", "batches", "stages", "cold_start"}
    kept = {"scenario", "how", "is_speed_told", "check_before", "check_after", "notes"}
    assert all(set(each) == kept for each in left["scenarios"])
