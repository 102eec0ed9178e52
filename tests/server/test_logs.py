"""Log lines: they parse, hold what they should, and nothing that came from outside breaks or leaks into them."""

import io
import json
import logging
import threading
import time
from datetime import datetime, timedelta

import pytest

from kpl_engine.server.logs import AccessLog, logging_to, note_request
from kpl_engine.server.requests import ClassifyRequest

LOG = logging.getLogger("kpl_engine.server.test")


def lines(kind, tell, level="info"):
    stream = io.StringIO()
    with logging_to(kind, level, stream):
        tell()
    return stream.getvalue().splitlines()


def answer_one():
    log = AccessLog()
    note_request(client="10.0.0.7")
    log.accepted(ClassifyRequest("lung", images=[b"x", b"y"], names=("Smith_John.png", "b.png"), request_id="r-1"))
    log.replied("http", "infer", "200", 0.0123456)


def test_a_json_line_holds_the_fields_of_the_request():
    (line,) = map(json.loads, lines("json", answer_one))
    moment = datetime.fromisoformat(line.pop("time").replace("Z", "+00:00"))
    assert abs(moment.timestamp() - datetime.now().timestamp()) < 60
    assert moment.utcoffset() == timedelta(0)
    assert line == {
        "level": "info",
        "message": "replied",
        "request_id": "r-1",
        "door": "http",
        "operation": "infer",
        "code": "200",
        "ms": 12.346,
        "num_images": 2,
        "model": "lung",
        "client": "10.0.0.7",
    }


def test_a_text_line_holds_them_too_and_no_name_of_an_image():
    (line,) = lines("text", answer_one)
    for word in (" info ", "replied", "request_id=r-1", "door=http", "ms=12.346", "num_images=2", "client=10.0.0.7"):
        assert word in line
    assert "Smith" not in line


def test_what_was_noted_ends_with_the_reply():
    def tell():
        answer_one()
        AccessLog().replied("http", "infer", "400", 0.0)

    second = json.loads(lines("json", tell)[1])
    assert not {"request_id", "client", "model"} & second.keys()


def test_probes_are_told_at_debug_only():
    def tell():
        AccessLog().replied("grpc", "ready", "OK", 0.0)
        AccessLog().replied("http", "health", "200", 0.0)

    assert lines("text", tell) == []
    assert len(lines("text", tell, "debug")) == 2


@pytest.mark.parametrize("kind", ["text", "json"])
def test_text_from_outside_cannot_begin_a_line_or_move_a_cursor(kind):
    def tell():
        LOG.error("got %s", "a\n2026-01-01T00:00:00Z info forged\x1b[2J\r\x00", extra={"model": "x\ny"})

    (line,) = lines(kind, tell)
    assert line.isprintable()
    if kind == "json":
        assert json.loads(line)["model"] == "x\ny"


def test_a_traceback_is_told_within_one_record():
    def tell():
        try:
            raise ValueError("one\n2026-01-01T00:00:00Z error forged")
        except ValueError:
            LOG.exception("internal error")

    (line,) = map(json.loads, lines("json", tell))
    assert "ValueError: one" in line["traceback"]
    first, *rest = lines("text", tell)
    assert "internal error" in first
    assert all(each.startswith("    ") for each in rest)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_tokens_are_never_told(kind):
    def tell():
        LOG.error("headers: Authorization: Bearer 0123456789abcdef, and basic dXNlcjpwYXNz")
        try:
            raise ValueError("bad header Bearer 0123456789abcdef")
        except ValueError:
            LOG.exception("failed")

    text = "\n".join(lines(kind, tell))
    assert "not told" in text
    assert "0123456789" not in text
    assert "dXNlcj" not in text


def test_a_reader_that_stops_costs_lines_and_not_the_server(monkeypatch):
    monkeypatch.setattr("kpl_engine.server.logs._QUEUE_LINES", 4)
    taken, go_on = threading.Event(), threading.Event()

    class Stopped(io.StringIO):
        def write(self, text):
            taken.set()
            assert go_on.wait(10)
            return super().write(text)

    stream = Stopped()
    with logging_to("text", "info", stream):
        LOG.info("first")
        assert taken.wait(10)
        started = time.monotonic()
        for _ in range(50):
            LOG.info("more")
        assert time.monotonic() - started < 5  # it takes a millisecond; one that waited for the reader never returns
        go_on.set()
    told = stream.getvalue().splitlines()
    assert 5 <= len(told) < 20
    assert "log lines were dropped" in stream.getvalue()


def test_a_reader_that_never_comes_back_does_not_keep_the_process(monkeypatch):
    monkeypatch.setattr("kpl_engine.server.logs._LAST_LINES_S", 0.05)
    go_on, written = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text):
            go_on.wait(5)
            written.set()
            return super().write(text)

    with logging_to("text", "info", Stuck()):
        LOG.info("nobody takes this")
    assert not written.is_set()  # the block ended while the writer was stuck
    go_on.set()


def test_levels_and_handlers_are_as_before_afterwards():
    logger = logging.getLogger("kpl_engine.server")
    before = logger.level, list(logger.handlers), logger.propagate
    assert lines("text", lambda: LOG.info("x"), "error") == []
    assert (logger.level, list(logger.handlers), logger.propagate) == before
