"""Errors as OpenAI's clients know them: one envelope for everything that goes wrong.

`{"error": {"message", "type", "param", "code"}}` with a fitting status. A request at fault is a 400
(never a framework's 422), a server at fault a 5xx. What the routes raise becomes a response here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tpustream.core.errors import EngineStopped, InvalidRequest, QueueFull

INVALID = "invalid_request_error"
SERVER = "server_error"
UNION_TAGS = ("str", "int", "float", "bool")
SHOWN_INPUT = 80


class ApiError(Exception):
    """An error with its place in HTTP.

    Attributes:
      status: of the response.
      message: for people.
      type: OpenAI's class of error.
      param: the field at fault, or None.
      code: a word that programs match, or None.
      headers: beside the usual ones, for example Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def envelope(
    message: str, *, type: str = INVALID, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The JSON object of an error, for a body or for an event of a stream."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def unavailable(message: str, retry_after: int, code: str) -> ApiError:
    """503: not now. `retry_after` in seconds."""
    return ApiError(503, message, type=SERVER, code=code, headers={"Retry-After": str(retry_after)})


REFUSALS = (ApiError, InvalidRequest, EngineStopped, QueueFull)
"""What says no to a request, here and below."""


def from_core(error: Exception) -> ApiError:
    """What core types or the engine refuse, one of REFUSALS."""
    match error:
        case InvalidRequest():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case EngineStopped():
            return unavailable(f"The engine has stopped: {error}", 30, "engine_stopped")
        case QueueFull():
            headers = {"Retry-After": str(math.ceil(error.retry_after))}
            return ApiError(429, str(error), type="rate_limit_error", code="queue_full", headers=headers)
        case ApiError():
            return error
    raise TypeError(f"error: wanted one of {REFUSALS}, got {type(error)}")


def from_validation(error: ValidationError) -> ApiError:
    """A body that the schema refuses. All complaints about the first field at fault are joined."""
    details = error.errors(include_url=False, include_context=False)
    first = details[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, f"The body is not valid JSON: {reason}", code="invalid_json")
    path = field_path(first["loc"])
    if not path:
        return ApiError(400, "The body: wanted a JSON object")
    reasons = [detail["msg"] for detail in details if field_path(detail["loc"]) == path]
    if first["type"] == "missing":
        return ApiError(400, f"{path}: this field is required", param=path)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{path}: there is no such field here", param=path, code="unknown_field")
    shown = repr(first["input"])
    shown = shown if len(shown) <= SHOWN_INPUT else shown[:SHOWN_INPUT] + "..."
    wanted = " or ".join(dict.fromkeys(reason.removeprefix("Input should be ") for reason in reasons))
    return ApiError(400, f"{path}: wanted {wanted}, got {shown}", param=path)


def field_path(location: Sequence[int | str]) -> str:
    """("messages", 0, "content", "str") -> "messages[0].content": tags of unions end the path."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step in UNION_TAGS or "[" in step:
            break
        else:
            path += f".{step}" if path else step
    return path


def error_response(error: ApiError) -> Response:
    """The response to a request that failed before its answer began."""
    body = to_json(envelope(error.message, type=error.type, param=error.param, code=error.code))
    return Response(body, error.status, headers=error.headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Give every failure of `app` the envelope: ours, the router's 404 and 405, and the unexpected."""

    async def on_refusal(request: Request, error: Exception) -> Response:
        refusal = from_core(error)
        request.state.exchange.error = refusal.code or refusal.type
        return error_response(refusal)

    async def on_http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"Unknown request URL: {request.method} {request.url.path}"
        elif error.status_code == 405:
            message = f"Not allowed to {request.method} on {request.url.path}"
        kind = INVALID if error.status_code < 500 else SERVER
        return await on_refusal(
            request, ApiError(error.status_code, message, type=kind, headers=error.headers)
        )

    async def on_unexpected(request: Request, error: Exception) -> Response:
        request.state.exchange.error = type(error).__name__
        # The exception goes on to uvicorn, which closes the connection: a client that is not told would
        # send its next request into it.
        headers = {"X-Request-Id": request.state.exchange.request_id, "Connection": "close"}
        return error_response(
            ApiError(500, f"Internal error: {type(error).__name__}", type=SERVER, headers=headers)
        )

    for kind in REFUSALS:
        app.add_exception_handler(kind, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unexpected)
