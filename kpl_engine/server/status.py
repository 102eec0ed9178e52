"""The one table from errors to the statuses of both doors."""

from __future__ import annotations

from dataclasses import dataclass

from kpl_engine.errors import (
    BundleError,
    DeadlineExceededError,
    ForbiddenError,
    InputError,
    KplError,
    NotReadyError,
    OverloadedError,
    RequestCancelledError,
    SlowRequestError,
    SolverError,
    TooLargeError,
    UnauthorizedError,
    UnknownModelError,
    WrongVerbError,
)

__all__ = ["INTERNAL_MESSAGE", "Status", "message_of", "status_of"]


@dataclass(frozen=True)
class Status:
    """How one kind of error is told. ``reason`` labels metrics and logs; ``grpc`` is the name of a grpc.StatusCode."""

    http: int
    grpc: str
    reason: str


# Looked through from above: a class stands before its base.
_TABLE: tuple[tuple[type[BaseException], Status], ...] = (
    (UnknownModelError, Status(404, "NOT_FOUND", "not_found")),
    (WrongVerbError, Status(405, "UNIMPLEMENTED", "wrong_verb")),
    (SlowRequestError, Status(408, "DEADLINE_EXCEEDED", "slow_client")),
    (TooLargeError, Status(413, "INVALID_ARGUMENT", "too_large")),
    (OverloadedError, Status(429, "RESOURCE_EXHAUSTED", "overloaded")),
    (RequestCancelledError, Status(499, "CANCELLED", "cancelled")),
    (NotReadyError, Status(503, "UNAVAILABLE", "not_ready")),
    (DeadlineExceededError, Status(504, "DEADLINE_EXCEEDED", "deadline")),
    (UnauthorizedError, Status(401, "UNAUTHENTICATED", "unauthorized")),
    (ForbiddenError, Status(403, "PERMISSION_DENIED", "forbidden")),
    (SolverError, Status(422, "FAILED_PRECONDITION", "unsolvable")),
    (InputError, Status(400, "INVALID_ARGUMENT", "invalid")),
    (BundleError, Status(422, "FAILED_PRECONDITION", "bundle")),
)
_INTERNAL = Status(500, "INTERNAL", "internal")
INTERNAL_MESSAGE = "internal error; the server's log has the details under this request id"


def status_of(error: BaseException) -> Status:
    """The row of ``error``; what nobody expected is internal."""
    return next((status for kind, status in _TABLE if isinstance(error, kind)), _INTERNAL)


def message_of(error: BaseException) -> str:
    """What a client is told: the text of an error raised on purpose, nothing of an unexpected one."""
    return str(error) if isinstance(error, KplError) else INTERNAL_MESSAGE
