"""Making bundles richer: knowledge bases and frozen proxies added to what is there, atomically."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32
from kpl_engine.bundle import Bundle, write_bundle
from kpl_engine.bundle.tensors import dump_tensors
from kpl_engine.bundle.writer import Source
from kpl_engine.errors import BundleChangedError, BundleError, EncoderError
from kpl_engine.knowledge.base import KnowledgeBase, check_name
from kpl_engine.knowledge.embed import embed_knowledge
from kpl_engine.knowledge.template import DEFAULT_TEMPLATE, Template
from kpl_engine.knowledge.text import read_knowledge
from kpl_engine.strict_json import thaw

__all__ = ["BuildReport", "add_proxies", "build_knowledge", "check_target"]

Progress = Callable[[int, int], None]
_MAX_TRIES = 4


@dataclass(frozen=True)
class BuildReport:
    """What `build_knowledge` did."""

    path: Path
    knowledge: KnowledgeBase
    num_embedded: int
    num_reused: int
    notices: tuple[str, ...]


def build_knowledge(
    knowledge_file: str | os.PathLike[str],
    encoder_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    name: str | None = None,
    template: str | None = None,
    truncate: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    encoder_loader: Callable[[Bundle], Any] | None = None,
) -> BuildReport:
    """Write a bundle with the encoder of ``encoder_path`` and the knowledge base of ``knowledge_file``.

    What ``output`` held before stays: its other knowledge bases, and the embeddings of every prompt
    it has already. Frozen proxies of a knowledge base whose content changes are dropped, with a
    notice, since they were fitted to the old one. Input and output may be the same bundle.

    Parameters
    ----------
    name : str, optional
        Name of the knowledge base; by default made from the file's name.
    template : str, optional
        Prompt template; by default that of the knowledge base replaced, else
        ``a photo of a {class}, which has {feature}``.
    truncate : bool
        Shorten texts that do not fit the encoder's context instead of refusing them.
    force : bool
        Replace a bundle made with another encoder, and everything in it.
    encoder_loader : callable, optional
        Gives the encoder of a bundle; called only when something has to be embedded.

    Raises
    ------
    KnowledgeError, TextTooLongError, BundleError, EncoderError
        Nothing was written.
    """
    source = Path(knowledge_file)
    _check_parent(Path(output))
    text = read_knowledge(source)
    label = check_name(name) if name is not None else _name_from(source)
    with Bundle.open(encoder_path) as encoder_bundle:
        fingerprint = _text_fingerprint(encoder_bundle)
        previous = _open_previous(Path(output), encoder_bundle, force)
        try:
            bases = _readable_bases([encoder_bundle, previous], fingerprint)
            is_same = previous is not None and _encoder_fingerprint(previous) == _encoder_fingerprint(encoder_bundle)
            origin = previous if previous is not None and is_same else encoder_bundle
            before = _knowledge_in(origin, label)
            chosen = Template(template or (before.template if before is not None else "") or DEFAULT_TEMPLATE)
            embed = _lazy_embed(encoder_bundle, fingerprint, truncate, encoder_loader)
            reuse = {prompt: row for base in bases for prompt, row in base.prompt_rows().items()}
            base, report = embed_knowledge(text, chosen, embed, fingerprint, reuse, label, progress=progress)
            written, notices = _store(origin, previous, Path(output), base)
        finally:
            if previous is not None:
                previous.close()
    return BuildReport(written, base, report.num_embedded, report.num_reused, (*text.notices, *notices))


def check_target(bundle_path: str | os.PathLike[str], output: str | os.PathLike[str] | None) -> None:
    """Raise `BundleError` when `add_proxies` could not write there: before the images are read, not after."""
    if output is None and not os.path.lexists(bundle_path):
        return  # opening it will say so
    target = Path(bundle_path if output is None else output)
    _check_parent(target)
    if os.path.lexists(target) and os.path.realpath(target) != os.path.realpath(bundle_path):
        raise BundleError(f"{target} exists; choose another name, or remove it first")


def _check_parent(target: Path) -> None:
    parent = Path(os.path.realpath(target)).parent
    if not parent.is_dir():
        raise BundleError(f"cannot write {target}: the folder {parent} does not exist; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(f"cannot write {target}: the folder {parent} is not writable; choose another output with -o")


def add_proxies(
    bundle_path: str | os.PathLike[str],
    name: str,
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str],
    manifest_entry: Mapping[str, Any],
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Store frozen proxies under ``name`` in a bundle, replacing earlier ones of that name.

    ``output`` writes the extended bundle there and leaves ``bundle_path`` as it is. Returns where the
    proxies are now. Raises `BundleChangedError` when the knowledge base they were fitted to has been
    replaced meanwhile; what else another writer added is kept.
    """
    for _ in range(_MAX_TRIES - 1):
        with contextlib.suppress(BundleChangedError):
            return _add_proxies(bundle_path, name, tensors, metadata, manifest_entry, output)
    return _add_proxies(bundle_path, name, tensors, metadata, manifest_entry, output)


def _add_proxies(
    bundle_path: str | os.PathLike[str],
    name: str,
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str],
    manifest_entry: Mapping[str, Any],
    output: str | os.PathLike[str] | None,
) -> Path:
    file = f"proxies/{check_name(name)}.safetensors"
    target = Path(output) if output is not None else Path(bundle_path)
    with Bundle.open(bundle_path) as bundle:
        manifest = thaw(bundle.manifest)
        fitted_to = manifest_entry.get("knowledge_fingerprint")
        if fitted_to is not None and fitted_to != (manifest.get("knowledge", {}).get(name) or {}).get("fingerprint"):
            raise BundleChangedError(
                f"{bundle_path}: the knowledge base {name!r} was replaced while proxies were fitted to it; fit again"
            )
        manifest.setdefault("proxies", {})[name] = {**thaw(manifest_entry), "file": file}
        files: dict[str, Source] = dict.fromkeys(bundle.names, bundle)
        files[file] = dump_tensors({key: np.asarray(value) for key, value in tensors.items()}, metadata)
        is_in_place = os.path.realpath(target) == os.path.realpath(bundle_path)
        expected = bundle.manifest["manifest_sha256"] if is_in_place else None
        write_bundle(target, manifest, files, overwrite=is_in_place, expected_sha256=expected).close()
    return target


def _name_from(source: Path) -> str:
    return check_name(re.sub(r"[^a-z0-9_.-]", "_", source.stem.lower()).lstrip(".-")[:64] or "knowledge")


def _text_fingerprint(bundle: Bundle) -> str:
    tower = (bundle.manifest.get("encoder") or {}).get("text")
    if tower is None:
        raise EncoderError(f"{bundle.path} has no text encoder, so it cannot embed descriptions; export one with it")
    return str(tower["fingerprint"])


def _encoder_fingerprint(bundle: Bundle) -> str:
    return str((bundle.manifest.get("encoder") or {}).get("fingerprint", "none"))


def _open_previous(output: Path, encoder_bundle: Bundle, force: bool) -> Bundle | None:
    """The bundle already at ``output``, or None; refuses one made with another encoder unless forced."""
    if not os.path.lexists(output):
        return None
    bundle = Bundle.open(output)
    theirs, ours = _encoder_fingerprint(bundle), _encoder_fingerprint(encoder_bundle)
    if theirs != ours and not force:
        bundle.close()
        raise BundleError(
            f"{output} was made with another encoder (fingerprint {theirs[:12]}, not {ours[:12]}); choose another "
            "output, or use --force to replace it and the knowledge bases in it"
        )
    return bundle


def _readable_bases(bundles: list[Bundle | None], fingerprint: str) -> list[KnowledgeBase]:
    found = []
    for bundle in bundles:
        for name in bundle.manifest.get("knowledge", {}) if bundle is not None else ():
            base = _knowledge_in(bundle, name)
            if base is not None and base.text_fingerprint == fingerprint:
                found.append(base)
    return found


def _knowledge_in(bundle: Bundle | None, name: str) -> KnowledgeBase | None:
    entry = bundle.manifest.get("knowledge", {}).get(name) if bundle is not None else None
    if bundle is None or entry is None:
        return None
    tensors, metadata = bundle.tensors(entry["file"])
    return KnowledgeBase.from_tensors(tensors, metadata, f"{bundle.path}: {entry['file']}")


def _lazy_embed(
    bundle: Bundle, fingerprint: str, truncate: bool, encoder_loader: Callable[[Bundle], Any] | None
) -> Callable[[list[str]], Float32]:
    """An embedding function that starts the encoder at its first call."""
    started: list[Any] = []

    def embed(texts: list[str]) -> Float32:
        if not started:
            encoder = encoder_loader(bundle) if encoder_loader is not None else _load(bundle)
            if encoder.text_fingerprint != fingerprint:
                raise EncoderError(f"{bundle.path}: the loaded text encoder is not the one its manifest describes")
            started.append(encoder)
        rows: Float32 = started[0].encode_texts(texts, truncate=truncate)
        return rows

    return embed


def _load(bundle: Bundle) -> Any:
    from kpl_engine.encoder.select import load_encoder

    return load_encoder(bundle)


def _store(origin: Bundle, previous: Bundle | None, output: Path, base: KnowledgeBase) -> tuple[Path, tuple[str, ...]]:
    """Write ``origin`` with ``base`` in it to ``output``; what was at ``output`` is ``previous``."""
    manifest = thaw(origin.manifest)
    files: dict[str, Source] = dict.fromkeys(origin.names, origin)
    notices = []
    before = _knowledge_in(origin, base.name)
    if before is not None and before.fingerprint != base.fingerprint:
        for name, entry in list(manifest.get("proxies", {}).items()):
            if name == base.name or entry.get("knowledge") == base.name:
                del manifest["proxies"][name]
                files.pop(entry["file"])
                notices.append(f"the frozen proxies {name!r} were fitted to the old {base.name!r}; fit them again")
    file = f"knowledge/{base.name}.safetensors"
    old = manifest.setdefault("knowledge", {}).get(base.name, {})
    files.pop(old.get("file"), None)
    files[file] = dump_tensors(*base.to_tensors())
    manifest["knowledge"][base.name] = {
        "file": file,
        "classes": list(base.classes),
        "num_descriptions": len(base.embeddings),
        "template": base.template,
        "text_fingerprint": base.text_fingerprint,
        "fingerprint": base.fingerprint,
    }
    expected = previous.manifest["manifest_sha256"] if previous is not None else None
    write_bundle(output, manifest, files, overwrite=previous is not None, expected_sha256=expected).close()
    return output, tuple(notices)
