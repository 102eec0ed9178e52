"""Preprocessing on the device has the bits of `Preprocess.apply`, which are those of Pillow."""

import numpy as np
import pytest

from kpl_engine.cuda.ops.preprocess import Picture, launch_preprocess, upload_images
from kpl_engine.errors import CudaError, ImageError, ShapeError
from kpl_engine.imaging.preprocess import Preprocess

MODES = ["shortest", "squash", "longest"]
FILTERS = ["bicubic", "bilinear"]


def random_image(random, h, w, channels=3):
    """Noise of whole range, so that sums leave 0 .. 255 on both sides and are clipped."""
    shape = (h, w) if channels == 0 else (h, w, channels)
    return np.where(random.random(shape) < 0.3, random.choice([0, 255], shape), random.integers(0, 256, shape)).astype(
        np.uint8
    )


def as_rgb(image):
    grey = image[..., None] if image.ndim == 2 else image
    return np.ascontiguousarray(np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey[..., :3])


def check(context, images, preprocess):
    got = context.download(launch_preprocess(context, upload_images(context, images), preprocess))
    for index, image in enumerate(images):
        np.testing.assert_array_equal(got[index], preprocess.apply(as_rgb(image)), err_msg=f"{index}: {image.shape}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (65, 33)])
def test_random_sizes_equal_the_cpu_path(context, mode, interpolation, size):
    random = np.random.default_rng(sum(size) + len(mode) + len(interpolation))
    sides = [np.exp(random.uniform(np.log(1), np.log(200), 2)).astype(int) for _ in range(6)]
    images = [random_image(random, h, w) for h, w in sides]
    fill = int(random.integers(0, 256))
    check(context, images, Preprocess(mode, *size, interpolation=interpolation, fill=fill))


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 300), (300, 1), (2, 500), (31, 33), (32, 32), (64, 64), (3, 2), (128, 32), (700, 40), (150, 1000)],
)
@pytest.mark.parametrize("mode", MODES)
def test_strange_shapes(context, shape, mode):
    """One pixel, wide, high (the height first), the size of the model input, twice and four times that."""
    image = random_image(np.random.default_rng(sum(shape)), *shape)
    check(context, [image], Preprocess(mode, 32, 32, fill=9))


def test_high_pictures_take_the_height_first():
    assert Preprocess("squash", 32, 32).plan(200, 60).height_first
    assert not Preprocess("squash", 32, 32).plan(60, 200).height_first
    assert not Preprocess("squash", 32, 32).plan(20, 2).height_first


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_channels(context, channels):
    random = np.random.default_rng(channels)
    images = [random_image(random, h, w, channels) for h, w in [(50, 70), (9, 5), (200, 61)]]
    check(context, images, Preprocess("squash", 33, 41))


def test_more_taps_than_registers_hold_and_rows_in_pieces(context):
    """Shrinking by 20 has 81 taps a column, and rows of 640 pixels for 32 columns."""
    image = random_image(np.random.default_rng(1), 330, 1300)
    check(context, [image], Preprocess("squash", 64, 64))
    check(context, [image[:, :, :1].repeat(4, axis=2)], Preprocess("squash", 16, 64))


def test_a_band_of_more_rows_than_a_block_holds(context):
    """8 output rows of 600 pixels shrunk by 37 read 370 source rows; 256 lie in shared memory at once."""
    check(context, [random_image(np.random.default_rng(7), 600, 400)], Preprocess("squash", 16, 16))


def test_no_race_in_any_order(seeded_context):
    random = np.random.default_rng(4)
    images = [random_image(random, *size) for size in [(40, 90), (130, 33), (7, 5), (99, 20)]]
    check(seeded_context, images, Preprocess("longest", 33, 35, fill=200))


def test_rows_of_a_larger_picture(context):
    """A window of a picture whose rows start at any byte."""
    random = np.random.default_rng(2)
    whole = random_image(random, 80, 101)
    on_device = context.upload(np.concatenate([whole.reshape(-1), np.zeros(64, np.uint8)]))
    picture = Picture(on_device.address + 3 * (5 * 101 + 7), 60, 71, 303, 3, on_device)
    preprocess = Preprocess("shortest", 32, 32)
    got = context.download(launch_preprocess(context, [picture], preprocess))
    np.testing.assert_array_equal(got[0], preprocess.apply(np.ascontiguousarray(whole[5:65, 7:78])))


@pytest.mark.parametrize("shared_bytes", [65_536, 101_376])
def test_gpus_with_little_shared_memory(open_context, shared_bytes):
    random = np.random.default_rng(shared_bytes)
    context = open_context(max_shared_bytes=shared_bytes, num_multiprocessors=1)
    images = [random_image(random, h, w) for h, w in [(300, 200), (90, 400), (310, 70)]]
    check(context, images, Preprocess("squash", 100, 70))


def test_a_gpu_without_enough_is_an_error(open_context):
    with pytest.raises(CudaError, match="bytes of shared memory a block"):
        check(open_context(max_shared_bytes=49_152), [np.zeros((9, 9, 3), np.uint8)], Preprocess())


def test_a_photograph_at_full_size(context):
    random = np.random.default_rng(3)
    check(context, [random_image(random, 540, 960)], Preprocess())


def test_nothing_to_do(context):
    assert launch_preprocess(context, [], Preprocess()).shape == (0, 224, 224, 3)


def test_what_is_no_picture_is_refused(context):
    with pytest.raises(ShapeError, match="images: expected"):
        upload_images(context, [np.zeros((3, 3, 3), np.float32)])
    with pytest.raises(ShapeError, match="images: expected"):
        upload_images(context, [np.zeros((0, 3, 3), np.uint8)])
    for wrong in (Picture(256, 4, 4, 11, 3), Picture(256, 4, 4, 8, 2), Picture(256, 0, 4, 12, 3)):
        with pytest.raises(ShapeError, match="picture: expected"):
            launch_preprocess(context, [wrong], Preprocess())
    with pytest.raises(ImageError, match="too extreme"):
        launch_preprocess(context, [Picture(256, 2_000_000, 1, 3, 3)], Preprocess("squash"))
