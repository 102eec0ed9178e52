"""Bundles loaded, shared, swapped and taken away while they serve."""

import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from kpl_engine.building import add_proxies
from kpl_engine.bundle import Bundle, pack, write_bundle
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.encoder.select import load_encoder
from kpl_engine.engine import Engine
from kpl_engine.errors import (
    BundleCorruptError,
    BundleError,
    BundleVersionError,
    ConfigError,
    EncoderError,
    InputError,
    KnowledgeError,
    NotReadyError,
    SolverError,
    UnknownModelError,
)
from kpl_engine.imaging.sources import list_images
from kpl_engine.server import loaded
from kpl_engine.server.loaded import LoadedModel
from kpl_engine.server.models import LoadedModels
from kpl_engine.server.parts import Models, Query
from kpl_engine.server.settings import ServerSettings
from kpl_engine.strict_json import thaw

WAIT_S = 20.0


class Encoders:
    """Opens fake encoders of the demo's width and remembers them; ``on_open`` is called before each."""

    def __init__(self):
        self.opened, self.closed, self.devices = [], [], []
        self.on_open = lambda: None

    def __call__(self, bundle, device, config):
        self.on_open()
        self.devices.append(device)
        encoder = FakeEncoder(64, (96, 96), batch_size=config.batch_size)
        encoder.fingerprint = bundle.manifest["encoder"]["fingerprint"]
        encoder.close = lambda: self.closed.append(encoder)
        self.opened.append(encoder)
        return encoder


@pytest.fixture
def encoders():
    return Encoders()


@pytest.fixture(scope="session")
def features(demo_engine):
    return demo_engine.encode(list_images(demo_images())).features


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The demo bundle with hardly a graph: for fake encoders, quick to verify."""
    path = tmp_path_factory.mktemp("small") / "small.kpl"
    with Bundle.open(demo_bundle()) as demo:
        manifest, entry = thaw(demo.manifest), demo.manifest["encoder"]
        files = {name: demo for name in demo.names if name != entry["image"]["file"] and name != "text.onnx"}
        write_bundle(path, manifest, {**files, entry["image"]["file"]: b"image", "text.onnx": b"text"}).close()
    return path


def rebuilt(source, target, fingerprint):
    """A copy of a bundle that says its encoder is another one."""
    with Bundle.open(source) as bundle:
        manifest = thaw(bundle.manifest)
        manifest["encoder"]["fingerprint"] = fingerprint
        write_bundle(target, manifest, dict.fromkeys(bundle.names, bundle), overwrite=target.exists()).close()
    return target


def fitted(source, target, features, method="kpl"):
    """A copy of a bundle with proxies fitted to ``features``."""
    with Engine.load(source, device="cpu") as engine:
        frozen, _ = engine.fit(features=features, method=method)
        fingerprint = engine.knowledge().fingerprint
    entry = {"method": frozen.method, "num_images": frozen.num_images, "knowledge_fingerprint": fingerprint}
    return add_proxies(source, "chest", *frozen.to_tensors(), entry, target)


@pytest.fixture
def make(small, encoders):
    """Started models over fake encoders; closed at the end."""
    made = []

    def start(*bundles, **settings):
        settings.setdefault("device", "cpu")
        gpus = settings.pop("gpus", 0)
        models = LoadedModels(
            ServerSettings(bundles=bundles or (small,), **settings), open_encoder=encoders, gpus=lambda: gpus
        )
        made.append(models)
        models.start()
        return models

    yield start
    for models in made:
        models.close()


def query(features, mode="frozen", method=None):
    return Query(EncodedImages.from_features(features), "chest", method, mode, None, 2)


def states(models):
    return {entry.name: entry.state for entry in models.index()}


def test_a_bundle_answers_as_its_engine(tmp_path, features):
    path = fitted(demo_bundle(), tmp_path / "lung.kpl", features)
    models = LoadedModels(ServerSettings(bundles=(path,), device="cpu"))
    checked: Models = models  # the protocol, for readers
    checked.start()
    try:
        model = models.acquire("lung", "1")
        assert model.info.knowledge[0].frozen == "kpl"
        assert model.info.embed_dim == 64
        assert model.info.max_batch == 8
        assert model.lane.buckets == (1, 2, 4, 8)
        assert not model.lane.pads
        assert model.base(None).name == "chest"
        assert model.frozen("chest").method == "kpl"
        pictures = list_images(demo_images())[:9]
        with Engine.load(path, device="cpu") as engine:
            prepared = np.stack([engine.encoder.preprocess.apply(np.zeros((50, 40, 3), np.uint8))] * 3)
            # The same session settings give the same bits but for the number of threads: 1e-6 is float32 of unit rows.
            np.testing.assert_allclose(
                model.lane.encoders[0].encode_images(prepared),
                engine.encoder.encode_images(prepared),
                atol=1e-6,
                rtol=0,
            )
            for mode in ("batch", "frozen"):
                (got,) = model.solve([query(features, mode)])
                want = engine.classify(features=features, mode=mode)
                assert got.labels == want.labels
                assert got.warnings == want.warnings
                np.testing.assert_allclose(got.probabilities, want.probabilities, atol=1e-6, rtol=0)
            assert engine.classify(pictures, mode="frozen").is_ok.all()
        models.release(model)
    finally:
        models.close()


def test_the_method_and_mode_are_checked_before_anything_is_decoded(tmp_path, small, encoders, features, make):
    model = make(small).acquire("small")
    for wrong in (("guess", "batch", None), (None, "frozen", None), (None, "batch", {"normal": 1.0})):
        with pytest.raises(InputError):
            model.check("chest", *wrong)
    shares = dict.fromkeys(model.base("chest").classes, 0.2)
    with pytest.raises(InputError, match="stream"):
        model.check("chest", None, "stream", shares)
    with pytest.raises(KnowledgeError, match="chest"):
        model.check("heart", None, "batch", None)
    model.check("chest", "kpl", "batch", shares)
    model.check("chest", None, "stream", None)


def test_models_with_one_encoder_share_it(tmp_path, small, encoders, make):
    twin = shutil.copytree(small, tmp_path / "twin.kpl")
    other = rebuilt(small, tmp_path / "other.kpl", "f" * 64)
    models = make(small, twin, other)
    a, b, c = (models.acquire(name) for name in ("small", "twin", "other"))
    assert a.lane is b.lane
    assert a.lane is not c.lane
    assert len(encoders.opened) == 2
    assert set(models.lanes()) == {a.lane, c.lane}
    for model in (a, b, c):
        models.release(model)
    models.unload("small")
    assert encoders.closed == []
    models.unload("twin")
    assert encoders.closed == list(a.lane.encoders)
    assert models.lanes() == (c.lane,)


def test_a_reload_with_the_same_encoder_opens_none(make, encoders):
    models = make()
    before = models.acquire("small")
    models.load("small")
    after = models.acquire("small")
    assert after is not before
    assert after.lane is before.lane
    assert len(encoders.opened) == 1
    models.release(before)
    assert encoders.closed == []
    models.release(after)


def test_two_names_loaded_at_once_open_one_encoder(tmp_path, small, encoders, make):
    twin = shutil.copytree(small, tmp_path / "twin.kpl")
    models = make(small, twin)
    models.unload("small")
    models.unload("twin")
    meeting = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        loads = [
            pool.submit(lambda name: (meeting.wait(WAIT_S), models.load(name)), name) for name in ("small", "twin")
        ]
        for each in loads:
            each.result(WAIT_S)
    assert len(encoders.opened) == 2  # one at the start, one now
    assert len(models.lanes()) == 1


def test_the_fingerprint_changes_with_what_answers(tmp_path, small, features, make):
    path = shutil.copytree(small, tmp_path / "lung.kpl")
    models = make(path)
    seen = []

    def load():
        models.load("lung")
        model = models.acquire("lung")
        seen.append(model.info.fingerprint)
        models.release(model)

    load()
    load()
    assert seen[0] == seen[1]
    # Engine.fit needs a session; the proxies fit the small bundle too, which has the demo's knowledge base.
    whole = fitted(demo_bundle(), tmp_path / "whole.kpl", features)
    with Engine.load(whole, device="cpu") as engine:
        frozen, base = engine.frozen_proxies(), engine.knowledge()
    for scale in (1.0, 2.0):
        changed = replace(frozen, temperature=frozen.temperature * scale)
        entry = {"method": "kpl", "num_images": frozen.num_images, "knowledge_fingerprint": base.fingerprint}
        add_proxies(path, "chest", *changed.to_tensors(), entry)
        load()
    rebuilt(path, path, "e" * 64)
    load()
    assert len(set(seen)) == 4  # none, fitted, fitted with another temperature, another encoder


def spoil_byte(path):
    file = next((path / "knowledge").iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def spoil_version(path):
    file = path / "manifest.json"
    data, spoiled = file.read_bytes(), re.sub(rb'("format_version": *)1', rb"\g<1>9", file.read_bytes())
    assert data != spoiled
    file.write_bytes(spoiled)


BROKEN = {
    "a byte": (spoil_byte, BundleCorruptError),
    "another version": (spoil_version, BundleVersionError),
    "half a bundle": (lambda path: (path / "manifest.json").unlink(), BundleCorruptError),
    "gone": (shutil.rmtree, BundleError),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_bundle_leaves_the_old_one_serving(tmp_path, small, features, make, encoders, case):
    spoil, error = BROKEN[case]
    path = shutil.copytree(small, tmp_path / "lung.kpl")
    models = make(path)
    held = models.acquire("lung")
    spoil(path)
    with pytest.raises(error) as raised:
        models.load("lung")
    (entry,) = models.index()
    assert (entry.state, "failed" in entry.reason) == ("READY", True)
    for told in (entry.reason, str(raised.value)):  # clients read both: the bundle by its name, not where it lies
        assert "lung.kpl" in told
        assert str(tmp_path) not in told
    model = models.acquire("lung")
    assert model is held
    assert model.solve([query(features, "batch")])[0].is_ok.all()
    assert encoders.closed == []
    models.release(model)
    models.release(held)
    models.unload("lung")
    assert len(encoders.closed) == len(encoders.opened) == 1
    with pytest.raises(error):
        models.load("lung")
    assert states(models) == {"lung": "UNAVAILABLE"}


@pytest.mark.parametrize("fails", ["opening", "running"])
def test_an_encoder_that_fails_leaves_the_old_one_serving(tmp_path, small, make, encoders, fails, monkeypatch):
    path = rebuilt(small, tmp_path / "lung.kpl", "a" * 64)
    models = make(path, instances=2)
    before = models.acquire("lung")
    rebuilt(small, path, "b" * 64)

    def fail(*_):
        raise EncoderError("no memory")

    if fails == "opening":
        encoders.on_open = lambda: fail() if len(encoders.opened) == 3 else None  # the second copy of the new one
    else:
        monkeypatch.setattr(FakeEncoder, "encode_images", fail)
    with pytest.raises(EncoderError, match="no memory"):
        models.load("lung")
    assert models.acquire("lung") is before
    assert models.lanes() == (before.lane,)
    assert encoders.closed == encoders.opened[2:]  # what had been opened of the new one
    assert not set(before.lane.encoders) & set(encoders.closed)


def test_a_solver_that_fails_gives_the_encoder_back(tmp_path, small, make, encoders, monkeypatch):
    path = rebuilt(small, tmp_path / "lung.kpl", "a" * 64)
    models = make(path)
    rebuilt(small, path, "b" * 64)

    def fail(_):
        raise SolverError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(loaded, "warm_answers", fail)
        with pytest.raises(SolverError):
            models.load("lung")
    assert encoders.closed == encoders.opened[1:] != []
    models.load("lung")
    assert encoders.closed == [encoders.opened[1], encoders.opened[0]]


def test_a_start_that_fails_leaves_nothing_open(tmp_path, small, encoders):
    broken = shutil.copytree(small, tmp_path / "broken.kpl")
    spoil_byte(broken)
    models = LoadedModels(ServerSettings(bundles=(small, broken), device="cpu"), open_encoder=encoders)
    with pytest.raises(BundleCorruptError):
        models.start()
    assert encoders.closed == encoders.opened != []
    assert models.lanes() == ()
    with pytest.raises(NotReadyError):
        models.acquire("small")
    with pytest.raises(NotReadyError, match="stopping"):
        models.load("small")


def test_models_are_swapped_under_those_who_hold_them(tmp_path, small, features, make, encoders):
    """Each load has another encoder; nobody sees a model whose encoder is closed, and all old ones are closed."""
    path = rebuilt(small, tmp_path / "lung.kpl", f"{0:064x}")
    models = make(path)
    stop, answered = threading.Event(), [0] * 4
    rows = features[:3]

    def ask(place):
        while not stop.is_set():
            model = models.acquire("lung")
            try:
                (found,) = model.solve([query(rows, "batch", "zeroshot")])
                assert found.is_ok.all()
                assert not set(model.lane.encoders) & set(encoders.closed)
            finally:
                models.release(model)
            answered[place] += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, place) for place in range(4)]
        try:
            for turn in range(1, 16):
                rebuilt(small, path, f"{turn:064x}")
                models.load("lung")
                before = list(answered)
                while not any(each.done() for each in asking) and answered == before:
                    stop.wait(0.001)  # each new one is asked at least once
        finally:
            stop.set()
        for each in asking:
            each.result(WAIT_S)
    assert len(encoders.opened) == 16
    # A slow holder's model is closed later than its successor: the order is theirs, the number is not.
    assert sorted(map(id, encoders.closed)) == sorted(map(id, encoders.opened[:-1]))
    models.unload("lung")
    assert len(encoders.closed) == 16


def test_unloading_refuses_at_once_and_waits_for_holders(make, encoders):
    models = make()
    held = [models.acquire("small"), models.acquire("small")]
    refused = threading.Event()
    done = threading.Event()

    def unload():
        models.unload("small")
        done.set()

    thread = threading.Thread(target=unload)
    thread.start()
    while not refused.wait(0.001):
        try:
            models.release(models.acquire("small"))
        except NotReadyError:
            refused.set()
    assert states(models) == {"small": "UNAVAILABLE"}
    assert not done.is_set()
    models.release(held[0])
    assert not done.wait(0.05)  # one still holds it
    assert encoders.closed == []
    models.release(held[1])
    assert done.wait(WAIT_S)
    thread.join(WAIT_S)
    assert encoders.closed == encoders.opened
    models.unload("small")  # nothing is left to do
    models.load("small")
    models.release(models.acquire("small"))


def test_loads_and_unloads_of_one_name_take_turns(make, encoders, monkeypatch):
    models = make()
    models.unload("small")
    gate, inside, another = threading.Event(), [], threading.Event()
    open_model = LoadedModel.open

    def open_slowly(*arguments):
        inside.append(1)
        if len(inside) > 1:
            another.set()
        gate.wait(WAIT_S)
        model = open_model(*arguments)
        inside.pop()
        return model

    monkeypatch.setattr(LoadedModel, "open", open_slowly)
    with ThreadPoolExecutor(4) as pool:
        turns = [pool.submit(turn, "small") for turn in (models.load, models.unload, models.load, models.unload)]
        while not inside:
            gate.wait(0.001)
        assert states(models) == {"small": "LOADING"}
        with pytest.raises(NotReadyError, match="being loaded"):
            models.acquire("small")
        assert not another.wait(0.2)  # the other load has begun, and waits
        gate.set()
        for each in turns:
            each.result(WAIT_S)
    assert not another.is_set()
    models.unload("small")
    assert len(encoders.closed) == len(encoders.opened)


def test_closing_while_a_model_is_being_loaded(tmp_path, small, make, encoders):
    path = rebuilt(small, tmp_path / "lung.kpl", "a" * 64)
    models = make(path)
    held = models.acquire("lung")
    rebuilt(small, path, "b" * 64)
    opening, gate = threading.Event(), threading.Event()
    encoders.on_open = lambda: (opening.set(), gate.wait(WAIT_S))
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(models.load, "lung")
        assert opening.wait(WAIT_S)
        models.close()
        models.close()
        gate.set()
        with pytest.raises(NotReadyError, match="stopping"):
            loading.result(WAIT_S)
    assert encoders.closed == encoders.opened[1:]
    models.release(held)
    assert sorted(map(id, encoders.closed)) == sorted(map(id, encoders.opened))


def test_names_that_are_not_there(make):
    models = make()
    for name in ("heart", "", "../small", "small.kpl", "x" * 200, "a/b", "\0"):
        with pytest.raises(UnknownModelError, match="this server has: small"):
            models.acquire(name)
        for change in (models.load, models.unload):
            with pytest.raises(UnknownModelError):
                change(name)
    with pytest.raises(UnknownModelError, match="version '2'"):
        models.acquire("small", "2")
    assert states(models) == {"small": "READY"}


def test_a_repository_is_loaded_from_by_name(tmp_path, small, make):
    folder, outside = tmp_path / "models", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    models = make(small, repository=folder)
    shutil.copytree(small, folder / "eye.kpl")
    shutil.copytree(small, outside / "secret.kpl")
    (folder / "secret.kpl").symlink_to(outside / "secret.kpl")
    (folder / "current.kpl").symlink_to("eye.kpl")
    (folder / "dangling.kpl").symlink_to("nothing.kpl")
    (folder / "notes.txt").write_text("no model")
    (folder / "-odd.kpl").mkdir()
    assert states(models) == {"small": "READY", "eye": "UNAVAILABLE", "current": "UNAVAILABLE"}
    with pytest.raises(NotReadyError):
        models.acquire("eye")
    for name in ("secret", "dangling", "notes", "-odd", "../outside/secret", str(outside / "secret")):
        with pytest.raises(UnknownModelError):
            models.load(name)
    models.unload("eye")  # it is not loaded: nothing to do
    for name in ("eye", "current"):
        models.load(name)
        model = models.acquire(name)
        assert model.info.name == name
        models.release(model)
    shutil.rmtree(folder / "eye.kpl")
    assert states(models)["eye"] == "READY"
    models.unload("eye")
    assert "eye" not in states(models)


DEVICES = {
    "one, auto": ({"device": "auto"}, 0, ["auto"]),
    "cpu": ({"device": "cpu", "instances": 3}, 2, ["cpu"] * 3),
    "auto without a GPU": ({"device": "auto", "instances": 2}, 0, ["cpu", "cpu"]),
    "auto where no GPU encoder opens": ({"device": "auto", "instances": 2}, 2, ["auto", "cpu"]),
    "cuda": ({"device": "cuda", "instances": 2, "max_batch": 8}, 4, ["cuda:0", "cuda:1"]),
}


@pytest.mark.parametrize("case", DEVICES)
def test_where_the_copies_of_an_encoder_go(make, encoders, small, case):
    settings, gpus, wanted = DEVICES[case]
    models = make(small, gpus=gpus, **settings)
    assert encoders.devices == wanted
    (lane,) = models.lanes()
    assert list(lane.encoders) == encoders.opened


@pytest.mark.parametrize(("settings", "word"), [({"device": "cuda"}, "at most 1"), ({"device": "cuda:1"}, "'cuda'")])
def test_more_copies_than_devices_are_refused(make, encoders, small, settings, word):
    with pytest.raises(ConfigError, match=word):
        make(small, instances=2, gpus=1, max_batch=8, **settings)
    assert encoders.closed == encoders.opened


@pytest.mark.parametrize(
    ("max_batch", "buckets"),
    [(0, (1, 2, 4, 8)), (1, (1,)), (2, (1, 2)), (11, (1, 2, 4, 8, 11)), (16, (1, 2, 4, 8, 16))],
)
def test_every_batch_size_of_every_copy_has_run_before_it_is_ready(
    make, encoders, small, monkeypatch, max_batch, buckets
):
    ran = []
    encode = FakeEncoder.encode_images
    monkeypatch.setattr(
        FakeEncoder, "encode_images", lambda self, pixels: ran.append((id(self), len(pixels))) or encode(self, pixels)
    )
    models = make(small, max_batch=max_batch, instances=2)
    (lane,) = models.lanes()
    assert lane.buckets == buckets
    assert sorted(ran) == sorted((id(encoder), size) for encoder in lane.encoders for size in buckets)


def test_an_encoder_for_small_batches_is_given_no_larger_ones(small, make, encoders, monkeypatch):
    opened = encoders.__call__

    def open_small(bundle, device, config):
        encoder = opened(bundle, device, config)
        encoder.batch_size = 5
        return encoder

    models = LoadedModels(ServerSettings(bundles=(small,), device="cpu"), open_encoder=open_small)
    models.start()
    (lane,) = models.lanes()
    assert lane.buckets == (1, 2, 4, 5)
    models.close()


def test_threads_and_batch_reach_the_encoder(small, encoders):
    seen = []

    def open_encoder(bundle, device, config):
        seen.append(config)
        return encoders(bundle, device, config)

    settings = ServerSettings(bundles=(small,), device="cpu", instances=2, threads=3, max_batch=6)
    models = LoadedModels(settings, open_encoder=open_encoder)
    models.start()
    assert [(each.num_threads, each.batch_size) for each in seen] == [(3, 6)] * 2
    models.close()


def test_zipped_and_real(tmp_path, features):
    """A zipped bundle with the real encoder, loaded again and swapped for one with another: nothing is left behind."""
    path = tmp_path / "lung.kpl"
    pack(demo_bundle(), path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(temporary)
    try:
        import tempfile

        tempfile.tempdir = None
        opened = []

        def open_encoder(*arguments):
            opened.append(load_encoder(*arguments))
            return opened[-1]

        models = LoadedModels(ServerSettings(bundles=(path,), device="cpu"), open_encoder=open_encoder)
        models.start()
        models.load("lung")
        assert len(opened) == 1
        rebuilt(path, path, "c" * 64)
        models.load("lung")
        assert len(opened) == 2
        assert list(temporary.iterdir()) == []
        model = models.acquire("lung")
        assert model.lane.encoders == (opened[1],)
        assert model.lane.encoders[0].encode_images(np.zeros((2, 96, 96, 3), np.uint8)).shape == (2, 64)
        with pytest.raises(EncoderError, match="closed"):
            opened[0].encode_images(np.zeros((1, 96, 96, 3), np.uint8))
        models.release(model)
        models.close()
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def test_a_thousand_loads_leave_nothing_behind(make, encoders):
    models = make()
    models.unload("small")

    def count():
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(models.lanes())

    before = count()
    for _ in range(1000):
        models.load("small")
        models.release(models.acquire("small"))
        models.unload("small")
    assert count() == before
    assert len(encoders.opened) == len(encoders.closed) == 1001
