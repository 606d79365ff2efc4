"""An Exchange: what the server knows of one request while it is here. Never what it says.

The outermost middleware makes it; whoever learns something writes it down there; in the end it is one
line of the log. Every response carries the request's id.
"""

import dataclasses
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpustream.serve.access.clients import Client, anybody

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,256}")


@dataclasses.dataclass(kw_only=True, slots=True)
class Exchange:
    """One request and its answer.

    Attributes:
      request_id: the client's own or a new one.
      arrived: when it came, by time.monotonic.
      client: who asks.
      status: of the response; 0 before there is one.
      error: the code of the error that it was answered with.
      prompt_tokens, completion_tokens: so far.
      first_token: seconds from arrival to the first token; None before.
      finishes: how its choices ended.
    """

    request_id: str
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    client: Client = dataclasses.field(default_factory=anybody)
    status: int = 0
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None
    finishes: list[str] = dataclasses.field(default_factory=list)


ExchangeEnded = Callable[[Scope, Exchange], Any]
"""Told of every exchange when it is over."""


def request_id_of(given: str) -> str:
    """The id of a request: what its client calls it where that can be an id, or a new one."""
    return given if REQUEST_ID.fullmatch(given) else "req_" + secrets.token_hex(12)


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a request belongs to."""
    return scope["state"]["exchange"]


class Exchanges:
    """Middleware that begins and ends an Exchange, and gives every response its X-Request-Id.

    Kept as `request.state.exchange`, also for the handler of unexpected errors, which answers from
    outside of all middleware.
    """

    def __init__(self, app: ASGIApp, ended: ExchangeEnded):
        self.app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on to the application, with the header added to what it answers."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1"))
        exchange = scope.setdefault("state", {})["exchange"] = Exchange(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "websocket.accept":
                exchange.status = 101
            elif message["type"] in ("http.response.start", "websocket.http.response.start"):
                exchange.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            exchange.status = exchange.status or 500
            raise
        finally:
            self._ended(scope, exchange)
