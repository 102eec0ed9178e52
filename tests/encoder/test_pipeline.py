"""The stream of pictures: order kept, one bad picture stops nothing, memory flat, interrupts clean."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest

from kpl_engine.config import DecodeConfig
from kpl_engine.encoder import pipeline
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.encoder.pipeline import EncodedImages, encode_stream
from kpl_engine.errors import EncoderError, ImageError
from kpl_engine.imaging.decode import decode_image
from kpl_engine.imaging.preprocess import Preprocess


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*rng.integers(1, 60, 2), 3), dtype=np.uint8) for _ in range(n)]


def alone(picture, encoder):
    return encoder.encode_images(encoder.preprocess.apply(picture)[None])[0]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 41])
def test_equals_one_at_a_time_in_order(n, num_threads):
    encoder = FakeEncoder()
    given = pictures(n)
    got = encode_stream(given, encoder, DecodeConfig(num_threads=num_threads))
    expected = np.array([alone(picture, encoder) for picture in given], dtype=np.float32).reshape(n, 16)
    np.testing.assert_array_equal(got.features, expected)
    np.testing.assert_array_equal(got.ok_index, np.arange(n))
    assert got.features.dtype == np.float32
    assert got.failures == ()
    assert len(got.names) == n


def test_order_survives_uneven_decoding(monkeypatch):
    def slow(source, config, name):
        time.sleep(0.02 if source.shape[0] % 2 else 0)
        return decode_image(source, config, name)

    monkeypatch.setattr(pipeline, "decode_image", slow)
    encoder, given = FakeEncoder(), pictures(20)
    got = encode_stream(given, encoder, DecodeConfig(num_threads=4))
    np.testing.assert_array_equal(got.features, [alone(picture, encoder) for picture in given])


def test_bad_pictures_are_set_aside(tmp_path):
    good = pictures(3)
    sources = [b"", good[0], tmp_path / "missing.png", good[1], b"text", np.zeros((2, 2)), good[2]]
    got = encode_stream(sources, FakeEncoder())
    np.testing.assert_array_equal(got.ok_index, [1, 3, 6])
    np.testing.assert_array_equal(got.features, [alone(picture, FakeEncoder()) for picture in good])
    assert [index for index, _, _ in got.failures] == [0, 2, 4, 5]
    assert all(isinstance(error, ImageError) and error.source == name for _, name, error in got.failures)
    assert got.failures[1][1] == str(tmp_path / "missing.png")
    assert got.names[4] == "<bytes 4>"


def test_only_bad_pictures():
    got = encode_stream([b"", b"x"], FakeEncoder(embed_dim=3))
    assert got.features.shape == (0, 3)
    assert got.ok_index.shape == (0,)
    assert len(got.failures) == 2


def test_a_picture_that_cannot_be_resized_is_a_failure_of_its_own():
    class Refuses:
        def apply(self, rgb):
            raise ImageError("too long and thin")

    encoder = FakeEncoder()
    encoder.preprocess = Refuses()
    got = encode_stream(pictures(1), encoder)
    assert "<array 0>: too long and thin" in str(got.failures[0][2])


def test_timings_and_progress():
    seen = []
    got = encode_stream([*pictures(10), b""], FakeEncoder(batch_size=4), progress=lambda *step: seen.append(step))
    assert seen == [(4, 11), (8, 11), (11, 11)]
    assert set(got.timings_ms) == {"read", "decode", "preprocess", "encode", "total"}
    assert all(value >= 0 for value in got.timings_ms.values())
    assert got.timings_ms["encode"] <= got.timings_ms["total"]


def test_one_picture_is_prepared_on_the_calling_thread(monkeypatch):
    """Starting, feeding and ending a thread cost more than decoding a small picture."""
    threads = []
    original = pipeline.prepare_picture

    def seen(*arguments):
        threads.append(threading.current_thread())
        return original(*arguments)

    monkeypatch.setattr(pipeline, "prepare_picture", seen)
    alone = encode_stream(pictures(1), FakeEncoder())
    assert threads == [threading.current_thread()]
    among = encode_stream(pictures(2), FakeEncoder())
    assert threading.current_thread() not in threads[1:]
    np.testing.assert_array_equal(alone.features[0], among.features[0])


def test_notices_name_the_picture():
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 900, dtype=np.uint16)).save(stream, "PNG")
    got = encode_stream([stream.getvalue()], FakeEncoder())
    assert got.notices[0].startswith("<bytes 0>: 16-bit")


def test_memory_is_flat_over_ten_thousand_pictures(monkeypatch):
    """Counts the prepared pictures alive at once; the bound does not depend on their number."""
    lock = threading.RLock()
    alive = most = 0
    original = pipeline.prepare_picture

    def counted(*arguments):
        nonlocal alive, most
        prepared = original(*arguments)
        with lock:
            alive += 1
            most = max(most, alive)
        weakref.finalize(prepared.pixels, gone)
        return prepared

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    class Slow(FakeEncoder):
        def encode_images(self, pixels):
            time.sleep(0.0005)
            return np.repeat(np.eye(1, 4, dtype=np.float32), len(pixels), axis=0)

    monkeypatch.setattr(pipeline, "prepare_picture", counted)
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    got = encode_stream([picture] * 10_000, Slow(embed_dim=4, image_size=(8, 8), batch_size=8))
    assert got.features.shape == (10_000, 4)
    assert most <= 2 * 8 + 2 * 2 + 2
    assert most > 8  # the count works


def test_decoding_overlaps_encoding():
    """While the encoder holds its first batch, pictures of the next are already being decoded."""
    decoding_during_encode = threading.Event()
    encoding = threading.Event()

    class Waits(FakeEncoder):
        def encode_images(self, pixels):
            encoding.set()
            assert decoding_during_encode.wait(10)
            return super().encode_images(pixels)

    class Geometry:
        def apply(self, rgb):
            if rgb[0, 0, 0] == 1:
                assert encoding.wait(10)
                decoding_during_encode.set()
            return np.zeros((32, 32, 3), dtype=np.uint8)

    encoder = Waits(batch_size=2)
    encoder.preprocess = Geometry()
    first, later = np.zeros((2, 2, 3), dtype=np.uint8), np.ones((2, 2, 3), dtype=np.uint8)
    assert len(encode_stream([first, first, later, later], encoder).features) == 4


def no_threads_left():
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(thread.name.startswith("kpl-decode") for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


def test_interrupt_ends_soon_and_leaves_no_thread():
    calls = 0

    class Interrupted(FakeEncoder):
        def encode_images(self, pixels):
            nonlocal calls
            calls += 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_stream(pictures(1) * 500, Interrupted())
    assert calls == 1
    assert no_threads_left()


def test_encoder_failure_names_the_pictures():
    class Fails(FakeEncoder):
        def encode_images(self, pixels):
            raise EncoderError("the graph broke")

    with pytest.raises(EncoderError, match=r"the graph broke \(images of this batch: <array 0>, <array 1>\)"):
        encode_stream(pictures(2), Fails())
    assert no_threads_left()


def test_from_features():
    features = np.eye(3, dtype=np.float32)
    got = EncodedImages.from_features(features)
    np.testing.assert_array_equal(got.ok_index, [0, 1, 2])
    assert got.names == ("features[0]", "features[1]", "features[2]")
    assert EncodedImages.from_features(features, ["a", "b", "c"]).names == ("a", "b", "c")


def test_no_memory_for_one_picture_is_that_pictures_error(monkeypatch):
    original = Preprocess.apply

    def apply(self, rgb):
        if rgb.shape[0] == 99:
            raise MemoryError
        return original(self, rgb)

    monkeypatch.setattr(Preprocess, "apply", apply)
    huge = np.zeros((99, 4, 3), np.uint8)
    got = encode_stream([*pictures(3), huge, *pictures(2)], FakeEncoder())
    assert [index for index, _, _ in got.failures] == [3]
    assert "not enough memory" in str(got.failures[0][2])
    assert len(got.features) == 5
