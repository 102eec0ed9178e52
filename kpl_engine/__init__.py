"""kpl-engine: knowledge-enhanced zero-shot classification of medical images, without torch at run time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kpl_engine.classification import Classification as Classification
    from kpl_engine.config import DecodeConfig as DecodeConfig
    from kpl_engine.config import EncoderConfig as EncoderConfig
    from kpl_engine.config import EngineConfig as EngineConfig
    from kpl_engine.config import MethodConfig as MethodConfig
    from kpl_engine.config import SolverConfig as SolverConfig
    from kpl_engine.engine import Engine as Engine
    from kpl_engine.errors import KplError as KplError
    from kpl_engine.knowledge import KnowledgeBase as KnowledgeBase
    from kpl_engine.solver.labels import refine_labels as refine_labels
    from kpl_engine.solver.proxies import learn_proxies as learn_proxies
    from kpl_engine.solver.select import Problem as Problem
    from kpl_engine.solver.select import solve_many as solve_many
    from kpl_engine.solver.text_proxy import select_text_proxies as select_text_proxies

__version__ = "0.1.0"

# Loaded on first use: importing the package must not cost an embedded process anything.
_HOMES = {
    "Classification": "kpl_engine.classification",
    "DecodeConfig": "kpl_engine.config",
    "EncoderConfig": "kpl_engine.config",
    "Engine": "kpl_engine.engine",
    "EngineConfig": "kpl_engine.config",
    "KnowledgeBase": "kpl_engine.knowledge",
    "KplError": "kpl_engine.errors",
    "MethodConfig": "kpl_engine.config",
    "Problem": "kpl_engine.solver.select",
    "SolverConfig": "kpl_engine.config",
    "learn_proxies": "kpl_engine.solver.proxies",
    "refine_labels": "kpl_engine.solver.labels",
    "select_text_proxies": "kpl_engine.solver.text_proxy",
    "solve_many": "kpl_engine.solver.select",
}

__all__ = [
    "Classification",
    "DecodeConfig",
    "EncoderConfig",
    "Engine",
    "EngineConfig",
    "KnowledgeBase",
    "KplError",
    "MethodConfig",
    "Problem",
    "SolverConfig",
    "__version__",
    "learn_proxies",
    "refine_labels",
    "select_text_proxies",
    "solve_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
