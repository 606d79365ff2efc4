"""ASGI ends of a response: an answer belongs to a client, and ends when the client leaves.

Both forms watch the connection while they wait, and say when its client has left: who works for
that client alone closes its Generation then, so that the slots are free at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CLIENT_CLOSED = 499  # nginx's word; nobody is there to read it

Result = TypeVar("Result")


class EventStream(Response):
    """A response of server-sent events. The headers leave at once, before the first event.

    `close` is called when the stream has ended, or its client has left. `headers` are sent beside the usual.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ):
        usual = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers={**usual, **(headers or {})})
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


async def unary(
    answer: Awaitable[bytes],
    close: Callable[[], None],
    receive: Receive,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response given at once: the JSON of `answer`, unless the client leaves before.

    `close` is called in either case.
    """
    try:
        body = await until_gone(answer, receive)
    finally:
        close()
    if body is None:
        return Response(status_code=CLIENT_CLOSED)
    return Response(body, headers=dict(headers or {}), media_type="application/json")


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


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
