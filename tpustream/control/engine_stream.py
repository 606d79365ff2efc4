"""stream_text: one request through an engine to Deltas, for callers that wait in a thread.

The engine's sink does nothing but put; text is made in the thread that iterates.
"""

import queue
from collections.abc import Callable, Iterator
from typing import Protocol

from tpustream.control.text_stream import TextStream
from tpustream.core.request import Delta, FinishReason, Request, SamplingParams, TokenEvent
from tpustream.text.vocabulary import Tokenizer


class TokenEngine(Protocol):
    """What a stream needs of an engine."""

    def submit(self, request: Request, sink: Callable[[TokenEvent], None]) -> None:
        """Take a request. `sink` is called from another thread; the last event has a finish.

        Raises InvalidRequest, QueueFull or EngineStopped, and then never calls the sink.
        """

    def cancel(self, request_id: str, finish: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request early and free its slot; an unknown id is ignored, here and below."""

    def pause(self, request_id: str) -> None:
        """Send no more tokens than are on their way; the request keeps its place, and others go on."""

    def resume(self, request_id: str) -> None:
        """Go on where it was paused, with the same tokens as without."""

    def retune(self, request_id: str, sampling: SamplingParams) -> None:
        """Choose the tokens that are not on their way by other parameters; a seed of None keeps the old.

        Raises InvalidRequest for parameters that cannot be honoured.
        """


def stream_text(engine: TokenEngine, tokenizer: Tokenizer, request: Request) -> Iterator[Delta]:
    """Submit a request and yield its Deltas; the last has a finish.

    The request is submitted when the first Delta is asked for, so an iterator that is thrown away
    unused holds no slot. A stop string cancels the request in the engine (finish STOP) before its
    Delta is yielded; closing the iterator early cancels it (finish CANCELLED).

    Raises:
      InvalidRequest, QueueFull, EngineStopped: as engine.submit, from the first `next`.
    """
    events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
    stream = TextStream(tokenizer, request.sampling)
    engine.submit(request, events.put)
    try:
        while not stream.finished:
            delta = stream.push(events.get())
            if stream.stopped_here:
                engine.cancel(request.id, FinishReason.STOP)
            yield delta
    finally:
        if not stream.finished:
            engine.cancel(request.id)
