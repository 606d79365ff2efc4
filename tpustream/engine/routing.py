"""Whose token is this: from the rows of a TokenBatch to the sink of the request that owns them.

A stream is here from its arrival to its end, with what its client wants of it now: whether it is paused,
and how it is sampled. Used by two threads: the engine's loop opens and closes streams, the token queue
delivers. One lock makes the last event of a stream the last, and the only last.
"""

import dataclasses
import threading
import time
from collections.abc import Callable

from tpustream.core.plan import Placement
from tpustream.core.request import FinishReason, Request, SamplingParams, TokenEvent, TokenLogprobs
from tpustream.core.token_batch import StepFinish, TokenBatch
from tpustream.engine.step_meter import StepMeter
from tpustream.engine.waiting_room import WaitingRoom

Sink = Callable[[TokenEvent], None]
"""Gets the events of one request, from a thread of the engine. Must return at once."""

_FINISH = {
    StepFinish.STOP: FinishReason.STOP,
    StepFinish.LENGTH: FinishReason.LENGTH,
    StepFinish.NOT_FINITE: FinishReason.ERROR,
}
NOT_FINITE_MESSAGE = "the model produced logits that are not finite"


@dataclasses.dataclass(kw_only=True, slots=True)
class _Stream:
    request: Request
    sink: Sink
    arrived: float
    sampling: SamplingParams
    paused: bool = False
    placement: Placement | None = None
    cached_tokens: int | None = None
    queued: float | None = None
    length: int = 0  # tokens of the prompt and the answer, once it has a slot


class Router:
    """Streams by request id, and by the slot that they occupy.

    Args:
      slots: B.
      on_finished: called with (slot, epoch) after the device ended a stream.
      room: counts the streams, and refuses those that are too many.
      meter: told of every step.
      clock: seconds that never go back.
    """

    def __init__(
        self,
        slots: int,
        on_finished: Callable[[int, int], None],
        room: WaitingRoom,
        meter: StepMeter,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._owners: list[_Stream | None] = [None] * slots
        self._on_finished = on_finished
        self._room = room
        self._meter = meter
        self._clock = clock

    def open(self, request: Request, sink: Sink) -> bool:
        """Register a request before it is queued; False when its id is taken.

        Raises QueueFull when too much waits already.
        """
        with self._lock:
            if request.id in self._streams:
                return False
            self._room.enter(len(request.prompt))
            self._streams[request.id] = _Stream(
                request=request, sink=sink, arrived=self._clock(), sampling=request.sampling
            )
            return True

    def place(self, placement: Placement) -> None:
        """From now on tokens of this slot and epoch belong to the placement's request."""
        with self._lock:
            stream = self._streams.get(placement.request.id)
            if stream is not None:
                self._room.seat(len(stream.request.prompt))
                stream.placement = placement
                stream.queued = self._clock() - stream.arrived
                stream.length = len(stream.request.prompt)
                self._owners[placement.slot] = stream

    def prefilled(self, placement: Placement, *, cached_tokens: int) -> tuple[SamplingParams, bool]:
        """How the stream is to be sampled, and whether it is paused, now that it could begin.

        Its first event will say how much of the prompt came from the prefix cache.
        """
        with self._lock:
            stream = self._streams.get(placement.request.id)
            if stream is None or stream.placement != placement:  # it has just ended
                return placement.request.sampling, True
            stream.cached_tokens = cached_tokens
            return stream.sampling, stream.paused

    def progress(self, placement: Placement, tokens: int) -> None:
        """Tell the stream that asked for it how many tokens of its prompt are done or in hand."""
        if placement.request.progress:
            with self._lock:
                stream = self._streams.get(placement.request.id)
                if stream is not None and stream.placement == placement:
                    stream.sink(TokenEvent(prefilled=tokens))

    def set_paused(self, request_id: str, paused: bool) -> Placement | None:
        """Note that a stream is paused or goes on; its slot, None while it has none or if it has ended."""
        with self._lock:
            stream = self._streams.get(request_id)
            if stream is None:
                return None
            stream.paused = paused
            return stream.placement

    def retune(self, request_id: str, sampling: SamplingParams) -> tuple[Placement | None, SamplingParams]:
        """Note how a stream is sampled from now on: its slot as above, and the parameters with a seed."""
        with self._lock:
            stream = self._streams.get(request_id)
            if stream is None:
                return None, sampling
            if sampling.seed is None:
                sampling = dataclasses.replace(sampling, seed=stream.sampling.seed)
            stream.sampling = sampling
            return stream.placement, sampling

    @property
    def paused(self) -> int:
        """Streams that are paused, with or without a slot."""
        with self._lock:
            return sum(stream.paused for stream in self._streams.values())

    def close(self, request_id: str, event: TokenEvent) -> bool:
        """End a stream from the host with this last event; False when it has ended before."""
        with self._lock:
            stream = self._streams.get(request_id)
            if stream is None:
                return False
            self._end(stream, event)
            return True

    def close_all(self, event: TokenEvent) -> None:
        """End every stream with this last event."""
        with self._lock:
            for stream in list(self._streams.values()):
                self._end(stream, event)

    def lengths(self) -> list[int]:
        """Tokens of every stream that has a slot, prompt and answer."""
        with self._lock:
            return [stream.length for stream in self._owners if stream is not None]

    def deliver(self, batch: TokenBatch) -> None:
        """Hand every row to its owner. Rows of earlier epochs, or of no one, are dropped."""
        finished, lengths = [], []
        after_prefill = self._meter.after_prefill(batch.step)
        with self._lock:
            for slot, stream in enumerate(self._owners):
                if stream is None or not batch.emitted[slot]:
                    continue
                if stream.placement.epoch != batch.epoch[slot]:
                    continue
                event = _event(batch, slot, stream, after_prefill)
                stream.cached_tokens = stream.queued = None
                lengths.append(stream.length)
                stream.length += 1
                if event.finish is None:
                    stream.sink(event)
                else:
                    finished.append((slot, stream.placement.epoch))
                    self._end(stream, event)
        self._meter.delivered(batch.step, lengths)
        for slot, epoch in finished:
            self._on_finished(slot, epoch)

    def _end(self, stream: _Stream, event: TokenEvent) -> None:
        del self._streams[stream.request.id]
        self._room.leave()
        if stream.placement is None:
            self._room.seat(len(stream.request.prompt))
        if stream.placement is not None and self._owners[stream.placement.slot] is stream:
            self._owners[stream.placement.slot] = None
        stream.sink(event)


def _event(batch: TokenBatch, slot: int, stream: _Stream, after_prefill: bool) -> TokenEvent:
    finish, wanted = int(batch.finish[slot]), int(batch.wanted[slot])
    if finish == StepFinish.NOT_FINITE:
        return TokenEvent(finish=FinishReason.ERROR, error=NOT_FINITE_MESSAGE)
    logprobs = None
    if wanted >= 0:
        top = zip(
            batch.top_ids[slot, :wanted].tolist(), batch.top_logprobs[slot, :wanted].tolist(), strict=True
        )
        logprobs = TokenLogprobs(chosen=float(batch.logprob[slot]), top=tuple(top))
    return TokenEvent(
        token=int(batch.token[slot]),
        finish=_FINISH.get(finish),
        logprobs=logprobs,
        cached_tokens=stream.cached_tokens,
        queued=stream.queued,
        after_prefill=after_prefill,
    )
