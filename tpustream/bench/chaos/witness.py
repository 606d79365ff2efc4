"""What one client has seen of its answer, over all its connections: nothing twice, nothing missing.

Every event counts one for one choice of the stream (see `serve.events`), so it has a place: a choice
and a number. A place is filled once; an event that comes again says the same as before.
"""

import dataclasses
import json
from typing import Any

from tpustream.bench.serving.events import Event
from tpustream.bench.serving.stream import DONE


@dataclasses.dataclass(kw_only=True)
class Witness:
    """One client's view.

    Attributes:
      stream: id of its stream, once an event has come.
      position: where it may come back: the counts of the last event.
      seen: (choice, number) -> what that event said of the choice, or None for one after all choices.
      done: the end has come.
      error: code of the error that a stream ended with, or that a request was refused with.
      faults: what must not happen.
      whole: an answer that was given at once.
    """

    stream: str | None = None
    position: tuple[int, ...] = ()
    seen: dict[tuple[int, int], Any] = dataclasses.field(default_factory=dict)
    done: bool = False
    error: str | None = None
    faults: list[str] = dataclasses.field(default_factory=list)
    whole: dict[str, Any] | None = None

    def connection(self, position: tuple[int, ...] | None) -> "Connection":
        """A connection begins at `position`; None for the beginning of the stream."""
        return Connection(self, position)

    def give(self, whole: dict[str, Any]) -> None:
        """An answer at once; every one has to be the same."""
        if self.whole is not None and self.whole != whole:
            self.faults.append("two answers to one key")
        self.whole, self.done = whole, True

    def texts(self) -> dict[int, tuple[str, str | None]]:
        """Choice -> (text, finish reason), in all."""
        if self.whole is not None:
            return joined(self.whole["choices"])
        return joined([choice for _, choice in sorted(self.seen.items(), key=_place) if choice])

    def missing(self) -> list[tuple[int, int]]:
        """Places that nothing came for although later ones are filled."""
        choices = {choice for choice, _ in self.seen}
        last = {choice: max(number for other, number in self.seen if other == choice) for choice in choices}
        return [
            (choice, number)
            for choice in sorted(choices)
            for number in range(1, last[choice] + 1)
            if (choice, number) not in self.seen
        ]


class Connection:
    """Events of one connection, put in their places.

    Args:
      position: what the server was told that the client has; None for nothing.
    """

    def __init__(self, witness: Witness, position: tuple[int, ...] | None):
        self._witness = witness
        self._counts = None if position is None else list(position)

    def take(self, event: Event) -> None:
        """One event."""
        witness = self._witness
        stream, _, text = event.id.partition(":")
        counts = [int(count) for count in text.split(".")]
        if witness.stream not in (None, stream):
            witness.faults.append(f"another stream: {witness.stream}, then {stream}")
        witness.stream = stream
        before = self._counts or [0] * len(counts)
        self._counts = counts
        grown = [index for index, (old, new) in enumerate(zip(before, counts, strict=True)) if old != new]
        data = None if event.data == DONE else json.loads(event.data)
        if data is not None and "error" in data:
            witness.error = data["error"]["code"] or data["error"]["type"]
            return
        if not grown and data is None:  # the end after an error
            return
        if len(grown) != 1 or counts[grown[0]] != before[grown[0]] + 1:
            witness.faults.append(f"from {before} to {counts} with one event")
            return
        self._fill((grown[0], counts[grown[0]]), data)
        witness.position = tuple(counts)
        witness.done = witness.done or data is None

    def _fill(self, place: tuple[int, int], data: dict[str, Any] | None) -> None:
        choice = data["choices"][0] if data is not None and data["choices"] else None
        # It may be known from a connection that got further, or that began anew.
        if self._witness.seen.setdefault(place, choice) != choice:
            self._witness.faults.append(f"event {place} was another when it came again")


def joined(choices: list[dict[str, Any]]) -> dict[int, tuple[str, str | None]]:
    """Choice -> (text, finish reason), from chunks or from whole choices, of either dialect."""
    out: dict[int, tuple[str, str | None]] = {}
    for choice in choices:
        text, finish = out.get(choice["index"], ("", None))
        message = choice.get("delta") or choice.get("message") or {}
        text += choice.get("text") or message.get("content") or ""
        out[choice["index"]] = text, choice["finish_reason"] or finish
    return out


def _place(item: tuple[tuple[int, int], Any]) -> tuple[int, int]:
    return item[0]
