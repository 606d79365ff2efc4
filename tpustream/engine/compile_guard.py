"""CompileGuard: after the start nothing may compile, and if something does, somebody is told."""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
SHOWN_FRAMES = 8
_JAX = Path(jax.__file__).parent  # its own frames say nothing of the cause

_log = logging.getLogger(__name__)


class CompileGuard:
    """Counts compilations in this process between `start` and `stop`, and logs each with its cause.

    Attributes:
      count: compilations so far.
    """

    def __init__(self):
        self.count = 0
        self._counting = False

    def start(self) -> None:
        """Count from now on. Not again before `stop`."""
        self._counting = True
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def stop(self) -> None:
        """Count no more. Safe to call twice."""
        if self._counting:
            self._counting = False
            jax.monitoring.unregister_event_duration_listener(self._on_event)

    @contextlib.contextmanager
    def watching(self) -> Iterator["CompileGuard"]:
        """`start` and `stop` around a block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def _on_event(self, event: str, seconds: float, **_) -> None:
        if event != COMPILED:
            return
        self.count += 1
        frames = [
            frame for frame in traceback.extract_stack()[:-1] if _JAX not in Path(frame.filename).parents
        ]
        cause = "".join(traceback.format_list(frames[-SHOWN_FRAMES:]))
        _log.warning("compiled for %.2f s after the start, called from\n%s", seconds, cause)
