"""Server-sent events out of a byte stream that is cut anywhere (WHATWG HTML, section 9.2).

Lines end with LF or CRLF; the standard's lone CR, which no server of this API sends, is not an end.
"""

from typing import NamedTuple


class Event(NamedTuple):
    """One event: its name and its id ("" where it has none) and its data lines, joined with LF."""

    name: str
    data: bytes
    id: str = ""


class EventParser:
    """Collects bytes and gives back the events that they complete. Comments are skipped."""

    def __init__(self):
        self._held = b""

    def feed(self, block: bytes) -> list[Event]:
        """Events that `block` completes, in order."""
        held = self._held + block
        if b"\r" in held:
            held = held.replace(b"\r\n", b"\n")
        *whole, self._held = held.split(b"\n\n")
        return [event for text in whole if (event := _event(text)) is not None]


def _event(text: bytes) -> Event | None:
    name, id, data = "", "", []
    for line in text.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ").decode("utf-8", "replace")
        elif field == b"id":
            id = value.removeprefix(b" ").decode("utf-8", "replace")
    return Event(name, b"\n".join(data), id) if data else None
