"""The drawn films: same bytes every time, valid attributes, captions that agree with them, and the committed files."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from anatomy import CLASSES, Draws, Patient, sample_look, sample_patient
from captions import EMPTY, SENTENCES, write_caption
from drawing import draw_film
from generator import TEST_COUNTS, TEST_SEED, bundled_films, make_film, train_films
from PIL import Image

DATA = Path(str(resources.files("kpl_engine.data")))
IMAGES = DATA / "images"
MAX_DATA_BYTES = 12_000_000
HASHES = {
    ("cardiomegaly", False): "4da255774612fd33",
    ("cardiomegaly", True): "82eb64f25b7b8728",
    ("effusion", False): "8b60d43bf529c063",
    ("effusion", True): "69fb25353438d29c",
    ("nodule", False): "24f8fc8182e741da",
    ("nodule", True): "c7db70cd64f6ad82",
    ("normal", False): "ec8124de256ed633",
    ("normal", True): "db0b2d0c8dbccce7",
    ("pneumothorax", False): "9f1e4ada1336076c",
    ("pneumothorax", True): "d0b370084dff93d5",
}


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("shifted", [False, True])
def test_film_has_the_recorded_bytes(label: str, shifted: bool) -> None:
    film = make_film(4, "check", label, 3, shifted=shifted)
    assert _digest(film.pixels) == HASHES[label, shifted]


def test_a_film_depends_on_its_own_key_only() -> None:
    alone = make_film(9, "train", "nodule", 5, shifted=False)
    for index in range(3):
        make_film(9, "train", "nodule", index, shifted=True)
    again = make_film(9, "train", "nodule", 5, shifted=False)
    assert alone.caption == again.caption
    np.testing.assert_array_equal(alone.pixels, again.pixels)
    other = make_film(9, "check", "nodule", 5, shifted=False)
    assert other.pixels.shape != alone.pixels.shape or np.any(other.pixels != alone.pixels)


def test_the_two_clinics_differ_in_level() -> None:
    looks = {shifted: [sample_look(Draws(3, i), shifted=shifted) for i in range(200)] for shifted in (False, True)}
    contrast = {shifted: np.mean([look.contrast for look in group]) for shifted, group in looks.items()}
    grain = {shifted: np.mean([look.grain for look in group]) for shifted, group in looks.items()}
    assert contrast[True] < contrast[False] - 0.15
    assert grain[True] > grain[False] + 0.01
    assert len({(look.width, look.height) for look in looks[True]}) == 3


@pytest.mark.parametrize("label", CLASSES)
def test_attributes_fit_the_class(label: str) -> None:
    for index in range(150):
        patient = sample_patient(Draws(8, index), label)
        assert patient.label == label
        assert 0.0 <= patient.amount <= 1.0
        assert (patient.size == "") == (label == "normal")
        assert (patient.count > 0) == (label == "nodule") == bool(patient.zone) == bool(patient.margin)
        assert (patient.heart_ratio > 0.52) == (label == "cardiomegaly")
        if label == "pneumothorax":
            assert patient.side in ("left", "right")
        elif label in ("normal", "cardiomegaly"):
            assert patient.side == ""


@pytest.mark.parametrize("label", CLASSES)
def test_captions_fit_the_attributes(label: str) -> None:
    for index in range(150):
        draws = Draws(12, index)
        patient = sample_patient(draws, label)
        caption = write_caption(patient, draws, empty=0.0, wrong=0.0)
        assert caption == " ".join(caption.split())
        assert "{" not in caption
        opposite = {"left": "right", "right": "left"}.get(patient.side)
        if opposite is not None:
            assert opposite not in caption.split()


def test_caption_noise_has_the_asked_rate() -> None:
    empty = wrong = 0
    plain = {text.split("{")[0] for text in EMPTY}
    for index in range(2000):
        draws = Draws(13, index)
        patient = sample_patient(draws, "pneumothorax")
        caption = write_caption(patient, draws, empty=0.2, wrong=0.1)
        is_empty = any(caption.startswith(start) for start in plain) and not any(
            word in caption for word in ("with", "radiograph,", "patient,")
        )
        empty += is_empty
        wrong += "heart" in caption or "nodule" in caption or "fluid" in caption
    assert 0.12 < empty / 2000 < 0.28
    assert 0.03 < wrong / 2000 < 0.10
    assert set(SENTENCES) == set(CLASSES)


def _draw(label: str, index: int) -> tuple[Patient, np.ndarray]:
    """Another patient each time, but one exposure for all."""
    patient = sample_patient(Draws(40, index), label)
    return patient, draw_film(patient, sample_look(Draws(41), shifted=False), Draws(42)).astype(np.float64)


def test_fluid_and_a_wide_heart_whiten_the_lower_zones() -> None:
    base = {label: np.mean([_draw(label, i)[1][68:84, 15:97].mean() for i in range(12)]) for label in CLASSES}
    assert base["effusion"] > base["normal"] + 10
    assert base["cardiomegaly"] > base["normal"] + 3


def test_free_air_darkens_the_outer_apex_of_its_own_side() -> None:
    sides = []
    for index in range(40):
        patient, film = _draw("pneumothorax", index)
        if patient.size == "large" and not patient.distractors:
            sides.append(patient.side)
            right, left = film[24:44, 20:34].mean(), film[24:44, 78:92].mean()  # of the patient: left is on the right
            assert (left < right - 5) if patient.side == "left" else (right < left - 5)
    assert set(sides) == {"left", "right"}


def test_training_films_are_unequal_in_number_and_reproducible() -> None:
    labels = [film.label for film in train_films(2, 60)]
    assert labels == [film.label for film in train_films(2, 60)]
    assert set(labels) == set(CLASSES)
    assert labels.count("normal") > labels.count("pneumothorax")


def test_committed_images_are_what_the_generator_draws() -> None:
    seen = set()
    for name, film in bundled_films(TEST_SEED):
        with Image.open(IMAGES / name) as image:
            pixels = np.asarray(image)
        if name.endswith(".png"):
            np.testing.assert_array_equal(pixels, film.pixels, err_msg=name)
        else:  # JPEG decoders may differ by a level or so; quality 92 costs about 2.5 levels on this grain
            difference = np.abs(pixels.astype(np.int16) - film.pixels)
            assert difference.mean() < 4, name
        seen.add(name)
    files = {path.relative_to(IMAGES).as_posix() for path in IMAGES.rglob("*") if path.is_file()}
    assert files == seen
    assert len(seen) == sum(TEST_COUNTS.values())


def test_committed_data_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < MAX_DATA_BYTES
