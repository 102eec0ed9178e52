"""Pictures given and made: which ones, what each kind of query carries, and what is no picture."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from kpl_engine.bench.samples import make_samples, smooth_jpeg
from kpl_engine.errors import InputError, KnowledgeError
from tests.bench.engines import make_engine, samples_of, settings_of, write_pictures


def test_made_pictures_are_those_of_the_seed():
    engine = make_engine()
    _, first = samples_of(engine, num_samples=5, seed=3)
    _, again = samples_of(engine, num_samples=5, seed=3)
    _, other = samples_of(engine, num_samples=5, seed=4)
    assert first.files == again.files
    assert first.sha256 == again.sha256 != other.sha256
    assert len(set(first.files)) == 5
    assert first.description == "5 made JPEG files of 500 x 375, seed 3"
    with Image.open(io.BytesIO(first.files[0])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (500, 375))
    assert len(smooth_jpeg(np.random.default_rng())) < 500 * 375  # it compresses: noise would take 1.5 bytes a pixel


def test_rows_belong_to_each_other():
    engine = make_engine(error=0.1)  # batches differ: features must be of each picture alone
    _, samples = samples_of(engine, num_samples=6)
    for i, (data, name) in enumerate(zip(samples.files, samples.names, strict=True)):
        with Image.open(io.BytesIO(data)) as picture:
            pixels = engine.encoder.preprocess.apply(np.asarray(picture.convert("RGB")))
        np.testing.assert_array_equal(samples.pixels[i], pixels)
        np.testing.assert_array_equal(samples.features[i], engine.encoder.encode_images(pixels[None])[0])
        assert str(i) in name
    assert samples.features.dtype == np.float32
    assert samples.pixels.shape == (6, 30, 26, 3)


@pytest.mark.parametrize("kind", ["files", "pixels", "features"])
def test_payloads_are_of_the_kind_asked_for(kind):
    _, samples = samples_of(make_engine(), num_samples=4, input_kind=kind)
    assert len(samples.payloads) == 4
    rows = {"files": samples.files, "pixels": samples.pixels, "features": samples.features}[kind]
    for payload, row in zip(samples.payloads, rows, strict=True):
        assert type(payload) is type(row)
        np.testing.assert_array_equal(payload, row)


def test_given_pictures_are_evenly_spaced(tmp_path):
    paths = write_pictures(tmp_path / "films", 10)
    _, samples = samples_of(make_engine(), images=(tmp_path / "films",), num_samples=4)
    assert samples.names == tuple(str(paths[i]) for i in (0, 2, 5, 7))
    assert samples.files == [paths[i].read_bytes() for i in (0, 2, 5, 7)]
    assert samples.description == f"4 of 10 files of {tmp_path / 'films'}"
    joined = b"".join(len(each).to_bytes(8, "little") + each for each in samples.files)
    assert samples.sha256 == hashlib.sha256(joined).hexdigest()
    _, few = samples_of(make_engine(), images=(tmp_path / "films" / "*1.png", paths[7]), num_samples=64)
    assert few.names == (str(paths[1]), str(paths[7]))


def test_unusable_pictures_are_left_out_and_counted(tmp_path):
    paths = write_pictures(tmp_path, 3)
    paths[1].write_bytes(b"no picture")
    _, samples = samples_of(make_engine(), images=(tmp_path,))
    assert samples.names == (str(paths[0]), str(paths[2]))
    assert samples.description.startswith("2 of 3 files")
    assert samples.description.endswith(", 1 unusable left out")
    assert len(samples.pixels) == len(samples.features) == 2


def test_without_a_usable_picture_it_says_why(tmp_path):
    engine = make_engine()
    with pytest.raises(InputError, match="no image in the folder"):
        make_samples(settings_of(images=(tmp_path,)), engine)
    with pytest.raises(InputError, match="no such file"):
        make_samples(settings_of(images=(tmp_path / "absent.png",)), engine)
    (tmp_path / "text.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"none of the 1 pictures given .*text\.png.*not an image"):
        make_samples(settings_of(images=(tmp_path,)), engine)


def test_a_bundle_without_knowledge_is_refused_before_anything_is_encoded(monkeypatch):
    engine = make_engine(knowledge=False)
    monkeypatch.setattr(engine.encoder, "encode_images", lambda _: pytest.fail("encoded"))
    with pytest.raises(KnowledgeError, match="knowledge build"):
        make_samples(settings_of(), engine)
