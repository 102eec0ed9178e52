"""The message classes of the door, in a descriptor pool of our own (`compile_proto` says why)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from kpl_engine.errors import RequestError

__all__ = ["DESCRIPTORS", "message", "methods", "parse"]

DESCRIPTORS = Path(__file__).with_name("protocol.binpb")


@cache
def _pool() -> Any:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for each in files.file:
        pool.AddSerializedFile(each.SerializeToString())
    return pool


@cache
def message(name: str, package: str = "inference") -> Any:
    """The class of a message, for example ``message("ModelInferRequest")``; it works with protobuf 5.29 to 7."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{package}.{name}"))


def methods(service: str) -> dict[str, tuple[Any, Any]]:
    """Classes of request and response by the name of the method."""
    found = _pool().FindServiceByName(service)
    return {
        each.name: tuple(message_factory.GetMessageClass(kind) for kind in (each.input_type, each.output_type))
        for each in found.methods
    }


def parse(kind: Any, data: bytes) -> Any:
    """The message of class ``kind`` that ``data`` holds; `RequestError` where it holds none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise RequestError(f"expected a {kind.DESCRIPTOR.full_name}, got {len(data)} bytes that are none") from None
