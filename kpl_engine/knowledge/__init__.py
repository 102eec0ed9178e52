"""Knowledge bases: descriptions of classes and their cached text embeddings."""

from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.knowledge.embed import EmbedReport, embed_knowledge
from kpl_engine.knowledge.template import Template
from kpl_engine.knowledge.text import KnowledgeText, parse_knowledge, read_knowledge

__all__ = [
    "EmbedReport",
    "KnowledgeBase",
    "KnowledgeText",
    "Template",
    "embed_knowledge",
    "parse_knowledge",
    "read_knowledge",
]
