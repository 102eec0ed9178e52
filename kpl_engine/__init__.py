"""kpl-engine: knowledge-enhanced zero-shot classification of medical images, without torch at run time."""

__version__ = "0.1.0"
