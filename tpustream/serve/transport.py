"""ASGI ends of a response: an answer belongs to a client, and ends when the client leaves.

Both forms watch the connection while they wait. Whoever leaves, the Generation is closed, so its
slots are free at once, unless it works in the background.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpustream.serve.tokens import Generation

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,256}")
CLIENT_CLOSED = 499  # nginx's word; nobody is there to read it

Result = TypeVar("Result")


class EventStream(Response):
    """A response of server-sent events. The headers leave at once, before the first event.

    `close` is called when the stream has ended, or its client has left.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until they end, or until the client leaves."""
        try:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            await until_gone(self._pump(send), receive)
        except asyncio.CancelledError:
            # Only a shutdown whose patience is over cancels a response: a client that does not read.
            # The server closes the connection; there is nothing to report.
            return
        finally:
            self._close()

    async def _pump(self, send: Send) -> None:
        async for block in self._events:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def unary(generation: Generation, answer: Awaitable[bytes], receive: Receive) -> Response:
    """A response given at once: the JSON of `answer`, unless the client leaves before."""
    try:
        body = await until_gone(answer, receive)
    finally:
        generation.close()
    if body is None:
        return Response(status_code=CLIENT_CLOSED)
    return Response(body, media_type="application/json")


async def until_gone(work: Awaitable[Result], receive: Receive) -> Result | None:
    """Await `work`; None, with `work` cancelled, when the client leaves first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


class RequestIds:
    """Middleware: every response carries X-Request-Id, the client's own or a new one.

    Kept as `request.state.request_id` for the handler of unexpected errors, which answers from outside
    of all middleware.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on to the application, with the header added to what it answers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else "req_" + secrets.token_hex(12)

        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
