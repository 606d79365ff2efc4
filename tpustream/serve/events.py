"""Server-sent events with ids that say how far a stream has got, whatever the timing was.

An id is `STREAM:POSITION`. The position counts the events that have come, choice by choice: `7` after
seven events of a stream with one choice, `4.3` after four of the first choice and three of the second.
Which chunks a choice is cut into follows from its tokens alone; in which order the chunks of several
choices leave does not. So a position means the same in a stream that is generated once more, where a
plain number of the event would not. What comes after all choices, the usage and [DONE], counts on with
the last one. News that come by chance count nothing (how far a prefill has got, an error and the [DONE]
after it): their id is that of the event before, and who resumes there misses nothing.
"""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json

from tpustream.serve.errors import ApiError, envelope

LAST_EVENT_ID = "Last-Event-ID"
IDEMPOTENCY_KEY = "Idempotency-Key"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"[DONE]"

Position = tuple[int, ...]
"""How many events have come, for each choice."""

_COUNT = r"(?:0|[1-9][0-9]{0,9})"
_POSITION = re.compile(rf"{_COUNT}(?:\.{_COUNT})*", re.ASCII)


class Event(NamedTuple):
    """One event that has no id yet.

    Attributes:
      data: what the client reads.
      index: of the choice that it counts for; None for one that counts nothing.
      choice: what it says of that choice; None for an event after all choices.
    """

    data: bytes
    index: int | None = None
    choice: Any = None


class EventWriter:
    """Writes the events of one stream for one client.

    Args:
      position: what the client has had before.

    Attributes:
      counts: events that the client has had, for each choice.
    """

    def __init__(self, stream: str, position: Position):
        self._stream = stream
        self.counts = list(position)

    def write(self, event: Event) -> bytes:
        """The event as it goes over the wire."""
        if event.index is not None:
            self.counts[event.index] += 1
        return f"id: {self._stream}:{write_position(self.counts)}\ndata: ".encode() + event.data + b"\n\n"


async def blocks(batches: AsyncIterator[list[Event]], writer: EventWriter) -> AsyncIterator[bytes]:
    """What to send for each batch; for an empty one a comment, so that the silence is bridged.

    Where `batches` raise ApiError, the stream ends with it.
    """
    try:
        async for events in batches:
            yield b"".join(map(writer.write, events)) if events else KEEP_ALIVE
    except ApiError as error:
        yield b"".join(map(writer.write, failed(error)))


def failed(error: ApiError) -> list[Event]:
    """The end of a stream that failed."""
    data = to_json(envelope(error.message, type=error.type, param=error.param, code=error.code))
    return [Event(data), Event(DONE)]


def write_position(position: Sequence[int]) -> str:
    """`4.3` for (4, 3)."""
    return ".".join(map(str, position))


def read_position(text: str, param: str) -> Position:
    """(4, 3) for `4.3`. Raises ApiError 400, naming `param`."""
    if not _POSITION.fullmatch(text):
        message = f"{param}: wanted a count of events for each choice, as 7 or 4.3, got {text[:40]!r}"
        raise ApiError(400, message, param=param, code="invalid_position")
    return tuple(map(int, text.split(".")))


def read_event_id(text: str, param: str) -> tuple[str, Position]:
    """(stream, position) of an event's id. Raises ApiError 400, naming `param`."""
    stream, colon, position = text.rpartition(":")
    if not colon or not stream:
        message = f"{param}: wanted the id of an event, as STREAM:POSITION, got {text[:80]!r}"
        raise ApiError(400, message, param=param, code="invalid_position")
    return stream, read_position(position, param)
