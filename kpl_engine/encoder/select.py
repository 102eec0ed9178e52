"""Which back end runs a bundle's encoder. The only place that chooses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kpl_engine.config import EncoderConfig
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.ort import BundleView, OrtEncoder, Provider
from kpl_engine.errors import BackendUnavailableError, ConfigError, EncoderError

__all__ = ["PREFERENCE", "available_providers", "load_encoder"]

PREFERENCE = ("CUDAExecutionProvider", "CPUExecutionProvider")
_DEVICE = re.compile(r"auto|cpu|cuda(?::(\d{1,3}))?")
_HOW = {
    # Both wheels own the package onnxruntime: with both installed, whichever came last wins.
    "CUDAExecutionProvider": "on a machine with an NVIDIA driver: pip uninstall onnxruntime, then "
    'pip install onnxruntime-gpu; or use device="cpu"',
    "TensorrtExecutionProvider": "install onnxruntime-gpu and TensorRT",
}


def available_providers() -> list[str]:
    """The execution providers this ONNX Runtime was built with."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def load_encoder(
    bundle: BundleView,
    device: str = "auto",
    config: EncoderConfig | None = None,
    providers: Sequence[str] | None = None,
    *,
    available: Callable[[], list[str]] = available_providers,
) -> Encoder:
    """The encoder of ``bundle`` on the device asked for.

    Parameters
    ----------
    bundle : Bundle
    device : "auto", "cpu", "cuda" or "cuda:N"
        ``auto`` takes the best of `PREFERENCE` that is there and works, and says which in the
        encoder's ``notices``. A device asked for by name is that one or an error.
    config : EncoderConfig, optional
    providers : sequence of str, optional
        Execution providers by name, best first, instead of ``device``. All must be there.
    available : callable
        What is there; tests pass their own.

    Raises
    ------
    BackendUnavailableError
        What was asked for by name is not there or did not start.
    ConfigError
        Unknown ``device``.
    """
    present = available()
    if providers is not None:
        return _by_name(bundle, [str(name) for name in providers], config, present)
    match = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    if match is None:
        raise ConfigError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if device == "auto":
        return _best(bundle, config, present)
    if device == "cpu":
        return _by_name(bundle, ["CPUExecutionProvider"], config, present)
    cuda: Provider = ("CUDAExecutionProvider", {"device_id": match.group(1) or "0"})
    return _by_name(bundle, [cuda, "CPUExecutionProvider"], config, present)


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _by_name(
    bundle: BundleView, providers: Sequence[Provider], config: EncoderConfig | None, present: Sequence[str]
) -> Encoder:
    if not providers:
        raise ConfigError("providers: expected at least one execution provider, got none")
    for provider in providers:
        if _name(provider) not in present:
            raise _unavailable(_name(provider), f"this ONNX Runtime has {', '.join(present) or 'none'}")
    encoder = OrtEncoder(bundle, config, providers)
    # ONNX Runtime drops a provider whose libraries do not load, and only logs it.
    got = encoder.providers
    for provider in providers:
        if _name(provider) not in got:
            encoder.close()
            raise _unavailable(_name(provider), f"it did not start (its libraries or driver); running: {list(got)}")
    return encoder


def _best(bundle: BundleView, config: EncoderConfig | None, present: Sequence[str]) -> Encoder:
    candidates = [name for name in PREFERENCE if name in present]
    if not candidates:
        raise _unavailable(PREFERENCE[-1], f"this ONNX Runtime has {', '.join(present) or 'none'}")
    passed: list[str] = []
    for index, name in enumerate(candidates):
        asked = candidates[index:]
        try:
            encoder = OrtEncoder(bundle, config, asked, [_chosen(name, passed)])
        except EncoderError as error:
            if index == len(candidates) - 1:
                raise
            passed.append(f"{name} ({error!s:.120})")
            continue
        if name in encoder.providers:
            return encoder
        encoder.close()
        passed.append(f"{name} (did not start)")
    raise _unavailable(candidates[-1], "none of the execution providers started: " + "; ".join(passed))


def _chosen(name: str, passed: Sequence[str]) -> str:
    return f"device auto: the encoder runs on {name}" + (f"; passed over {'; '.join(passed)}" if passed else "")


def _unavailable(name: str, found: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{name} was asked for and is not available: {found}. {_HOW.get(name, 'Install onnxruntime')}"
    )
