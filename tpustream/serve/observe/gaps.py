"""Why a stream stood still: each wait for a token over a threshold is put down to one cause.

A token comes from the engine, waits until it is asked for, and is taken:

    taken(n-1) ── returned ─ asked ──────┬──────── came ── taken(n)
                 └ client ┘              └ engine ┘    └ host ┘

The longest part has the blame; time for which the stream was paused is the client's. Within the
engine's part a compilation counts first, then a chunk of another prompt before the step; else it is the
step itself. The first token's wait is the queue's or its own prefill's; so is the one of a stream that
left its slot and goes on in another.
"""

import enum
from collections import deque

from tpustream.core.request import TokenEvent


class Phase(enum.StrEnum):
    """Which token was waited for."""

    FIRST = "first_token"
    NEXT = "inter_token"


class Cause(enum.StrEnum):
    """What held it up.

    queue: no free slot. prefill: a chunk of a prompt, its own or another's. compile: the compiler.
    step: the decode step, or the transfer of its tokens. host: the event loop was busy. client: it did
    not read.
    """

    QUEUE = "queue"
    PREFILL = "prefill"
    COMPILE = "compile"
    STEP = "step"
    HOST = "host"
    CLIENT = "client"


class GapWatch:
    """The waits of one stream; `threshold` in seconds."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._came: float | None = None
        self._taken = 0.0
        self._compilations = 0
        self._pauses: deque[tuple[float, float]] = deque()  # (end, seconds) before tokens to come

    def resumed(self, now: float, *, held: float) -> None:
        """The stream goes on after it was paused for `held` seconds, on behalf of its client."""
        self._pauses.append((now, held))

    def first(
        self, event: TokenEvent, *, arrived: float, came: float, taken: float, compilations: int
    ) -> tuple[Phase, Cause] | None:
        """The first token of a request that arrived at `arrived`; what held it up, if it was late."""
        self._came, self._taken, self._compilations = came, taken, compilations
        self._held_before(came)
        if taken - arrived < self._threshold:
            return None
        queued = event.queued or 0.0
        host = taken - came
        engine = max(0.0, came - arrived - queued)
        parts = {Cause.QUEUE: queued, Cause.PREFILL: engine, Cause.HOST: host}
        return Phase.FIRST, max(parts, key=parts.__getitem__)

    def next(
        self,
        event: TokenEvent,
        *,
        came: float,
        returned: float,
        asked: float,
        taken: float,
        compilations: int,
    ) -> tuple[float, tuple[Phase, Cause] | None]:
        """A later token: seconds since the one before, and what held it up, if it was late.

        Args:
          came: when the engine delivered it.
          returned: when the tokens before it were handed to be sent.
          asked: when that was done, and the next token was asked for.
          taken: now.
          compilations: of the process so far.
        """
        held = self._held_before(came)
        engine, gap = came - self._came - held, taken - self._taken
        compiled = compilations > self._compilations
        self._came, self._taken, self._compilations = came, taken, compilations
        if gap < self._threshold:
            return gap, None
        queued = event.queued or 0.0
        prefilled = event.after_prefill or event.queued is not None
        inside = Cause.COMPILE if compiled else Cause.PREFILL if prefilled else Cause.STEP
        parts = {
            inside: engine - queued,
            Cause.QUEUE: queued,
            Cause.CLIENT: max(asked - returned, held),
            Cause.HOST: taken - max(came, asked),
        }
        return gap, (Phase.NEXT, max(parts, key=parts.__getitem__))

    def _held_before(self, came: float) -> float:
        """Seconds of pauses that were over when the token came, each told once."""
        held = 0.0
        while self._pauses and self._pauses[0][0] <= came:
            held += self._pauses.popleft()[1]
        return held

    @property
    def begun(self) -> bool:
        """Whether a token has come."""
        return self._came is not None
