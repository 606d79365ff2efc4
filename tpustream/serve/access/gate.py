"""The gate: no request passes without a credential, and none beyond its client's requests a minute.

Stands before every route, those of other parts and of later days included, and before WebSockets.
Open are only the two probes, which say nothing but whether the process lives and can answer. A browser
cannot give a WebSocket a header, but it can propose protocols: `bearer.KEY` counts as the header.
"""

import dataclasses

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpustream.serve.access.api_keys import KeyFile
from tpustream.serve.access.clients import Client, Clients
from tpustream.serve.access.web_tokens import WebTokens
from tpustream.serve.errors import ApiError, error_response
from tpustream.serve.exchange import exchange_of

OPEN_PATHS = ("/health", "/ready")
KEY_PROTOCOL = "bearer."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """Whom to let in. At least one of `keys` and `web_tokens`.

    Attributes:
      keys: API keys, or None.
      web_tokens: signed tokens, or None; their clients are called "jwt:" and the token's subject.
      clients: holds what each has used.
    """

    clients: Clients
    keys: KeyFile | None = None
    web_tokens: WebTokens | None = None

    def identify(self, authorization: str) -> Client:
        """Whose Authorization header this is. Raises ApiError 401; no message repeats the header."""
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip()
        if scheme.lower() != "bearer" or not credential:
            raise unauthorized("No API key was given. Wanted the header 'Authorization: Bearer KEY'.")
        if self.keys is not None:
            key = self.keys.find(credential)
            if key is not None:
                return self.clients.get(key.name, key.limits)
        if self.web_tokens is not None:
            subject = self.web_tokens.subject(credential)
            if subject is not None:
                return self.clients.get(f"jwt:{subject}")
        raise unauthorized("Incorrect API key provided.")


def unauthorized(message: str) -> ApiError:
    """401, in OpenAI's words."""
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def authorization_of(scope: Scope) -> str:
    """The Authorization header of a request, "" where there is none."""
    given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    for protocol in scope.get("subprotocols", ()):
        if not given and protocol.startswith(KEY_PROTOCOL):
            given = "Bearer " + protocol.removeprefix(KEY_PROTOCOL)
    return given


class Gate:
    """Middleware that asks `access` before anything else is done."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the client known, or refuse."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        try:
            exchange.client = self._access.identify(authorization_of(scope))
            if scope["type"] == "websocket" or scope["method"] == "POST":
                exchange.client.request()
        except ApiError as error:
            exchange.error = error.code
            await error_response(error)(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(exchange.client.headers())
            await send(message)

        await self.app(scope, receive, send_with_limits)
