"""Which back end runs a bundle's encoder. The only place that chooses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kpl_engine.config import EncoderConfig
from kpl_engine.cuda.context import Context
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.ort import BundleView, OrtEncoder, Provider
from kpl_engine.encoder.ort_cuda import HOW_TO_INSTALL, OrtCudaEncoder
from kpl_engine.errors import BackendUnavailableError, ConfigError, CudaError, EncoderError, KplError

__all__ = ["available_providers", "has_plan", "load_encoder", "open_context", "open_plan"]

_DEVICE = re.compile(r"auto|cpu|cuda(?::(\d{1,3}))?")
_CUDA, _CPU, _PLAN = "CUDAExecutionProvider", "CPUExecutionProvider", "TensorRT"
_HOW = {
    _CUDA: HOW_TO_INSTALL,
    "TensorrtExecutionProvider": "install onnxruntime-gpu and TensorRT",
}
OpenContext = Callable[[int], Context]
OpenPlan = Callable[[BundleView, Context, EncoderConfig | None, Sequence[str]], Encoder]


def available_providers() -> list[str]:
    """The execution providers this ONNX Runtime was built with."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def open_context(ordinal: int) -> Context:
    """GPU ``ordinal`` and a stream of its own; `BackendUnavailableError` or `CudaError` if it cannot be used."""
    from kpl_engine.cuda.select import open_driver

    return Context(open_driver(f"cuda:{ordinal}"))


def has_plan(bundle: BundleView) -> bool:
    """Whether `kpl-engine build` has put TensorRT plans into the bundle, fitting this GPU or not."""
    return bool(bundle.manifest.get("plans"))


def open_plan(bundle: BundleView, context: Context, config: EncoderConfig | None, notices: Sequence[str]) -> Encoder:
    """The bundle's TensorRT plan that fits this GPU and this TensorRT; `EncoderError` says why none does.

    The encoder closes ``context``.
    """
    from kpl_engine.encoder import tensorrt

    return tensorrt.open_plan(bundle, context, config, notices)


def _open_ort(bundle: BundleView, context: Context, config: EncoderConfig | None, notices: Sequence[str]) -> Encoder:
    return OrtCudaEncoder(bundle, context, config, notices, owns_context=True)


def load_encoder(
    bundle: BundleView,
    device: str = "auto",
    config: EncoderConfig | None = None,
    providers: Sequence[str] | None = None,
    *,
    available: Callable[[], list[str]] = available_providers,
    open_context: OpenContext = open_context,
    open_plan: OpenPlan = open_plan,
) -> Encoder:
    """The encoder of ``bundle`` on the device asked for.

    Parameters
    ----------
    bundle : Bundle
    device : "auto", "cpu", "cuda" or "cuda:N"
        A GPU takes the bundle's TensorRT plan if one fits it, else ONNX Runtime's CUDA provider.
        ``auto`` takes GPU 0 if that works and the CPU if not. ``auto`` says in the encoder's ``notices`` which
        it is and what it passed over. A device asked for by name is that one or an error.
    config : EncoderConfig, optional
    providers : sequence of str, optional
        Execution providers of ONNX Runtime by name, best first, instead of ``device``. All must be there.
    available, open_context, open_plan : callable
        What is there, and what opens it; tests pass their own.

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
    if device == "cpu":
        return _by_name(bundle, [_CPU], config, present)
    gpu = _Gpu(bundle, config, present, open_context, open_plan, device)
    if device == "auto":
        return _best(bundle, config, present, gpu)
    return gpu.open(int(match.group(1) or 0))


class _Gpu:
    """The encoders a GPU may have, best first, and why those before the one that opens were passed over."""

    def __init__(
        self,
        bundle: BundleView,
        config: EncoderConfig | None,
        present: Sequence[str],
        open_context: OpenContext,
        open_plan: OpenPlan,
        device: str,
    ) -> None:
        self._bundle, self._config, self._present, self._device = bundle, config, present, device
        self._open_context, self._open_plan = open_context, open_plan
        self.candidates = [_PLAN] * has_plan(bundle) + [_CUDA] * (_CUDA in present)
        self.passed: list[str] = []

    def open(self, ordinal: int) -> Encoder:
        """The first that opens. Raises `BackendUnavailableError` naming them all."""
        if not self.candidates:
            raise _unavailable(_CUDA, f"this ONNX Runtime has {', '.join(self._present) or 'none'}{_no_gpu(ordinal)}")
        try:
            context = self._open_context(ordinal)
        except KplError as error:
            self.passed += [f"{name} ({error!s:.300})" for name in self.candidates]
            raise BackendUnavailableError(f"device {self._device}: {error}") from error
        try:
            return self._first(context)
        except BaseException:
            context.close()
            raise

    def _first(self, context: Context) -> Encoder:
        errors: list[KplError] = []
        for name in self.candidates:
            try:
                opener = self._open_plan if name == _PLAN else _open_ort
                return opener(self._bundle, context, self._config, self.notices(name))
            except (EncoderError, CudaError) as error:
                errors.append(error)
                self.passed.append(f"{name} ({error!s:.300})")
        if len(errors) == 1:
            raise errors[0]
        raise BackendUnavailableError(f"device {self._device}: no encoder started: {'; '.join(map(str, errors))}")

    def notices(self, name: str) -> list[str]:
        return [_chosen(self._device, name, self.passed)] if self._device == "auto" or self.passed else []


def _no_gpu(ordinal: int) -> str:
    """What is missing besides, where the machine has no GPU to begin with."""
    from kpl_engine.cuda.select import explain_absence

    absence = explain_absence(ordinal)
    return f", and {absence.split('. ')[0]}" if absence else ""


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _by_name(
    bundle: BundleView,
    providers: Sequence[Provider],
    config: EncoderConfig | None,
    present: Sequence[str],
    notices: Sequence[str] = (),
) -> Encoder:
    if not providers:
        raise ConfigError("providers: expected at least one execution provider, got none")
    for provider in providers:
        if _name(provider) not in present:
            raise _unavailable(_name(provider), f"this ONNX Runtime has {', '.join(present) or 'none'}")
    encoder = OrtEncoder(bundle, config, providers, notices)
    # ONNX Runtime drops a provider whose libraries do not load, and only logs it.
    got = encoder.providers
    for provider in providers:
        if _name(provider) not in got:
            encoder.close()
            raise _unavailable(_name(provider), f"it did not start (its libraries or driver); running: {list(got)}")
    return encoder


def _best(bundle: BundleView, config: EncoderConfig | None, present: Sequence[str], gpu: _Gpu) -> Encoder:
    try:
        return gpu.open(0)
    except (EncoderError, CudaError):
        pass  # `gpu.passed` tells
    return _by_name(bundle, [_CPU], config, present, [_chosen("auto", _CPU, gpu.passed)])


def _chosen(device: str, name: str, passed: Sequence[str]) -> str:
    return f"device {device}: the encoder runs on {name}" + (f"; passed over {'; '.join(passed)}" if passed else "")


def _unavailable(name: str, found: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{name} was asked for and is not available: {found}. {_HOW.get(name, 'Install onnxruntime')}"
    )
