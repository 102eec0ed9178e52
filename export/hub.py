"""Downloads of the Hugging Face hub: refused at once when there is no way to it, instead of after a minute of retries.

``huggingface_hub`` repeats a failed request for 23 seconds, and open_clip asks for two file names. Its own
variables are followed: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and the proxies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from open_clip import pretrained as registry

from kpl_engine.errors import ExportError

from .environment import quiet

__all__ = ["download_weights", "is_reachable", "require"]

TIMEOUT_S = 10.0
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@lru_cache(maxsize=1)
def is_reachable() -> bool:
    """Whether the hub answers anything at all; asked once a process."""
    try:
        with quiet():
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception:  # each version of huggingface_hub has its own network stack and tree of errors
        return False
    return True


def require(repository: str, files: Iterable[str]) -> None:
    """Return when ``repository`` can be asked for, or one of ``files`` is in the cache; else raise `OSError`."""
    if not is_reachable() and _cached(repository, files) is None:
        raise OSError(f"{constants.ENDPOINT} cannot be reached and {repository} is not in the cache")


def download_weights(name: str, tag: str, config: Mapping[str, Any]) -> Path:
    """The weights file of a tag: downloaded or from the cache.

    Raises
    ------
    ExportError
        Neither there nor to be had; says what to fetch by hand.
    """
    hub, url = str(config.get("hf_hub") or ""), str(config.get("url") or "")
    try:
        if hub and not is_reachable():
            return _weights_in_cache(hub)
        with quiet():
            return Path(registry.download_pretrained(dict(config)))
    except Exception as error:  # network stacks raise their own trees
        places = " or ".join(filter(None, (hub and f"https://huggingface.co/{hub.strip('/')}", url)))
        raise ExportError(
            f"the weights {tag!r} of {name} could not be downloaded ({type(error).__name__}). On a machine with a "
            f"network fetch them from {places or 'their publisher'}, copy the file here, and run again with "
            f"--model {name} --pretrained FILE.safetensors"
        ) from error


def _weights_in_cache(hub: str) -> Path:
    repository, _, file = hub.rpartition("/")
    stem = file.rpartition(".")[0]
    found = _cached(repository, (f"{stem}.safetensors", file) if file else WEIGHT_FILES)
    if found is None:
        raise OSError(f"{constants.ENDPOINT} cannot be reached and {repository} is not in the cache")
    return found


def _cached(repository: str, files: Iterable[str]) -> Path | None:
    for file in files:
        found = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None
