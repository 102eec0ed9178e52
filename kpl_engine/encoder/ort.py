"""The ONNX Runtime encoder: the exported graphs on any of its execution providers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.base import EncoderBase, check_pixels, check_texts, check_unit
from kpl_engine.encoder.tokenize import Tokenizer, load_tokenizer
from kpl_engine.errors import EncoderError, InputError
from kpl_engine.imaging.preprocess import Preprocess

__all__ = ["BundleView", "Graph", "OrtEncoder", "Provider"]

Provider = str | tuple[str, Mapping[str, Any]]
_TOKEN_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class BundleView(Protocol):
    """What an encoder needs of a bundle."""

    manifest: Mapping[str, Any]

    def read_bytes(self, name: str) -> bytes:
        """Verified bytes of one file."""

    def local_path(self, name: str) -> Path:
        """A verified real file, its neighbours beside it."""


class OrtEncoder(EncoderBase):
    """Encodes with ONNX Runtime; may be called from several threads at once.

    Parameters
    ----------
    bundle : BundleView
        With an ``encoder`` and a ``preprocess`` entry in its manifest. Keep it open until the first
        text is encoded: the text tower is loaded then.
    config : EncoderConfig
    providers : sequence of str or (str, options)
        Execution providers in order of preference, all of them available.
    notices : sequence of str
        What the choice of providers should tell the user.

    Raises
    ------
    EncoderError
        No encoder in the bundle, or ONNX Runtime cannot load its graph.
    """

    def __init__(
        self,
        bundle: BundleView,
        config: EncoderConfig | None = None,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        notices: Sequence[str] = (),
    ) -> None:
        entry = bundle.manifest.get("encoder")
        if entry is None:
            raise EncoderError("this bundle has no encoder; classify features=, or build it with an encoder")
        self._config = EncoderConfig() if config is None else config
        self._bundle = bundle
        self._asked = tuple(providers)
        self._notices = list(notices)
        self._lock = threading.Lock()
        self.name = str(entry.get("name", "encoder"))
        self.embed_dim = int(entry["embed_dim"])
        self.fingerprint = str(entry["fingerprint"])
        self.batch_size = self._config.batch_size
        self.preprocess = Preprocess.from_manifest({"fill": 0, **bundle.manifest["preprocess"]})
        self._image_entry: Mapping[str, Any] = entry["image"]
        self._text_entry: Mapping[str, Any] | None = entry.get("text")
        self.image_size = (int(self._image_entry["height"]), int(self._image_entry["width"]))
        if self.image_size != (self.preprocess.height, self.preprocess.width):
            raise EncoderError(
                f"{self.name}: the image graph takes {self.image_size} but preprocess makes "
                f"{(self.preprocess.height, self.preprocess.width)}; export the model again"
            )
        self.has_text = self._text_entry is not None
        self.text_fingerprint = str(self._text_entry["fingerprint"]) if self._text_entry is not None else ""
        self._images: Graph | None = self._open(self._image_entry, "image")
        self.providers = self._images.providers
        self._texts: tuple[Graph, Tokenizer] | None = None
        self._is_closed = False

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should be told once."""
        return tuple(self._notices)

    def encode_images(self, pixels: UInt8) -> Float32:
        """(n, h, w, 3) uint8 -> (n, d) float32 with unit rows, ``batch_size`` pictures at a time."""
        pixels = check_pixels(pixels, self.image_size)
        graph = self._images
        if graph is None:
            raise self._closed()
        return self._run(graph, pixels, "images")

    def encode_texts(self, texts: Sequence[str], truncate: bool = False) -> Float32:
        """m texts -> (m, d) float32 with unit rows."""
        found = check_texts(texts)
        graph, tokenizer = self._text_tower()
        tokens = tokenizer.encode(found, truncate)
        if tokens.truncated:
            self._say_truncated(found[tokens.truncated[0]], tokenizer.context_length)
        return self._run(graph, tokens.ids, "texts")

    def close(self) -> None:
        """Free both graphs; calling it twice is harmless."""
        with self._lock:
            self._is_closed = True
            self._images = None
            self._texts = None

    def _closed(self) -> EncoderError:
        return EncoderError(f"encoder {self.name!r} is closed; load it again")

    def _open(self, entry: Mapping[str, Any], tower: str) -> Graph:
        path, label = self._verified(entry, tower)
        return Graph(path, entry, label, self._asked, self._config)

    def _verified(self, entry: Mapping[str, Any], tower: str) -> tuple[Path, str]:
        """A tower's graph file and what messages call it."""
        for name in entry.get("data") or ():
            self._bundle.local_path(name)  # verifies the external weights the graph will read
        return self._bundle.local_path(entry["file"]), f"{self.name}: {tower} graph"

    def _text_tower(self) -> tuple[Graph, Tokenizer]:
        with self._lock:
            if self._is_closed:
                raise self._closed()
            if self._texts is None:
                entry = self._text_entry
                if entry is None:
                    raise InputError(f"encoder {self.name!r} has no text tower; export it without --no-text")
                tokenizer = load_tokenizer(self._bundle.read_bytes(entry["tokenizer"]))
                if tokenizer.context_length != entry["context_length"]:
                    raise EncoderError(
                        f"{self.name}: the text graph takes {entry['context_length']} tokens but its tokenizer makes "
                        f"{tokenizer.context_length}; export the model again"
                    )
                self._texts = self._open(entry, "text"), tokenizer
            return self._texts

    def _run(self, graph: Graph, inputs: npt.NDArray[Any], what: str) -> Float32:
        rows = np.empty((len(inputs), self.embed_dim), dtype=np.float32)  # (n, d) float32
        for start in range(0, len(inputs), self.batch_size):
            batch = graph.run(inputs[start : start + self.batch_size], self.embed_dim)
            rows[start : start + len(batch)] = check_unit(batch, what, start)
        return rows

    def _say_truncated(self, text: str, context_length: int) -> None:
        note = f"texts longer than {context_length} tokens lost their end; the first was {text[:60]!r}"
        with self._lock:
            if not any(known.startswith("texts longer than") for known in self._notices):
                self._notices.append(note)


class Graph:
    """One ONNX Runtime session with its input and output checked against the manifest.

    ``settings`` are session configuration entries beyond those of ``config``.
    """

    def __init__(
        self,
        path: Path,
        entry: Mapping[str, Any],
        label: str,
        asked: Sequence[Provider],
        config: EncoderConfig,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        import onnxruntime

        names = [provider if isinstance(provider, str) else provider[0] for provider in asked]
        options = [{} if isinstance(provider, str) else dict(provider[1]) for provider in asked]
        self.label = label
        self.input, self.output = str(entry["input"]), str(entry["output"])
        session_options = _session_options(onnxruntime, config)
        for key, value in settings.items():
            session_options.add_session_config_entry(key, value)
        try:
            # A failing start or run must fail: the Python layer would otherwise retry on the CPU and only print it.
            session = onnxruntime.InferenceSession(
                str(path), session_options, providers=names, provider_options=options, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EncoderError(f"{label}: ONNX Runtime cannot load {path.name}: {error!s:.400}") from error
        session.disable_fallback()
        self.session = session
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        inputs = {node.name: node.type for node in session.get_inputs()}
        outputs = {node.name: node.type for node in session.get_outputs()}
        if list(inputs) != [self.input] or self.output not in outputs:
            raise EncoderError(
                f"{label}: expected the input {self.input!r} and the output {self.output!r}, got {list(inputs)} and "
                f"{list(outputs)}; export the model again"
            )
        self.types = inputs[self.input], outputs[self.output]
        self._dtype = _TOKEN_TYPES.get(inputs[self.input])

    def run(self, batch: npt.NDArray[Any], embed_dim: int) -> npt.NDArray[Any]:
        """(n, ...) -> (n, embed_dim), as the graph gives it."""
        fed = batch if self._dtype is None else batch.astype(self._dtype, copy=False)
        try:
            (rows,) = self.session.run([self.output], {self.input: fed})
        except Exception as error:
            raise EncoderError(f"{self.label}: ONNX Runtime failed on {batch.shape}: {error!s:.400}") from error
        if rows.shape != (len(batch), embed_dim):
            raise EncoderError(
                f"{self.label}: expected an output of {(len(batch), embed_dim)}, got {rows.shape}; "
                "export the model again with a dynamic batch"
            )
        return np.asarray(rows)


def _session_options(onnxruntime: Any, config: EncoderConfig) -> Any:
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = config.num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = config.enable_arena
    options.graph_optimization_level = {
        "disable": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[config.graph_optimization]
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.allow_spinning else "0")
    return options
