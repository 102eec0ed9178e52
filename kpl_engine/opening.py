"""What `Engine` takes from a bundle, and the GPU its solver runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kpl_engine.bundle import Bundle
from kpl_engine.encoder.base import Encoder
from kpl_engine.errors import BundleError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.solver.base import FrozenProxies, Notice

if TYPE_CHECKING:  # imported when a GPU is asked for
    from kpl_engine.solver.device import DeviceSolver

__all__ = ["open_solver", "read_frozen", "read_knowledge"]


def read_knowledge(bundle: Bundle, name: str) -> KnowledgeBase:
    """A knowledge base by its name in the manifest; `KnowledgeError` if its file is not one."""
    file = bundle.manifest["knowledge"][name]["file"]
    return KnowledgeBase.from_tensors(*bundle.tensors(file), f"{bundle.path}: {file}")


def read_frozen(bundle: Bundle, base: KnowledgeBase) -> FrozenProxies | None:
    """Fitted proxies of a knowledge base; refuses those of another width, class count or version of it."""
    entry = bundle.manifest.get("proxies", {}).get(base.name)
    if entry is None:
        return None
    frozen = FrozenProxies.from_tensors(*bundle.tensors(entry["file"]))
    expected = (base.embeddings.shape[1], len(base.classes))
    if frozen.proxies.shape != expected or entry.get("knowledge_fingerprint") != base.fingerprint:
        raise BundleError(
            f"{bundle.path}: {entry['file']}: expected proxies of shape {expected} fitted to the present knowledge "
            f"base {base.name!r}, got shape {frozen.proxies.shape} fitted to another; fit them again"
        )
    return frozen


def open_solver(device: str, encoder: Encoder) -> tuple[DeviceSolver | None, Notice | None]:
    """The GPU of ``SolverConfig.device``, where "same" is the encoder's, or None for the CPU; and a word on the choice.

    `BackendUnavailableError` or `CudaError` where one asked for by name cannot be used.
    """
    context = getattr(encoder, "context", None)  # of an encoder on a GPU
    if device == "cpu" or (device == "same" and context is None):
        return None, None
    from kpl_engine.solver.devices import choose_beside

    return choose_beside(device, context)
