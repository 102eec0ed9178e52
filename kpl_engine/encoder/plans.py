"""TensorRT plans as a bundle keeps them: profiles, what a plan was built for, and whether it fits this machine.

Nothing here imports TensorRT or CUDA.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kpl_engine.arrays import Float32
from kpl_engine.cuda.base import DeviceInfo
from kpl_engine.errors import BackendUnavailableError, ConfigError, EncoderError
from kpl_engine.strict_json import thaw

__all__ = [
    "GATES",
    "MAX_BATCH",
    "PARITY_FILE",
    "Machine",
    "Plan",
    "Profile",
    "bucket_for",
    "buckets_of",
    "choose_plan",
    "describe_machine",
    "measure_parity",
    "plan_key",
    "plan_name",
    "profiles_of",
]

Profile = tuple[int, int, int]  # smallest, best and largest batch

# The most 1 - cos to the float32 graph on the same input. Different images differ by about 1e-2.
GATES = {"fp32": 1e-6, "fp16": 1e-5, "bf16": 2e-4, "fp8": 1e-3, "int8": 1e-3}
MAX_BATCH = 1024
PARITY_FILE = "plans/parity.safetensors"
_PREFERENCE = ("fp16", "bf16", "fp32", "fp8", "int8")  # what loses most was asked for: it is taken last
# Narrow ones: TensorRT tunes each for its best batch alone.
_PROFILES: tuple[Profile, ...] = ((1, 1, 1), (2, 4, 8), (8, 16, 32), (32, 64, 64))
_MAX_SLUG = 32


def profiles_of(max_batch: int) -> tuple[Profile, ...]:
    """1/1/1, 2/4/8, 8/16/32, 32/64/64, 64/128/128, ... cut at ``max_batch``; `ConfigError` unless 1 to 1024."""
    if type(max_batch) is not int or not 1 <= max_batch <= MAX_BATCH:
        raise ConfigError(f"max_batch: expected a whole number from 1 to {MAX_BATCH}, got {max_batch!r}")
    wanted = list(_PROFILES)
    while wanted[-1][2] < max_batch:
        last = wanted[-1][2]
        wanted.append((last, 2 * last, 2 * last))
    found: list[Profile] = []
    for low, best, high in wanted:
        if not found or found[-1][2] < min(high, max_batch):
            found.append((min(low, max_batch), min(best, max_batch), min(high, max_batch)))
    return tuple(found)


def buckets_of(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that are run, smaller calls padded: powers of two up to ``max_batch``, and that."""
    return tuple(sorted({1 << i for i in range(max_batch.bit_length()) if 1 << i <= max_batch} | {max_batch}))


@dataclass(frozen=True)
class Machine:
    """All that a plan is tied to but the graph."""

    gpu: str
    compute_capability: tuple[int, int]
    num_multiprocessors: int
    tensorrt: str
    cuda_major: int
    platform: str


def describe_machine(info: DeviceInfo, tensorrt_version: str) -> Machine:
    """This machine with one of its GPUs and one TensorRT."""
    system = f"{sys.platform}-{platform.machine()}"
    cuda_major = _cuda_major(info, tensorrt_version)
    return Machine(info.name, info.compute_capability, info.num_multiprocessors, tensorrt_version, cuda_major, system)


def _cuda_major(info: DeviceInfo, tensorrt_version: str) -> int:
    """CUDA of the TensorRT wheel, which carries it in its name; elsewhere (system packages) that of the driver."""
    for major in (13, 12, 14, 11):
        for package in (f"tensorrt-cu{major}-bindings", f"tensorrt-lean-cu{major}-bindings"):
            try:
                if version(package).startswith(tensorrt_version):
                    return major
            except PackageNotFoundError:
                continue
    return info.driver_version // 1000


@dataclass(frozen=True)
class Plan:
    """One entry of the manifest's ``plans``; ``graph`` is the fingerprint of the image graph it was made from."""

    name: str
    file: str
    parity_file: str
    precision: str
    max_batch: int
    profiles: tuple[Profile, ...]
    is_portable: bool
    graph: str
    key: str
    machine: Machine
    parity: Mapping[str, Any]

    @classmethod
    def from_manifest(cls, name: str, entry: Mapping[str, Any]) -> Plan:
        """Raises `EncoderError` for an entry with a field missing or of a wrong type."""
        try:
            built_on = entry["machine"]
            major, minor = built_on["compute_capability"]
            machine = Machine(
                gpu=str(built_on["gpu"]),
                compute_capability=(int(major), int(minor)),
                num_multiprocessors=int(built_on["num_multiprocessors"]),
                tensorrt=str(built_on["tensorrt"]),
                cuda_major=int(built_on["cuda_major"]),
                platform=str(built_on["platform"]),
            )
            plan = cls(
                name=name,
                file=str(entry["file"]),
                parity_file=str(entry["parity_file"]),
                precision=str(entry["precision"]),
                max_batch=int(entry["max_batch"]),
                profiles=tuple((int(low), int(best), int(high)) for low, best, high in entry["profiles"]),
                is_portable=entry["is_portable"] is True,
                graph=str(entry["graph"]),
                key=str(entry["key"]),
                machine=machine,
                parity=entry["parity"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EncoderError(
                f"plan {name!r}: its entry in the manifest is incomplete ({error}); build it again"
            ) from error
        if plan.precision not in GATES or not plan.profiles or not 1 <= plan.max_batch <= plan.profiles[-1][2]:
            raise EncoderError(f"plan {name!r}: its precision or profiles are unknown; build it again")
        return plan

    def to_manifest(self) -> dict[str, Any]:
        """The opposite of `from_manifest`."""
        fields = {key: value for key, value in vars(self).items() if key != "name"}
        return {**fields, "machine": asdict(self.machine), "parity": thaw(self.parity)}

    def refusal(self, machine: Machine, graph: str) -> str:
        """Why it cannot be used here; empty when it can be tried."""
        if self.graph != graph:
            return "it was built from another image graph"
        mine = self.machine
        wanted = {
            "GPU": (mine.gpu, machine.gpu),
            "compute capability": (_dotted(mine.compute_capability), _dotted(machine.compute_capability)),
            "multiprocessors": (mine.num_multiprocessors, machine.num_multiprocessors),
            "TensorRT": (mine.tensorrt, machine.tensorrt),
            "CUDA": (mine.cuda_major, machine.cuda_major),
            "system": (mine.platform, machine.platform),
        }
        if self.is_portable:
            wanted = {key: wanted[key] for key in ("compute capability", "system")}
            if not _runs_portable(mine.tensorrt, machine.tensorrt):
                return f"it needs TensorRT {mine.tensorrt} or a later one of that major, this is {machine.tensorrt}"
        for what, (theirs, ours) in wanted.items():
            if theirs != ours:
                return f"it was built for {what} {theirs}, this is {ours}"
        return ""


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _runs_portable(built: str, here: str) -> bool:
    """A version-compatible plan runs on its own version and on later ones of the same major."""
    return _numbers(built)[:1] == _numbers(here)[:1] and _numbers(built)[:3] <= _numbers(here)[:3]


def choose_plan(
    manifest: Mapping[str, Any], machine: Machine, precision: str | None = None, *, portable_only: bool = False
) -> Plan:
    """The plan of a bundle to use on ``machine``, or `BackendUnavailableError` that says of each why not.

    Of several that fit, one built for exactly this machine goes before a portable one, and fp16 before bf16, fp32
    and the quantised ones. ``precision`` takes that one alone; ``portable_only`` is for the lean runtime, which runs
    no others.
    """
    entries = manifest.get("plans") or {}
    graph = str(((manifest.get("encoder") or {}).get("image") or {}).get("fingerprint", ""))
    fitting: list[Plan] = []
    reasons = []
    for name in sorted(entries):
        try:
            plan = Plan.from_manifest(name, entries[name])
        except EncoderError as error:
            reasons.append(str(error))
            continue
        reason = plan.refusal(machine, graph)
        if not reason and precision not in (None, plan.precision):
            reason = f"its precision is {plan.precision}, not {precision}"
        if not reason and portable_only and not plan.is_portable:
            reason = "it is not portable, and only the lean runtime of TensorRT is installed"
        if reason:
            reasons.append(f"plan {name!r}: {reason}")
        else:
            fitting.append(plan)
    if fitting:
        return min(fitting, key=lambda plan: (plan.is_portable, _PREFERENCE.index(plan.precision)))
    found = "; ".join(reasons) or "this bundle holds no TensorRT plan"
    raise BackendUnavailableError(f"{found}. Build one on this machine with: kpl-engine build BUNDLE --precision fp16")


def plan_name(machine: Machine, precision: str, is_portable: bool) -> str:
    """``<gpu>-<TensorRT version>-<precision>``, fit for a file name; long GPU names end in a part of their hash."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine.gpu.lower()).strip("-") or "gpu"
    if len(slug) > _MAX_SLUG:
        slug = f"{slug[: _MAX_SLUG - 7].rstrip('-')}-{hashlib.sha256(slug.encode()).hexdigest()[:6]}"
    number = re.sub(r"[^a-z0-9.]+", ".", machine.tensorrt.lower()).strip(".")
    return f"{slug}-{number}-{precision}{'-portable' if is_portable else ''}"


def plan_key(machine: Machine, graph: str, built_graph: str, settings: Mapping[str, Any]) -> str:
    """sha256 of everything that shapes a plan.

    ``graph`` is the fingerprint of the float32 graph with its data, ``built_graph`` that of the one TensorRT was
    given, ``settings`` those of the builder with the profiles.
    """
    fields = {"machine": asdict(machine), "graph": graph, "built_graph": built_graph, "settings": dict(settings)}
    return "sha256:" + hashlib.sha256(json.dumps(fields, sort_keys=True, allow_nan=False).encode()).hexdigest()


def measure_parity(got: Float32, wanted: Float32, precision: str, what: str) -> dict[str, float]:
    """Largest |difference| and 1 - cos between the rows of two (n, d) arrays, held to the gate of ``precision``.

    Raises
    ------
    EncoderError
        A gate is exceeded, or a row is not finite.
    """
    gate = GATES[precision]
    a, b = _unit_rows(got), _unit_rows(wanted)
    # |u - v|^2 / 2 of unit rows equals 1 - cos without its cancellation
    one_minus_cos = np.square(a - b).sum(axis=1) / 2  # (n,) float64
    worst = float(one_minus_cos.max())
    if not worst <= gate:  # written so that NaN fails
        raise EncoderError(
            f"{what}: expected features within 1-cos {gate:.0e} of the float32 graph, got {worst:.1e} at row "
            f"{int(np.argmax(one_minus_cos))}; the plan is not used. Build it again, or in another precision"
        )
    return {"max_abs": float(np.abs(a - b).max()), "max_one_minus_cos": worst}


def _unit_rows(rows: Float32) -> np.ndarray[Any, np.dtype[np.float64]]:
    wide = np.asarray(rows, dtype=np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def bucket_for(count: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``count``."""
    return next(bucket for bucket in buckets if bucket >= count)
