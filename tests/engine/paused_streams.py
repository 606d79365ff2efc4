"""Streams that are paused at a token of their own, and waits for commands to be obeyed."""

import threading

from tests.tiny import generate, request, wait_for
from tpustream.core.request import TokenEvent


class Stream:
    """A stream that is paused at its n-th token, or as soon as it tells of its prefill."""

    def __init__(self, engine, wanted, pause_at=None):
        self._engine, self._wanted, self._pause_at = engine, wanted, pause_at
        self.events: list[TokenEvent] = []
        self._ended = threading.Event()
        engine.submit(wanted, self._sink)

    def _sink(self, event):
        self.events.append(event)
        if self._pause_at == (len(self.tokens) if event.prefilled is None else "prefill"):
            self._engine.pause(self._wanted.id)
        if event.finish is not None:
            self._ended.set()

    @property
    def tokens(self):
        return [event.token for event in self.events if event.token is not None]

    def end(self):
        """All tokens and the finish."""
        assert self._ended.wait(60), "the stream did not end"
        return self.tokens, self.events[-1].finish


def pass_by(engine):
    """Another stream comes and goes: by then all earlier commands are obeyed, and what was out is here."""
    assert len(generate(engine, request((2, 3), request_id="passer-by", max_tokens=3))) == 3


def paused(engine, wanted, pause_at):
    """A stream that holds after `pause_at` tokens or some more."""
    stream = Stream(engine, wanted, pause_at)
    wait_for(lambda: len(stream.tokens) >= pause_at)
    pass_by(engine)
    return stream
