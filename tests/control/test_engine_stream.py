"""One request through an engine: who tells whom that a stream is over."""

import threading

import pytest

from tpustream.control import stream_text
from tpustream.core.errors import EngineStopped
from tpustream.core.request import FinishReason, Request, SamplingParams, TokenEvent

from .vocabulary import ListTokenizer

TOKENIZER = ListTokenizer(b"a", b"b", None)


class ScriptedEngine:
    """Sends the same events to every request from a thread, and remembers what it was told."""

    def __init__(self, *events: TokenEvent, stopped: bool = False):
        self.events = events
        self.stopped = stopped
        self.submitted: list[str] = []
        self.cancelled: list[tuple[str, FinishReason]] = []

    def submit(self, request, sink):
        if self.stopped:
            raise EngineStopped("stopped")
        self.submitted.append(request.id)
        threading.Thread(target=lambda: [sink(event) for event in self.events]).start()

    def cancel(self, request_id, finish=FinishReason.CANCELLED):
        self.cancelled.append((request_id, finish))


def request(**sampling) -> Request:
    return Request(id="r", prompt=(0,), sampling=SamplingParams(**sampling))


AB = (TokenEvent(token=0), TokenEvent(token=1))


def test_runs_to_the_end():
    """A stream that the engine ends is not cancelled."""
    engine = ScriptedEngine(*AB, TokenEvent(token=2, finish=FinishReason.STOP))
    deltas = list(stream_text(engine, TOKENIZER, request()))
    assert "".join(delta.text for delta in deltas) == "ab"
    assert deltas[-1].finish is FinishReason.STOP
    assert engine.cancelled == []


def test_stop_string_frees_the_slot_before_the_delta_is_seen():
    """The engine hears of a host-side stop at once, with STOP."""
    engine = ScriptedEngine(*AB)  # sends no end: only the stop string ends this stream
    for delta in stream_text(engine, TOKENIZER, request(stop=("b",))):
        if delta.finish is not None:
            assert engine.cancelled == [("r", FinishReason.STOP)]
    assert (delta.finish, delta.stop_reason) == (FinishReason.STOP, "b")
    assert engine.cancelled == [("r", FinishReason.STOP)]


def test_closing_early_cancels():
    """A client that leaves frees the slot."""
    engine = ScriptedEngine(*AB)
    stream = stream_text(engine, TOKENIZER, request())
    assert next(stream).text == "a"
    stream.close()
    assert engine.cancelled == [("r", FinishReason.CANCELLED)]


def test_unused_stream_holds_no_slot():
    """Nothing is submitted before somebody asks for the first Delta."""
    engine = ScriptedEngine(*AB)
    stream_text(engine, TOKENIZER, request()).close()
    assert engine.submitted == [] and engine.cancelled == []


def test_refusal_reaches_the_caller():
    """An engine that takes no requests says so, and is not asked to cancel."""
    engine = ScriptedEngine(stopped=True)
    with pytest.raises(EngineStopped):
        next(stream_text(engine, TOKENIZER, request()))
    assert engine.cancelled == []


def test_engine_error_is_a_delta():
    """A stream never ends in silence."""
    engine = ScriptedEngine(AB[0], TokenEvent(finish=FinishReason.ERROR, error="device lost"))
    last = list(stream_text(engine, TOKENIZER, request()))[-1]
    assert (last.finish, last.error) == (FinishReason.ERROR, "device lost")
