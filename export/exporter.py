"""The whole export: load, trace, compare, hash, hand over to the bundle writer. Importing it does not import torch."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpl_engine.bundle.names import MANIFEST
from kpl_engine.bundle.writer import write_bundle
from kpl_engine.errors import ConfigError, ExportError

from .environment import check_installed, prepare_torch
from .record import IMAGE, TEXT, TOKENIZER, Tower, canonical, encoder_fields, hash_files

if TYPE_CHECKING:
    from .load import LoadedModel
    from .to_onnx import ExternalData

__all__ = ["DEFAULT_MAX_BATCH", "ExportReport", "architectures", "export_encoder"]

DEFAULT_MAX_BATCH = 64


@dataclass(frozen=True)
class ExportReport:
    """What was written, what was measured, and how long each stage took."""

    path: Path
    encoder: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    notes: tuple[str, ...]
    timings_s: Mapping[str, float]


class _Stages:
    """Times each stage and tells the caller when it begins and ends."""

    def __init__(self, progress: Callable[[str], None] | None) -> None:
        self.timings_s: dict[str, float] = {}
        self._tell = progress or (lambda message: None)

    def note(self, message: str) -> None:
        self._tell(message)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._tell(f"{name} ...")
        yield
        self.timings_s[name] = time.perf_counter() - start
        self._tell(f"{name}: {self.timings_s[name]:.1f} s")


def architectures(pattern: str = "*") -> list[str]:
    """Names of the built-in architectures that match ``pattern``."""
    prepare_torch()
    from .load import list_architectures

    return list_architectures(pattern)


def export_encoder(
    model: str,
    pretrained: str | None,
    output: Path | str,
    *,
    tokenizer: str | None = None,
    with_text: bool = True,
    max_batch: int = DEFAULT_MAX_BATCH,
    opset: int | None = None,
    external_data: ExternalData = "auto",
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export an open_clip model to a bundle without knowledge, proven equal to the original.

    Parameters
    ----------
    model, pretrained
        As `load.load_model` takes them.
    output : path
        A new or empty folder, or an existing bundle with ``overwrite``.
    tokenizer : str, optional
        Use this tokenizer instead of the model's own; see `tokenizer.load_tokenizer`.
    with_text : bool
        Export the text tower and its tokenizer too.
    max_batch : int
        Largest batch at which the graphs are compared with torch.
    opset : int, optional
        ONNX opset; 20 unless told.
    external_data : {"auto", "always", "never"}
        Where the weights go.
    progress : callable, optional
        Told one line at each stage.

    Raises
    ------
    ParityError
        A graph differs from the original by more than a gate, or gives NaN. Nothing is left in ``output``.
    MissingExtraError, ConfigError, InputError, ExportError
        As their names say; nothing is left either.
    """
    # Resolved, so that "." and links mean the folder they lead to; write_bundle does the same.
    output = Path(output).expanduser().resolve()
    _check_output(output, overwrite)
    check_installed()
    stages = _Stages(progress)
    with stages.stage("import torch and open_clip"):
        prepare_torch()
    from . import load, to_onnx, verify

    settings = _Settings(
        opset=to_onnx.DEFAULT_OPSET if opset is None else opset,
        external_data=external_data,
        batches=verify.check_batches(max_batch),
    )
    with stages.stage("load model"):
        loaded = load.load_model(model, pretrained)
    for note in loaded.notes:
        stages.note(note)
    try:
        # On the disk of the output, because the weights may be several gigabytes.
        with tempfile.TemporaryDirectory(prefix=".kpl-export-", dir=_existing_parent(output)) as work:
            return _export(loaded, output, Path(work), tokenizer, with_text, settings, overwrite, stages)
    except OSError as error:
        raise ExportError(f"-o {output}: cannot be written ({error.strerror or error}); nothing was changed") from error


@dataclass(frozen=True)
class _Settings:
    opset: int
    external_data: ExternalData
    batches: tuple[int, ...]


def _check_output(output: Path, overwrite: bool) -> None:
    try:
        is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
        parent = _existing_parent(output)
        is_bundle = (output / MANIFEST).is_file() if output.is_dir() else zipfile.is_zipfile(output)
    except OSError as error:
        raise ConfigError(f"-o {output}: cannot be looked at ({error.strerror or error}); choose another") from error
    if output == Path.cwd():
        raise ConfigError(f"-o {output}: is the working directory, which would be replaced; name a folder inside it")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "is not writable" if parent.is_dir() else "is not a folder"
        raise ConfigError(f"-o {output}: cannot be written, because {parent} {what}; choose another place")
    if is_free:
        return
    if not is_bundle:
        raise ConfigError(f"-o {output}: exists and is not a bundle; choose a new folder, it would be lost")
    if not overwrite:
        raise ConfigError(f"-o {output}: holds a bundle already; choose a new folder, or replace it with --force")


def _existing_parent(output: Path) -> Path:
    return next(parent for parent in output.parents if parent.exists())


def _export(
    loaded: LoadedModel,
    output: Path,
    work: Path,
    tokenizer_name: str | None,
    with_text: bool,
    settings: _Settings,
    overwrite: bool,
    stages: _Stages,
) -> ExportReport:
    from . import verify
    from .preprocess import verify_preprocess
    from .tokenizer import describe_tokenizer, load_tokenizer

    descriptor = b""
    if with_text:
        with stages.stage("tokenizer"):
            tokenizer = load_tokenizer(loaded, tokenizer_name)
            vocab_size = _vocab_size(loaded)
            descriptor = canonical(describe_tokenizer(tokenizer, vocab_size))
            verify.verify_tokenizer(descriptor, tokenizer)
    with stages.stage("compare preprocessing"):
        verify_preprocess(loaded.model, loaded.preprocess)
    image = _image_tower(loaded, work, settings, stages)
    text = _text_tower(loaded, work, tokenizer, vocab_size, settings, stages) if with_text else None
    if text is not None and text.width != image.width:
        raise ExportError(f"the towers disagree: image features have {image.width} numbers, text features {text.width}")
    encoder = encoder_fields(loaded, image, text, descriptor, settings.opset)
    files: dict[str, Path | bytes] = {path.name: path for path in image.graph.files}
    if text is not None:
        files |= {path.name: path for path in text.graph.files} | {TOKENIZER: descriptor}
    with stages.stage("write bundle"):
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        manifest = {"encoder": encoder, "preprocess": dict(loaded.preprocess)}
        with write_bundle(output, manifest, files, overwrite=overwrite) as bundle:
            path = bundle.path
    return ExportReport(path, encoder, dict(loaded.preprocess), loaded.notes, stages.timings_s)


def _image_tower(loaded: LoadedModel, work: Path, settings: _Settings, stages: _Stages) -> Tower:
    import torch

    from . import to_onnx, verify

    preprocess = loaded.preprocess
    height, width = preprocess["height"], preprocess["width"]
    tower = to_onnx.ImageTower(loaded.traceable, preprocess["mean"], preprocess["std"])
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with stages.stage("trace image tower"):
        graph = to_onnx.export_tower(
            tower,
            example,
            work / IMAGE,
            input_name="pixels",
            opset=settings.opset,
            external_data=settings.external_data,
        )
    with stages.stage("compare image tower"):
        pixels = verify.random_pixels(verify.num_inputs(settings.batches), height, width)
        reference = verify.image_reference(loaded.model, preprocess["mean"], preprocess["std"])
        parity, d = verify.verify_graph(graph.path, pixels, reference, settings.batches)
    return Tower(graph, parity, d, hash_files(graph.files))


def _text_tower(
    loaded: LoadedModel, work: Path, tokenizer: Any, vocab_size: int, settings: _Settings, stages: _Stages
) -> Tower:
    import torch

    from . import to_onnx, verify

    with stages.stage("trace text tower"):
        graph = to_onnx.export_tower(
            to_onnx.TextTower(loaded.traceable),
            tokenizer(["a", "a chest x-ray"]).to(torch.int64),
            work / TEXT,
            input_name="tokens",
            opset=settings.opset,
            external_data=settings.external_data,
        )
    with stages.stage("compare text tower"):
        tokens = verify.random_tokens(tokenizer, vocab_size, verify.num_inputs(settings.batches))
        parity, d = verify.verify_graph(graph.path, tokens, verify.text_reference(loaded.model), settings.batches)
    return Tower(graph, parity, d, hash_files(graph.files))


def _vocab_size(loaded: LoadedModel) -> int:
    text = getattr(loaded.model, "text", loaded.model)
    return int(text.vocab_size)
