"""Compiles the .proto files of this folder to the descriptor set that is shipped with them:
``python -m kpl_engine.server.grpc.compile_proto`` (needs grpcio-tools).

Generated modules would register in protobuf's default pool, where tritonclient, kserve and mlserver register the same
names: any two of them in one process fail. A descriptor set goes to a pool of our own.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["main"]

_HERE = Path(__file__).parent
_SOURCES = ("inference.proto", "health.proto")


def main(target: Path = _HERE / "protocol.binpb") -> int:
    """Write the set to ``target``; returns the exit status of protoc."""
    from grpc_tools import protoc

    status: int = protoc.main(["protoc", f"--proto_path={_HERE}", f"--descriptor_set_out={target}", *_SOURCES])
    return status


if __name__ == "__main__":
    sys.exit(main())
