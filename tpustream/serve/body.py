"""From the bytes of a request to a checked schema object. Knows no route and no engine."""

from collections.abc import Collection
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from tpustream.serve.errors import ApiError, from_validation

MAX_BODY_BYTES = 16 * 1024 * 1024

Schema = TypeVar("Schema", bound=BaseModel)


async def read_body(
    request: Request, schema: type[Schema], limit: int, ignored: Collection[str] = ()
) -> Schema:
    """Read and validate a JSON body of at most `limit` bytes, and forget the optional fields in `ignored`.

    JSON has to be declared as such: a web page may post anything else to a local server without
    the browser's asking first. Raises ApiError: 415, 413, or 400 for JSON or fields that are wrong.
    """
    declared = request.headers.get("content-type", "")
    media = declared.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise ApiError(415, f"Content-Type: wanted application/json, got {declared or 'none'!r}")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        raise ApiError(400, "The body did not arrive whole", code="request_incomplete") from None
    try:
        valid = schema.model_validate_json(bytes(body))
    except ValidationError as error:
        raise from_validation(error) from None
    for field in ignored:
        (valid.model_extra or {}).pop(field, None)
        if field in schema.model_fields and not schema.model_fields[field].is_required():
            setattr(valid, field, None)
    return valid


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body: wanted at most {limit} bytes", code="request_too_large")
