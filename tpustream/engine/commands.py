"""Pause, resume and retune: from the name of a stream to the change of its slot.

A command is noted with its stream at once, and changes the slot where the stream has one that decodes.
One that comes earlier takes effect when the stream begins. Only the engine's own thread is here.
"""

from collections import deque

from tpustream.core.command import Pause, Resume, Retune
from tpustream.engine.routing import Router
from tpustream.engine.slots import Slots
from tpustream.engine.state import DecodeState


class Commands:
    """Those that have come and are not obeyed yet, in their order."""

    def __init__(self, router: Router, slots: Slots):
        self._router, self._slots = router, slots
        self._waiting: deque[Pause | Resume | Retune] = deque()

    def add(self, command: Pause | Resume | Retune) -> None:
        """Keep it until the next dispatch is prepared."""
        self._waiting.append(command)

    def obey(self, state: DecodeState) -> DecodeState:
        """The state after all that have come."""
        while self._waiting:
            state = self._obey(self._waiting.popleft(), state)
        return state

    def _obey(self, command: Pause | Resume | Retune, state: DecodeState) -> DecodeState:
        match command:
            case Retune():
                placement, sampling = self._router.retune(command.request_id, command.sampling)
                return state if placement is None else self._slots.retune(placement, sampling, state)
            case Pause() | Resume():
                paused = isinstance(command, Pause)
                placement = self._router.set_paused(command.request_id, paused)
                return state if placement is None else self._slots.set_paused(placement, paused, state)
