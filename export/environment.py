"""Makes torch and open_clip importable for the export, or says which package is missing.

Importing this module imports none of them, so that the command line can ask for help texts without torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kpl_engine.errors import MissingExtraError

__all__ = ["check_installed", "package_versions", "prepare_torch", "quiet"]

# import name -> name on the package index
REQUIRED = {"torch": "torch", "onnx": "onnx", "onnxscript": "onnxscript", "open_clip": "open_clip_torch"}

# torchvision's CPU wheel registers fake kernels for operators its compiled half did not define
TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_libraries: list[Any] = []  # a torch.library.Library withdraws its schemas when it is collected


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of third-party packages away: what matters of them we say ourselves."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(level)


def check_installed() -> None:
    """Raise `MissingExtraError` for the first package of the extra that is not there; imports nothing."""
    for module, package in REQUIRED.items():
        try:
            is_there = importlib.util.find_spec(module) is not None
        except (ModuleNotFoundError, ValueError):  # an import hook that forbids it
            is_there = False
        if not is_there:
            raise MissingExtraError(package, "export", "exporting a CLIP model to ONNX")


def prepare_torch() -> None:
    """Import what the export needs, once, and set torch up for tracing.

    Raises
    ------
    MissingExtraError
        A package of the ``export`` extra is not installed.
    """
    for module, package in REQUIRED.items():
        try:
            with quiet():
                if module == "open_clip":
                    _declare_torchvision_operators()
                importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise MissingExtraError(package, "export", "exporting a CLIP model to ONNX") from error
    import torch

    # The fused inference kernel of nn.MultiheadAttention is opaque to the tracer.
    torch.backends.mha.set_fastpath_enabled(False)


def _declare_torchvision_operators() -> None:
    """Declare ``torchvision::nms`` where the wheel built against another torch did not, or the import fails."""
    import torch

    if torch.version.cuda is not None or _libraries or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in TORCHVISION_SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def package_versions() -> dict[str, str]:
    """Versions of the packages that shaped the graph, as the manifest records them."""
    distributions = {"torch": "torch", "open_clip": "open_clip_torch", "onnx": "onnx", "onnxruntime": "onnxruntime"}
    return {name: importlib.metadata.version(package) for name, package in distributions.items()}
