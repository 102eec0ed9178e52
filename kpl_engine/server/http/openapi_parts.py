"""Pieces that both halves of the OpenAPI document are put together from."""

from __future__ import annotations

from typing import Any

__all__ = ["json_of", "operation", "ref"]

_REFUSED = {
    400: "The request is malformed, or asks for what does not go together",
    401: "A bearer token is needed, or not one of the server's",
    403: "The settings of the server do not allow it",
    404: "No model, version or address of that name",
    405: "Another HTTP method is expected here",
    408: "The body came too slowly",
    413: "The body, a picture or their number is over the limit",
    422: "The pictures give no defined answer, or a bundle cannot be used",
    429: "Full; come again after Retry-After seconds",
    500: "An error of the server; its log has the details",
    503: "Starting, stopping, or the model is not loaded",
    504: "Not answered within the deadline",
}
_ALWAYS = (400, 401, 403, 405, 500)
_ID = {"x-request-id": {"schema": {"type": "string"}, "description": "as given in the request, else a fresh one"}}
_RETRY = {"retry-after": {"schema": {"type": "integer", "minimum": 1}, "description": "seconds"}}


def ref(name: str) -> dict[str, Any]:
    """A schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(name: str, example: Any = None) -> dict[str, Any]:
    """A media type whose values are of that schema."""
    return {"schema": ref(name)} if example is None else {"schema": ref(name), "example": example}


def operation(
    tag: str,
    name: str,
    summary: str,
    answer: dict[str, Any],
    refused: tuple[int, ...] = (),
    error: str = "Error",
    parameters: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    """One method of one address.

    Parameters
    ----------
    tag, name, summary : str
        ``name`` is the operationId.
    answer : dict
        The JSON media type of status 200.
    refused : tuple of int
        Statuses besides those that every address has.
    error : str
        The schema of what refusals say.
    parameters : tuple of dict
    """
    responses: dict[str, Any] = {
        "200": {"description": "Answered", "headers": _ID, "content": {"application/json": answer}}
    }
    for status in sorted({*refused, *_ALWAYS}):
        responses[str(status)] = {
            "description": _REFUSED[status],
            "headers": {**_ID, **(_RETRY if status == 429 else {})},
            "content": {"application/json": {"schema": ref(error)}},
        }
    found = {"tags": [tag], "operationId": name, "summary": summary, "responses": responses}
    return {**found, "parameters": list(parameters)} if parameters else found
