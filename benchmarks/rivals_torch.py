"""Rivals in PyTorch: open_clip eager, compiled and as CUDA graphs, and the published loop."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from published_loops import torch_method
from rivals_pictures import PictureRival

from kpl_engine.export.environment import prepare_torch, quiet

__all__ = ["OpenClip", "TorchLoop", "open_model"]

MODEL, SEED = "ViT-B-32", 0  # the seed of kpl-engine's export: the weights of the exported graph


def open_model() -> tuple[Any, Callable[[Any], torch.Tensor]]:
    """open_clip's model in eval mode, with the weights that were exported, and its validation transform."""
    prepare_torch()
    torch.backends.mha.set_fastpath_enabled(True)  # the export turns it off; who runs torch has it on
    import open_clip

    with quiet():
        torch.manual_seed(SEED)
        model, _, transform = open_clip.create_model_and_transforms(MODEL)
    return model.eval(), transform


class OpenClip(PictureRival):
    """``mode``: "eager", "compile" (inductor's defaults) or "graphs" (one CUDA graph for each batch size)."""

    def __init__(self, work: Path, threads: int, batch: int, device: str, mode: str = "eager") -> None:
        super().__init__(work, threads, batch, device)
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False  # on by default, for convolutions alone: equal answers
        self.mode = mode
        self.settings |= {"mode": mode, "float32_matmul_precision": torch.get_float32_matmul_precision()}

    def open_encoder(self) -> None:
        model, self.transform = open_model()
        self.model = model.to(self.device)
        self.blocks = [torch.from_numpy(block).to(self.device) for block in self.texts]
        self.run = self._encode
        if self.mode == "compile":
            self.run = torch.compile(self._encode)
        elif self.mode == "graphs":
            self.run = Graphs(self._encode, self.device)

    def prepare(self, picture: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(picture)) as image:
            return self.transform(image)

    def encode(self, prepared: Sequence[Any]) -> torch.Tensor:
        with torch.inference_mode():
            return self.run(torch.stack(list(prepared)).to(self.device))

    def gather(self, parts: Sequence[Any]) -> torch.Tensor:
        return torch.cat(list(parts))

    def method(self, X: torch.Tensor, adapts: bool) -> Any:
        with torch.inference_mode():
            return torch_method(X, self.blocks, adapts).cpu().numpy()

    def features(self, pictures: Sequence[bytes]) -> Any:
        return super().features(pictures).cpu().numpy()

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(images, normalize=True)


class Graphs:
    """``work`` on a GPU, captured once for each shape of its input and replayed."""

    def __init__(self, work: Callable[[torch.Tensor], torch.Tensor], device: str) -> None:
        self._work, self._device = work, device
        self._kept: dict[Any, tuple[Any, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        if given.shape not in self._kept:
            self._kept[given.shape] = self._capture(given)
        graph, taken, made = self._kept[given.shape]
        taken.copy_(given)
        graph.replay()
        return made.clone()

    def _capture(self, given: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
        taken, side = given.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up outside the capture
            for _ in range(3):
                self._work(taken)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = self._work(taken)
        return graph, taken, made


class TorchLoop:
    """The published method as one writes it. Its schedule in CUDA graphs is a rival of `gpu_bench.py`."""

    def __init__(self, work: Path, threads: int, batch: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._device = device
        self.settings: dict[str, Any] = {"steps": 2000}

    def open_adaptation(self, X: Any, texts: Sequence[Any]) -> Any:
        return torch.from_numpy(X).to(self._device), [torch.from_numpy(block).to(self._device) for block in texts]

    def adapt(self, problem: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            logits = torch_method(*problem).cpu().numpy()
        return logits.argmax(axis=1), logits
