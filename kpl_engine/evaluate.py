"""Accuracy on a labelled folder: the three published figures first, then every method."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kpl_engine.arguments import Prior
from kpl_engine.arrays import Ints
from kpl_engine.classification import Classification, Failure
from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.engine import Engine
from kpl_engine.errors import InputError
from kpl_engine.imaging.sources import list_images
from kpl_engine.metrics import Metrics, measure

__all__ = [
    "PUBLISHED_ORDER",
    "Evaluation",
    "LabelledFolder",
    "MethodResult",
    "evaluate",
    "match_classes",
    "scan_folder",
]

# The published program prints text proxy, image proxy, image proxy + OT.
PUBLISHED_ORDER: tuple[tuple[str, MethodName], ...] = (
    ("text proxy", "zeroshot"),
    ("image proxy", "proxy"),
    ("image proxy + OT", "kpl"),
)
ALL_METHODS: tuple[MethodName, ...] = ("zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta")


@dataclass(frozen=True)
class LabelledFolder:
    """An ImageFolder layout, read: image paths and the class folder each lies in."""

    root: Path
    folders: tuple[str, ...]
    paths: tuple[Path, ...]
    folder_index: Ints  # (n,)


@dataclass(frozen=True)
class MethodResult:
    """One method on the whole folder."""

    method: MethodName
    metrics: Metrics
    answers: Classification


@dataclass(frozen=True)
class Evaluation:
    """Every method on one folder; ``results`` starts with the three published ones, in their order."""

    root: Path
    classes: tuple[str, ...]
    truth: Ints  # (n_ok,) class index of every usable image, in the shuffled order of the answers
    results: tuple[MethodResult, ...]
    failures: tuple[Failure, ...]
    notices: tuple[str, ...]

    def __getitem__(self, method: str) -> MethodResult:
        return next(result for result in self.results if result.method == method)


def normalise_name(name: str) -> str:
    """A class name as it is compared: NFKC, lower case, runs of anything but letters and digits as one space."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", " ", folded).strip()


def match_classes(folders: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Index of the knowledge class of every folder: by exact name, else by normalised name.

    Raises `InputError` listing both sides when a folder has no class, or two folders or two
    classes meet under one normalised name.
    """
    exact = {name: index for index, name in enumerate(classes)}
    loose: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        loose.setdefault(normalise_name(name), []).append(index)
    found: list[int] = []
    unmatched: list[str] = []
    for folder in folders:
        candidates = [exact[folder]] if folder in exact else loose.get(normalise_name(folder), [])
        if len(candidates) == 1:
            found.append(candidates[0])
        else:
            unmatched.append(folder)
    sides = f"folders: {', '.join(folders)}; knowledge classes: {', '.join(classes)}"
    if unmatched:
        raise InputError(
            f"expected every class folder to name one knowledge class, but {', '.join(unmatched)} did not ({sides}); "
            "rename the folders or build a knowledge base with these classes"
        )
    if len(set(found)) != len(found):
        raise InputError(f"expected one folder per class, but two folders name the same class ({sides})")
    return tuple(found)


def scan_folder(root: Path) -> LabelledFolder:
    """Read ``root/<class>/**`` or, where it exists, ``root/val/<class>/**``; sorted, hidden files left out."""
    if not root.is_dir():
        raise InputError(f"expected a folder with one sub-folder per class, got {str(root)!r}, which is not a folder")
    base = root / "val" if (root / "val").is_dir() else root
    folders = sorted(entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    groups = [list_images(base / folder) for folder in folders]
    paths = [path for group in groups for path in group]
    if not paths:
        raise InputError(
            f"{str(base)!r}: expected sub-folders of images, one per class, got {len(folders)} sub-folders "
            "and no image in them"
        )
    index = np.repeat(np.arange(len(folders)), [len(group) for group in groups]).astype(np.int64)
    return LabelledFolder(base, tuple(folders), tuple(paths), index)


def evaluate(
    engine: Engine,
    root: Path,
    *,
    methods: Sequence[MethodName] = ALL_METHODS,
    knowledge: str | None = None,
    settings: MethodConfig | None = None,
    prior: Prior = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Classify a labelled folder with every method; images are decoded and encoded once.

    The three published methods always come first and in the published order; ``methods`` adds to
    them. Unusable images are left out of every figure and listed in ``failures``. The images are
    taken in one shuffled order (seed 0), which ``truth`` and every ``answers`` share.
    """
    base = engine.knowledge(knowledge)
    folder = scan_folder(root)
    class_of_folder = np.asarray(match_classes(folder.folders, base.classes), dtype=np.int64)
    encoded = engine.encode(folder.paths, progress=progress)
    if len(encoded.features) == 0:
        raise InputError(f"{str(folder.root)!r}: none of its {len(folder.paths)} images could be used")
    # Sorted by class, as folders are, onzeta would see one class after the other; no other method minds the order.
    shuffled = np.random.default_rng(0).permutation(len(encoded.features))
    features, truth = encoded.features[shuffled], class_of_folder[folder.folder_index][encoded.ok_index][shuffled]
    order = [method for _, method in PUBLISHED_ORDER]
    order += [method for method in methods if method not in order]
    results = []
    for method in order:
        answers = engine.classify(features=features, method=method, knowledge=base.name, settings=settings, prior=prior)
        results.append(MethodResult(method, measure(truth, answers.class_indices, answers.probabilities), answers))
    absent = [name for j, name in enumerate(base.classes) if j not in set(truth.tolist())]
    notices = [f"no usable image of class {name!r}: its figures are undefined" for name in absent]
    failures = tuple(Failure(i, name, str(error)) for i, name, error in encoded.failures)
    return Evaluation(folder.root, base.classes, truth, tuple(results), failures, tuple(notices))
