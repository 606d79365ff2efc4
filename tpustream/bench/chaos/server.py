"""A server process that is killed, and started again on the same port."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from urllib.parse import urlsplit

from tpustream.bench.soak.server import SERVE, address_of, launch, stop


class MortalServer:
    """Started by `with`, and stopped in the end.

    Args:
      arguments: flags of the command, beside host and port.
      command: what serves.

    Attributes:
      url: without a path; the same in every life.
      kills: how often it was killed.

    Raises ValueError, with what the server said, when it does not start.
    """

    def __init__(self, arguments: Sequence[str], command: Sequence[str] = SERVE):
        self.url = ""
        self.kills = 0
        self._arguments, self._command = tuple(arguments), tuple(command)
        self._folder = tempfile.TemporaryDirectory()
        self._process: Popen | None = None

    @property
    def store(self) -> Path:
        """Where a file that outlives the process may lie."""
        return Path(self._folder.name) / "streams.db"

    def __enter__(self) -> "MortalServer":
        self._start(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            stop(self._process)
        self._folder.cleanup()

    def kill(self) -> None:
        """SIGKILL, and start again; returns when it is ready."""
        self._process.kill()
        self._process.communicate()
        self.kills += 1
        self._start(urlsplit(self.url).port)

    def _start(self, port: int) -> None:
        log = Path(self._folder.name) / "stderr"
        arguments = (f"--port={port}", f"--stream_store={self.store}", *self._arguments)
        self._process = launch([*self._command, *arguments], log)
        self.url = address_of(self._process, log)
