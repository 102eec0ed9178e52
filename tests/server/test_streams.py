"""Streams: their state over restarts, errors, replaced models and disks that fail."""

import errno
import logging
import os
import threading
import time

import numpy as np
import pytest

from kpl_engine.config import MethodConfig
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.errors import ConfigError, ImageError, ShapeError
from kpl_engine.server import snapshots
from kpl_engine.server import streams as module
from kpl_engine.server.streams import Streams
from kpl_engine.solver.streaming import StreamSolver
from tests.server.streaming import CONFIG, ROWS, WIDTH, answers, ask, images_of, knowledge, request, same

NEVER = 3600.0  # an interval that does not end within a test


@pytest.fixture
def opened():
    """Make and start `Streams`; all are closed at the end."""
    made = []

    def start(folder, interval_s=NEVER, **options):
        found = Streams(folder, interval_s, **options)
        made.append(found)
        found.start()
        return found

    yield start
    for each in made:
        each.close()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("method", ["kpl_stream", "onzeta"])
def test_a_restart_changes_no_bit(tmp_path, opened, method):
    base = knowledge()
    expected = answers(12, base, method)
    for start, stop in ((0, 1), (1, 2), (2, 7), (7, 12)):
        streams = opened(tmp_path / "made" / "here")
        found = answers(stop, base, method, start, streams)
        assert all(same(a, b) for a, b in zip(found, expected[start:stop], strict=True))
        assert images_of(streams) == [stop * ROWS]
        streams.close()
    assert expected[0].mode == "stream"
    assert {each.method for each in expected} == {method}


@pytest.mark.parametrize("method", ["kpl_stream", "onzeta"])
def test_tensors_of_a_solver_keep_its_text_proxies(method):
    solver = StreamSolver(knowledge(), method, CONFIG)
    assert StreamSolver.from_tensors(solver.to_tensors(), knowledge(), method, CONFIG).num_images == 0
    solver.answer(request(0).features)
    again = StreamSolver.from_tensors(solver.to_tensors(), knowledge(), method, CONFIG)
    for name in ("kept", "scores"):
        pairs = zip(getattr(again.text_proxies, name), getattr(solver.text_proxies, name), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    for name, tensor in solver.to_tensors().items():
        broken = dict(solver.to_tensors())
        del broken[name]
        with pytest.raises(ShapeError):
            StreamSolver.from_tensors(broken, knowledge(), method, CONFIG)
        with pytest.raises(ShapeError):
            StreamSolver.from_tensors({**broken, name: tensor[..., :-1]}, knowledge(), method, CONFIG)
    wrong = {**solver.to_tensors(), "kept": solver.to_tensors()["kept"] + 5}
    with pytest.raises(ShapeError, match="kept"):
        StreamSolver.from_tensors(wrong, knowledge(), method, CONFIG)
    with pytest.raises(ShapeError, match="another knowledge base or method"):
        StreamSolver.from_tensors(solver.to_tensors(), knowledge(), method, MethodConfig(tau_t=0.5, min_batch=4))


@pytest.mark.parametrize("method", ["kpl_stream", "onzeta"])
def test_an_answer_that_raises_has_not_happened(method, opened, monkeypatch):
    base, streams = knowledge(), opened(None)
    expected = answers(6, base, method)
    assert same(ask(streams, 0, base, method), expected[0])
    wide = EncodedImages.from_features(np.ones((2, WIDTH + 1), np.float32))
    bad = EncodedImages.from_features(np.full((2, WIDTH), np.nan, np.float32))
    for encoded in (wide, bad):
        with pytest.raises(ShapeError):
            streams.answer("demo", base, method, CONFIG, encoded, 2, "e1")
    with monkeypatch.context() as patch:

        def fails(*_):
            raise MemoryError("no room for the answer")

        patch.setattr(module, "assemble", fails)  # after the solver has learned
        with pytest.raises(MemoryError):
            ask(streams, 1, base, method)
    assert images_of(streams) == [ROWS]
    none = EncodedImages(
        np.empty((0, WIDTH), np.float32), np.empty(0, np.int64), ("a",), ((0, "a", ImageError("not a picture")),)
    )
    failed = streams.answer("demo", base, method, CONFIG, none, 2, "e1")
    assert (failed.labels, failed.mode, failed.method) == ((None,), "stream", method)
    assert all(same(a, b) for a, b in zip(answers(6, base, method, 1, streams), expected[1:], strict=True))


def test_methods_that_are_no_stream(opened):
    streams = opened(None)
    with pytest.raises(ConfigError, match="kpl_stream"):
        ask(streams, 0, knowledge(), "kpl")
    with pytest.raises(ConfigError, match="interval"):
        Streams(None, 0.0)


def test_each_model_base_and_method_is_a_stream_of_its_own(opened, tmp_path):
    streams = opened(tmp_path)
    chest, eye = knowledge(), knowledge(2, "eye")
    kinds = [(m, b, k) for m in ("a", "b") for b in (chest, eye) for k in ("kpl_stream", "onzeta")]
    for model, base, method in kinds:
        for number in range(2):
            found = ask(streams, number, base, method, model)
        assert same(found, answers(2, base, method)[1])
    assert images_of(streams) == [2 * ROWS] * 8
    assert streams.snapshot_now()
    assert len(files(tmp_path)) == 8


def test_answers_of_one_stream_keep_their_order_and_others_do_not_wait(opened, monkeypatch):
    base, streams = knowledge(), opened(None)
    ask(streams, 0, base)
    began, go = threading.Event(), threading.Event()
    order, real = [], StreamSolver.answer

    def slow(self, features):
        if self.method == "kpl_stream":
            began.set()
            assert go.wait(20)
            order.append(features.tobytes())
        return real(self, features)

    monkeypatch.setattr(StreamSolver, "answer", slow)
    waiting = []
    turns = next(iter(streams._streams.values())).turns
    for number in range(1, 9):
        waiting.append(threading.Thread(target=ask, args=(streams, number, base)))
        waiting[-1].start()
        end = time.monotonic() + 20
        while turns._taken != number + 1:
            assert time.monotonic() < end
    assert began.wait(20)
    assert ask(streams, 0, base, "onzeta").labels  # another stream, while this one is at work
    assert not streams.status()["streams"][0]["snapshot_age_s"]  # nor does the status wait
    go.set()
    for thread in waiting:
        thread.join(20)
    assert order == [request(number).features.tobytes() for number in range(1, 9)]
    monkeypatch.undo()
    assert same(ask(streams, 9, base), answers(10, base)[9])


def test_many_threads_lose_no_answer(opened, tmp_path):
    base, streams = knowledge(), opened(tmp_path, interval_s=0.001)
    work = [
        threading.Thread(target=lambda k=k: [ask(streams, i, base, model=f"m{i % 2}", seed=k) for i in range(40)])
        for k in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join(60)
    assert images_of(streams) == [80 * ROWS, 80 * ROWS]
    streams.close()
    again = opened(tmp_path)
    assert [ask(again, 0, base, model=m).method_used for m in ("m0", "m1")] == ["kpl_stream"] * 2
    assert images_of(again) == [81 * ROWS] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "e2"},
        {"config": MethodConfig(k=1, min_batch=4)},
        {"base": knowledge(5)},
    ],
    ids=["encoder", "numbers", "knowledge"],
)
def test_a_snapshot_made_with_something_else_is_set_aside(tmp_path, opened, caplog, change):
    first = opened(tmp_path)
    ask(first, 0, knowledge())
    first.close()
    (old,) = files(tmp_path)
    kept = (tmp_path / old).read_bytes()
    again = opened(tmp_path)
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            ask(again, number, **{"base": knowledge(), **change})
    assert images_of(again) == [2 * ROWS]
    assert (tmp_path / f"{old}.aside-1").read_bytes() == kept
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "other knowledge" in told[0]


def test_a_replaced_model_goes_on_for_its_last_requests(tmp_path, opened):
    now = [0.0]
    streams = opened(tmp_path, clock=lambda: now[0])
    ask(streams, 0, knowledge(), encoder="old")
    ask(streams, 0, knowledge(), encoder="new")
    assert same(ask(streams, 1, knowledge(), encoder="old"), answers(2, knowledge())[1])
    now[0] = 1.0
    ask(streams, 1, knowledge(), encoder="new")
    streams.snapshot_now()
    assert images_of(streams) == [2 * ROWS, 2 * ROWS]
    now[0] = 40.0
    streams.snapshot_now()
    assert images_of(streams) == [2 * ROWS]
    assert [name.endswith(".aside-1") for name in files(tmp_path)].count(True) == 1
    assert same(ask(streams, 2, knowledge(), encoder="new"), answers(3, knowledge())[2])


def test_streams_in_memory_alone_do_not_pile_up(opened):
    now = [0.0]
    streams = opened(None, clock=lambda: now[0])
    for number in range(9):
        now[0] += 100
        ask(streams, number, knowledge(number))
    assert len(images_of(streams)) <= 2


def test_an_unloaded_model_leaves_memory_and_comes_back(tmp_path, opened, monkeypatch):
    streams = opened(tmp_path)
    base, expected = knowledge(), answers(4, knowledge())
    ask(streams, 0, base)
    ask(streams, 0, base, model="other")
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "_write", _full)
        streams.forget("demo")
        assert len(images_of(streams)) == 2  # it is nowhere else
    assert same(ask(streams, 1, base), expected[1])  # loaded again before the disk had room
    assert streams.snapshot_now()
    assert images_of(streams) == [2 * ROWS, ROWS]
    streams.forget("demo")
    assert [each["model"] for each in streams.status()["streams"]] == ["other"]
    assert same(ask(streams, 2, base), expected[2])


def _full(path, data):
    path.write_bytes(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_fails_no_answer(tmp_path, opened, monkeypatch, caplog):
    told = []
    base, now = knowledge(), [10.0]
    streams = opened(tmp_path, clock=lambda: now[0], report=lambda name, error: told.append((name, error)))
    ask(streams, 0, base)
    assert streams.snapshot_now()
    (name,) = files(tmp_path)
    whole = (tmp_path / name).read_bytes()
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(snapshots, "_write", _full)
        assert same(ask(streams, 1, base), answers(2, base)[1])
        assert not streams.snapshot_now()
        assert not streams.snapshot_now()
        assert [record.levelname for record in caplog.records] == ["ERROR"]  # once, not each interval
        now[0] = 12.5
        status = streams.status()
        assert "No space left" in status["last_error"]
        assert status["last_error_age_s"] == 2.5
        assert status["streams"][0]["snapshot_age_s"] == 2.5
        assert not status["streams"][0]["is_saved"]
    assert (tmp_path / name).read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []  # half a file keeps the disk full
    assert streams.snapshot_now()
    assert streams.status()["last_error"] is None
    assert [(who, getattr(error, "errno", None)) for who, error in told] == [
        ("demo/chest/kpl_stream", code) for code in (None, errno.ENOSPC, errno.ENOSPC, None)
    ]
    streams.close()
    assert same(ask(opened(tmp_path), 2, base), answers(3, base)[2])


def test_an_error_nobody_expects_does_not_end_the_writing(tmp_path, opened, monkeypatch):
    failed, saved = threading.Event(), threading.Event()
    streams = opened(tmp_path, 0.005, report=lambda _, error: (saved if error is None else failed).set())
    with monkeypatch.context() as patch:
        patch.setattr(StreamSolver, "to_tensors", lambda _: 1 / 0)
        ask(streams, 0, knowledge())
        assert failed.wait(20)
    assert saved.wait(20)


def test_a_folder_that_cannot_be_written(tmp_path, opened, monkeypatch):
    base, first = knowledge(), opened(tmp_path)
    ask(first, 0, base)
    first.close()
    real = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots.os, "open", read_only)
        streams = opened(tmp_path)
        assert same(ask(streams, 1, base), answers(2, base)[1])
        assert not streams.snapshot_now()
        assert "Read-only" in streams.status()["last_error"]
    assert streams.snapshot_now()
    with pytest.raises(ConfigError, match="another server"):  # the lock was taken when it could be
        Streams(tmp_path, NEVER).start()


def test_one_server_a_folder(tmp_path, opened):
    first = opened(tmp_path)
    second = Streams(tmp_path, NEVER)
    with pytest.raises(ConfigError, match=r"another server uses"):
        second.start()
    first.close()
    second.start()
    second.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="got a file"):
        Streams(tmp_path / "file", NEVER).start()
    with pytest.raises(ConfigError, match="cannot make"):
        Streams(tmp_path / "file" / "below", NEVER).start()


def test_what_the_server_writes_is_for_itself_alone(tmp_path, opened):
    streams = opened(tmp_path / "new")
    ask(streams, 0, knowledge(), model="../../../etc/passwd \0 \u00e9" + "x" * 300)
    assert streams.snapshot_now()
    assert len(files(tmp_path / "new")) == 1
    modes = {path.stat().st_mode & 0o077 for path in [tmp_path / "new", *(tmp_path / "new").iterdir()]}
    assert modes == {0}
