"""The process around the application: a bound socket, uvicorn, and a stop in good order.

The port is bound before the model is loaded, so that a port in use is known at once and a probe can
see the server wait. A stop lets running streams finish for a moment and then ends them with an error
that says so. Knows nothing of flags.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from tpustream.serve.service import Service

DRAIN_SECONDS = 2.0
FLUSH_SECONDS = 2  # for a client that reads its last events slowly


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port`; port 0 takes a free one. Raises OSError that says where."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"cannot listen on {host}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # only now does a second server on the port fail
    except (OSError, OverflowError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OSError(f"cannot listen on {host} port {port}: {reason}") from error
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


class Server(uvicorn.Server):
    """uvicorn with signals left to the caller, and streams that end in good order.

    `stop` may be called from a signal handler or another thread; `run(sockets=[...])` returns after it.
    """

    def __init__(self, app: FastAPI, *, drain_seconds: float = DRAIN_SECONDS):
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(drain_seconds) + FLUSH_SECONDS,
        )
        super().__init__(config)
        self._service: Service = app.state.service
        self._drain_seconds = drain_seconds

    def stop(self) -> None:
        """Begin to stop; called again, do not wait for streams any longer."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running streams finish for a moment, then end them, then close."""
        self._service.refuse_new()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._drain_seconds, self._service.end_all, "The server is shutting down")
        await super().shutdown(sockets)
        timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again after a clean stop."""
        yield
