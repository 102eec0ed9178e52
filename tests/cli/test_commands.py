"""The commands on the embedded bundle, as a user types them: output, exit codes, bad input."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kpl_engine.bundle import Bundle, write_bundle
from kpl_engine.cli.main import main
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.imaging.sources import list_images
from kpl_engine.strict_json import thaw

BUNDLE = str(demo_bundle())
IMAGES = str(demo_images())


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run one command in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A copy of the embedded bundle that a test may change."""
    path = tmp_path_factory.mktemp("bundle") / "demo.kpl"
    shutil.copytree(BUNDLE, path)
    return path


def all_images():
    return list_images(demo_images())


def test_demo_prints_everything_it_promises(call, tmp_path):
    code, out, _ = call("demo", "--rows", 5)
    assert code == 0
    for word in ("zeroshot", "proxy", "inmap", "kpl", "text proxy", "encode", "preprocess", "not for clinical use"):
        assert word in out
    for name in ("contact-sheet.png", "confusion-kpl.png"):
        with Image.open(tmp_path / "demo-output" / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200


def test_demo_json_agrees_with_its_own_accuracy(call):
    code, out, _ = call("demo", "--json")
    record = json.loads(out)
    assert code == 0
    answers = record["answers"]["images"]
    right = np.mean([entry["file"].split(os.sep)[-2] == entry["label"].replace(" ", "_") for entry in answers])
    assert record["evaluation"]["methods"]["kpl"]["top1"] == pytest.approx(right)


def test_classify_table_json_and_csv_agree(call):
    code, table, _ = call("classify", BUNDLE, IMAGES)
    assert code == 0
    _, text, _ = call("classify", BUNDLE, IMAGES, "--json")
    _, lines, _ = call("classify", BUNDLE, IMAGES, "--csv")
    images = json.loads(text)["images"]
    rows = list(csv.DictReader(io.StringIO(lines)))
    assert len(images) == len(rows) == len(all_images())
    for entry, row in zip(images, rows, strict=True):
        assert entry["label"] == row["label"]
        assert entry["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)
        assert sum(entry["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert len(entry["evidence"]) == 2
        assert os.path.basename(entry["file"]) in table


def test_classify_takes_files_globs_folders_and_stdin(call):
    paths = [str(path) for path in all_images()]
    by_folder = call("classify", BUNDLE, IMAGES, "--csv")[1]
    assert call("classify", BUNDLE, *paths, "--csv")[1] == by_folder
    assert call("classify", BUNDLE, f"{IMAGES}/*/*", "--csv")[1] == by_folder
    assert call("classify", BUNDLE, "-", "--csv", stdin="\n".join(paths))[1] == by_folder


def test_bad_images_are_reported_and_the_rest_go_on(call, tmp_path):
    (tmp_path / "mixed").mkdir()
    for path in all_images()[:30]:
        shutil.copy(path, tmp_path / "mixed")
    (tmp_path / "mixed" / "empty.png").write_bytes(b"")
    (tmp_path / "mixed" / "torn.png").write_bytes(all_images()[0].read_bytes()[:500])
    code, out, err = call("classify", BUNDLE, "mixed", "--json")
    record = json.loads(out)
    assert code == 1
    assert record["num_failed"] == 2
    assert {os.path.basename(e["file"]) for e in record["images"] if "error" in e} == {"empty.png", "torn.png"}
    assert sum(e["label"] is not None for e in record["images"]) == 30
    assert "empty.png" in err
    assert "torn.png" in err
    code, out, _ = call("classify", BUNDLE, "mixed", "--csv")
    assert code == 1
    assert sum(bool(row["error"]) for row in csv.DictReader(io.StringIO(out))) == 2


def test_one_image_is_answered_by_the_text_proxy_out_loud(call):
    code, out, err = call("classify", BUNDLE, all_images()[0])
    assert code == 0
    assert "zeroshot (asked: kpl)" in out
    assert "few_images" in err


def test_fit_then_frozen_answers_one_image(call, bundle):
    code, out, _ = call("fit", bundle, IMAGES)
    assert code == 0
    assert f"on {len(all_images())} images" in out
    code, out, _ = call("classify", bundle, all_images()[3], "--mode", "frozen", "--json")
    record = json.loads(out)
    assert code == 0
    assert (record["method_used"], record["mode"]) == ("kpl", "frozen")
    together = json.loads(call("classify", bundle, IMAGES, "--mode", "frozen", "--json")[1])["images"]
    same = next(entry for entry in together if entry["file"] == str(all_images()[3]))
    assert record["images"][0]["label"] == same["label"]
    assert record["images"][0]["probability"] == pytest.approx(same["probability"], abs=1e-4)


def test_proxies_of_another_knowledge_base_are_refused(call, tmp_path):
    call("fit", BUNDLE, IMAGES, "-o", "new.kpl")
    with Bundle.open("new.kpl") as bundle:
        manifest = thaw(bundle.manifest)
        manifest["proxies"]["chest"]["knowledge_fingerprint"] = "of an earlier version"
        write_bundle(tmp_path / "old.kpl", manifest, dict.fromkeys(bundle.names, bundle)).close()
    code, _, err = call("classify", "old.kpl", all_images()[0], "--mode", "frozen")
    assert code == 2
    assert "fit them again" in err


def test_fit_into_another_bundle_leaves_the_first_alone(call, tmp_path):
    before = (demo_bundle() / "manifest.json").read_bytes()
    code, _, _ = call("fit", BUNDLE, IMAGES, "-o", "fitted.kpl", "--method", "inmap")
    assert code == 0
    assert (demo_bundle() / "manifest.json").read_bytes() == before
    code, out, _ = call("classify", "fitted.kpl", all_images()[0], "--mode", "frozen", "--json")
    assert json.loads(out)["method"] == "inmap"


def test_eval_prints_the_published_three_first(call, tmp_path):
    code, out, _ = call("eval", BUNDLE, IMAGES, "-o", "report")
    assert code == 0
    lines = out.splitlines()
    assert [line.rsplit(":", 1)[0] for line in lines[:3]] == [
        "accuracy of text proxy",
        "accuracy of image proxy",
        "accuracy of image proxy + OT",
    ]
    for method in ("zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta"):
        assert (tmp_path / "report" / f"confusion-{method}.png").stat().st_size > 0
    code, out, _ = call("eval", BUNDLE, IMAGES, "--json")
    record = json.loads(out)
    for method, figures in record["methods"].items():
        assert np.trace(figures["confusion"]) / record["num_images"] == pytest.approx(figures["top1"]), method
        assert {"balanced_accuracy", "macro_f1", "auroc", "ece", "per_class"} <= set(figures)


def test_eval_of_unknown_folders_lists_both_sides(call, tmp_path):
    (tmp_path / "set" / "tumour").mkdir(parents=True)
    shutil.copy(all_images()[0], tmp_path / "set" / "tumour")
    code, _, err = call("eval", BUNDLE, "set")
    assert code == 2
    assert "tumour" in err
    assert "nodule" in err


def test_doctor_reports_and_is_json(call):
    code, out, _ = call("doctor")
    assert code == 0
    assert "onnxruntime" in out
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["providers"]
    assert {b["name"] for b in found["backends"]} >= {"encoder: cpu", "encoder: cuda", "encoder: tensorrt", "export"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["classify", "absent.kpl", IMAGES], "absent.kpl"),
        (["classify", BUNDLE, "absent.png"], "absent.png"),
        (["classify", BUNDLE, "absent/*.png"], "no file"),
        (["classify", BUNDLE, IMAGES, "--k", "0"], "k"),
        (["classify", BUNDLE, IMAGES, "--ot-iters", "many"], "converged"),
        (["classify", BUNDLE, IMAGES, "--tau-t", "-1"], "tau_t"),
        (["classify", BUNDLE, IMAGES, "--threads", "-1"], "num_threads"),
        (["classify", BUNDLE, IMAGES, "--knowledge", "eye"], "eye"),
        (["classify", BUNDLE, IMAGES, "--mode", "frozen"], "kpl-engine fit"),
        (["classify", BUNDLE, IMAGES, "--prior", "normal=1"], "every class"),
        (["classify", BUNDLE, IMAGES, "--prior", "normal"], "CLASS=SHARE"),
        (["classify", BUNDLE, "-"], "list"),
        (["eval", BUNDLE, "absent"], "absent"),
        (["fit", BUNDLE, str(all_images()[0]), "-o", "x.kpl"], "cannot fit"),
        (["knowledge", "check", "absent.json"], "absent.json"),
        (["classify", BUNDLE, IMAGES, "--method", "magic"], "magic"),
        (["nothing"], "nothing"),
        ([], "COMMAND"),
    ],
)
def test_bad_usage_exits_with_two_and_says_why(call, arguments, says):
    code, out, err = call(*arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert out == ""


def test_device_by_name_never_falls_back(call):
    code, out, err = call("classify", BUNDLE, IMAGES, "--device", "cuda")
    assert code == 1
    assert out == ""
    assert "onnxruntime-gpu" in err


def test_threads_may_come_from_the_environment(call, monkeypatch):
    monkeypatch.setenv("KPL_THREADS", "x")
    code, _, err = call("classify", BUNDLE, IMAGES)
    assert code == 2
    assert "KPL_THREADS" in err
    monkeypatch.setenv("KPL_THREADS", "1")
    assert call("classify", BUNDLE, IMAGES)[0] == 0


@pytest.mark.parametrize("command", ["demo", "export", "knowledge", "fit", "classify", "eval", "doctor"])
def test_every_help_shows_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "example" in out
    assert "kpl-engine " + command in out


def test_a_reader_that_leaves_is_not_a_traceback():
    command = f"{sys.executable} -m kpl_engine classify {BUNDLE} {IMAGES} --json | head -c 100"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
