"""A way for this host's jax to its coordination service that outlives the service.

jax aborts a process from C++, without a word to Python, in the moment that its connection to the
coordination service breaks (jaxlib 0.10.2, 0.11.2: coordination_service_agent). Behind this relay it
hears only silence, which it bears for `heartbeat_timeout_seconds`: time to end with a clear message.
"""

import contextlib
import socket
import threading

_PIECE = 1 << 16


class Relay:
    """Listens on loopback and passes bytes to `target` and back.

    Attributes:
      port: where it listens.
    """

    def __init__(self, target: tuple[str, int]):
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._kept: list[socket.socket] = []  # open as long as the process: closing them is what kills
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()  # not there yet: the client tries again
                continue
            self._kept += [near, far]
            for source, to in ((near, far), (far, near)):
                threading.Thread(target=_pass, args=(source, to), name="relay", daemon=True).start()


def _pass(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE):
            to.sendall(data)
