"""The artefact on disk: a folder (or stored zip) whose every byte the manifest vouches for."""

from kpl_engine.bundle.reader import Bundle
from kpl_engine.bundle.writer import pack, write_bundle

__all__ = ["Bundle", "pack", "write_bundle"]
