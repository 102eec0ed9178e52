"""Who is measured by `rivals.py`, what each can do, and what to install where it is missing."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ADAPT", "ENCODE", "OURS", "RIVALS", "WHOLE", "Rival", "hint"]

ENCODE, ADAPT, WHOLE = "encode", "adapt", "whole"  # pictures -> features -> labels, and both at once
OURS = "kpl-engine"


@dataclass(frozen=True)
class Rival:
    """``opens`` is ``module:class``; its ``options`` are keyword arguments of the class."""

    name: str
    opens: str
    tasks: tuple[str, ...]
    packages: tuple[str, ...]  # whose versions the result names
    device: str = "cpu"
    options: tuple[tuple[str, object], ...] = ()


_ORT, _TORCH = ("onnxruntime", "pillow", "numpy"), ("torch", "open_clip_torch", "torchvision", "pillow")

RIVALS = (
    Rival(OURS, "rivals_kpl:Kpl", (ENCODE, ADAPT, WHOLE), ("kpl-engine", *_ORT)),
    Rival("ONNX Runtime", "rivals_onnx:OnnxRuntime", (ENCODE, WHOLE), _ORT),
    Rival("OpenVINO", "rivals_onnx:OpenVino", (ENCODE, WHOLE), ("openvino", "pillow", "numpy")),
    Rival("open_clip, eager", "rivals_torch:OpenClip", (ENCODE, WHOLE), _TORCH),
    Rival("open_clip, torch.compile", "rivals_torch:OpenClip", (ENCODE, WHOLE), _TORCH, options=(("mode", "compile"),)),
    Rival(f"{OURS}, all 2000 steps", "rivals_kpl:Kpl", (ADAPT,), ("kpl-engine",), options=(("solver", "schedule"),)),
    Rival("PyTorch loop", "rivals_torch:TorchLoop", (ADAPT,), ("torch",)),
    Rival("NumPy loop", "rivals_onnx:NumpyLoop", (ADAPT,), ("numpy",)),
    Rival(OURS, "rivals_kpl:Kpl", (ENCODE, ADAPT, WHOLE), ("kpl-engine", "onnxruntime-gpu", "cuda-core"), "cuda"),
    Rival("ONNX Runtime", "rivals_onnx:OnnxRuntime", (ENCODE, WHOLE), ("onnxruntime-gpu", "pillow"), "cuda"),
    Rival("open_clip, eager", "rivals_torch:OpenClip", (ENCODE, WHOLE), _TORCH, "cuda"),
    Rival(
        "open_clip, torch.compile",
        "rivals_torch:OpenClip",
        (ENCODE, WHOLE),
        _TORCH,
        "cuda",
        (("mode", "compile"),),
    ),
    Rival("open_clip, CUDA graphs", "rivals_torch:OpenClip", (ENCODE, WHOLE), _TORCH, "cuda", (("mode", "graphs"),)),
    Rival("PyTorch loop", "rivals_torch:TorchLoop", (ADAPT,), ("torch",), "cuda"),
)

_EXTRAS = {
    "openvino": 'pip install ".[rival-openvino]"',
    "torch": 'pip install ".[export]"',
    "open_clip": 'pip install ".[export]"',
    "torchvision": 'pip install ".[export]"',
    "onnxruntime": "pip install onnxruntime",
}


def hint(module: str) -> str:
    """What to install for a module that is missing."""
    top = module.split(".", maxsplit=1)[0]
    return _EXTRAS.get(top, f"pip install {top}")
