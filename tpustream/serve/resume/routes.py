"""/v1/streams: the rest of an answer that is kept."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tpustream.serve.errors import ApiError
from tpustream.serve.events import LAST_EVENT_ID, read_event_id, read_position
from tpustream.serve.resume.answers import Answers


def stream_routes(answers: Answers) -> APIRouter:
    """Take up a stream, or end it."""
    router = APIRouter()

    @router.get("/v1/streams/{stream_id}", summary="The rest of a stream that is kept")
    async def rest(stream_id: str, http: Request) -> Response:
        # An EventSource that comes back repeats its URL, so what it has seen since goes before `from`.
        seen, start = http.headers.get(LAST_EVENT_ID), http.query_params.get("from")
        position = None
        if seen is not None:
            stream, position = read_event_id(seen, LAST_EVENT_ID)
            if stream != stream_id:
                message = f"{LAST_EVENT_ID}: wanted an event of {stream_id!r}, got one of {stream!r}"
                raise ApiError(400, message, param=LAST_EVENT_ID, code="invalid_position")
        elif start is not None:
            position = read_position(start, "from")
        return await answers.resume(http, stream_id, position)

    @router.delete("/v1/streams/{stream_id}", summary="End a stream that is kept")
    async def end(stream_id: str, http: Request) -> dict[str, Any]:
        answers.forget(http, stream_id)
        return {"id": stream_id, "object": "stream", "deleted": True}

    return router
