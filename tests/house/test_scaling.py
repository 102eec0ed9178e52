"""Scaling curves: exponents that are known are found, ceilings are sane, the program runs from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch):
    """The program; its parts are its attributes."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    # A width that is quick to draw, and no waiting for the threads of OpenBLAS: nothing here is about speed.
    small = scaling.Size(20, 48, 2, 12)
    monkeypatch.setattr(scaling, "AXES", {axis: (small, *rest) for axis, (_, *rest) in scaling.AXES.items()})
    monkeypatch.setattr(scaling, "_PAUSE_S", 0.0)
    return scaling


@pytest.fixture
def fit(scaling):
    return scaling.scaling_fit.fit


def runs_of(curve, noise, seed):
    """Seven runs at each point, with relative noise."""
    random = np.random.default_rng(seed)
    return [list(y * np.exp(noise * random.normal(size=7))) for y in curve]


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 2.0])
def test_a_straight_curve_is_one_piece_with_its_exponent(fit, exponent):
    x = np.geomspace(3, 9000, 9)
    (piece,) = fit(x, runs_of(5e-6 * x**exponent, 0.02, seed=7))
    # Medians of 7 scatter by about 0.01; ln x has a standard deviation of 2.6, so the slope one of 0.01 / (3 * 2.6).
    assert piece.exponent == pytest.approx(exponent, abs=0.01)
    assert piece.low <= exponent <= piece.high
    assert piece.high - piece.low < 0.02
    assert piece.at(100.0) == pytest.approx(5e-6 * 100**exponent, rel=0.03)


def test_a_known_bend_is_found_and_both_exponents(fit):
    x = np.geomspace(1, 4096, 13)
    curve = np.where(x < 60, 1e-3 * x**0.5, 1e-3 * 60**-1.5 * x**2)
    first, second = fit(x, runs_of(curve, 0.01, seed=3))
    assert first.exponent == pytest.approx(0.5, abs=0.02)
    assert second.exponent == pytest.approx(2.0, abs=0.02)
    assert first.last == pytest.approx(32)
    assert second.first == pytest.approx(64)


def test_two_points_are_no_curve(fit):
    assert fit([1, 10], [[1.0], [2.0]]) == []


def test_intervals_hold_the_truth_about_as_often_as_they_say(fit):
    x = np.geomspace(10, 1000, 6)
    inside = 0
    for seed in range(60):
        pieces = fit(x, runs_of(x**1.0, 0.05, seed), seed=seed, resamples=150)
        inside += pieces[0].low <= 1.0 <= pieces[0].high
    # A bootstrap over six points covers less than its nominal 95 %; below 45 of 60 it would be no interval.
    assert inside >= 45


def test_the_interval_covers_a_misfit_that_the_runs_do_not_show(fit):
    x = np.geomspace(10, 200, 5)
    curve = x * np.array([1.0, 1.2, 1.0, 1.2, 1.0])  # five points have no room for a bend
    (piece,) = fit(x, runs_of(curve, 0.0, seed=0))
    # Residuals of 0.1 over ln x with a standard deviation of 1.06 leave a slope uncertain by about 0.04.
    assert 0.05 < piece.high - piece.low < 0.4


def test_what_leaves_the_expected_exponent_is_told(scaling):
    piece = scaling.scaling_fit.Piece(1, 100, 2.0, 1.0, 1.95, 2.05)
    assert scaling.scaling_fit.leaves(piece, (0.9, 1.1))
    assert not scaling.scaling_fit.leaves(piece, (1.0, 2.0))


def test_ceilings_are_rates_that_a_machine_has(scaling):
    found = scaling.scaling_ceilings.measure(1, copy_bytes=4 << 20, product=192)
    # From a slow single-board computer to the fastest processors of today, with a decade to spare.
    assert 1e8 < found.copy_bytes < 1e13
    assert 1e8 < found.float64_flops < 1e14
    if core := scaling.cpu.core():  # a core's own loop of multiply-adds, of two flops, with room for neighbours
        assert found.float64_flops < 8 * 2 * core.measure_multiply_adds() * scaling.os.cpu_count()
    assert found.float32_flops > 0.7 * found.float64_flops
    work = scaling.Work(found.copy_bytes, 3 * found.float64_flops, 0.0, "")
    assert found.moving(work) == pytest.approx(1.0)
    assert found.seconds(work) == pytest.approx(3.0)


def test_counts_follow_their_formulas(scaling):
    counts, size = scaling.scaling_points.counts, scaling.Size(100, 64, 4, 7)
    assert counts.text(size).bytes == 4 * (100 * 64 + 4 * 7 * 64)
    assert counts.schedule(size, 10).flops == 10 * 2 * 100 * 100 * 3 + 100 * 100 * 64
    wide = size._replace(n=4000)
    assert counts.schedule(wide, 10).flops == 10 * 4 * 4000 * 64 * 3
    assert counts.batch(size, 3).flops - counts.batch(size._replace(m=6), 3).flops == (2 * 4 + 2 * 100) * 64
    assert counts.auto(size, 3).flops32 > 0 == counts.auto(size, 300).flops32
    assert counts.each(size._replace(b=5), 3).bytes == 5 * counts.batch(size, 3).bytes


def test_a_point_beyond_the_limit_is_predicted_and_said_to_be(scaling, tmp_path):
    ceilings = scaling.scaling_ceilings.Ceilings(1, 1e10, 1e11, 1e10, 1e9)
    points = scaling.make_points("n", (40, 500000), ceilings)
    points = [point for point in points if point.call == "schedule"]
    calls = scaling.scout(points, 1.0, tmp_path, ceilings)
    assert list(calls) == [0]
    assert points[0].status == "measured"
    assert points[1].status.startswith("predicted: about")
    assert "limit of 1 s" in points[1].status
    assert points[1].seconds > 1.0
    assert not points[1].is_measured


def test_a_wrong_answer_is_told_and_takes_no_part_in_a_fit(scaling, tmp_path, monkeypatch):
    honest = scaling.scaling_points.select_text_proxies
    monkeypatch.setattr(scaling.scaling_points, "select_text_proxies", lambda X, base: honest(-X, base))
    ceilings = scaling.scaling_ceilings.Ceilings(1, 1e10, 1e11, 1e10, 1e9)
    points = [p for p in scaling.make_points("n", (30, 40, 50), ceilings) if p.call == "text proxies"]
    scaling.scout(points, 5.0, tmp_path, ceilings)
    assert all("from the float64 reference" in point.wrong for point in points)
    assert scaling.curves(points) == []


def test_memory_of_a_process_of_its_own(scaling):
    found = scaling.peak_bytes("classify frozen", (9000, 64, 3, 12, 1), 60)
    if found is None:
        pytest.skip("no /proc/self/clear_refs here")
    # 9000 answers are Python objects of hundreds of bytes each; the whole process takes less than this.
    assert 9000 * 100 < found["added"] < 1 << 30
    assert found["held"] <= found["added"]
    assert found["before"] > 1 << 20


def test_the_program_from_end_to_end(scaling, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "QUICK", {"n": (12, 25, 60), "b": (1, 2, 3)})
    saved = {}
    monkeypatch.setattr(scaling, "save", lambda name, record: saved.update({name: json.dumps(record)}) or name)
    small = scaling.scaling_ceilings.Ceilings(2, 1e10, 1e11, 5e10, 1e9)
    monkeypatch.setattr(scaling.scaling_ceilings, "measure", lambda threads: small)
    picture = tmp_path / "curves.svg"
    words = ["--quick", "--axes", "n", "b", "--no-memory", "--picture", str(picture)]
    assert scaling.main(words) == 0
    record = json.loads(saved["scaling-quick"])
    assert {(p["call"], p["axis"]) for p in record["points"]} >= {("auto", "n"), ("load", "b"), ("classify each", "b")}
    assert all(p["seconds"] > 0 and p["counted"]["formula"] and not p["wrong"] for p in record["points"])
    assert {f["call"] for f in record["fits"] if f["axis"] == "n"} == set(scaling.AXES["n"][2])
    root = ElementTree.fromstring(picture.read_text())
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    drawn = picture.read_text()
    assert "prefers-color-scheme:dark" in drawn
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
    assert "median ms" in capsys.readouterr().out
