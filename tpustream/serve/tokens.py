"""The bridge from the engine's thread to the event loop: TokenEvents in, Deltas out.

One Generation is one HTTP request: its choices are streams of the engine, numbered from 0. The
engine's sink only appends and wakes the loop, at most once until the loop has looked; detokenizing
and stop strings run on the loop. Whatever happens, every stream ends once, and what still runs in
the engine when the Generation closes is cancelled.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from tpustream.control.text_stream import TextStream
from tpustream.core.request import Delta, FinishReason, Request, SamplingParams, TokenEvent
from tpustream.serve.errors import SERVER, ApiError
from tpustream.serve.exchange import Exchange
from tpustream.serve.observe.metrics import PauseReason
from tpustream.serve.service import ServedRuntime, Service
from tpustream.serve.slow_readers import Backlog, ReaderPolicy

MOST_AT_ONCE = 256  # tokens, some milliseconds of work, before others have their turn


class _Arrival(NamedTuple):
    index: int
    request: Request
    event: TokenEvent
    came: float

    @property
    def tokens(self) -> int:
        """Tokens that the client is given with it: the one that stops a stream is no part of the text."""
        return int(self.event.token is not None and self.event.finish is not FinishReason.STOP)


class Generation:
    """Runs `requests` on the engine and yields their text as it comes; `choices` of them a prompt.

    Must be made, read and closed on the event loop. Raises InvalidRequest, QueueFull or EngineStopped
    when the engine refuses one of the requests, and ApiError when the client's own bounds do; none of
    them runs then.

    Args:
      exchange: the HTTP request that it belongs to.
      timeout: seconds after which it ends with an error; None is no bound.
      readers: what happens when the client reads slowly.

    Attributes:
      open: indices whose stream has not ended.
      prompt_tokens: of all prompts, each counted once; the caller's figure.
      cached_tokens: of the prompt tokens, those that came from the prefix cache.
      completion_tokens: tokens that came so far, of all choices.
      ended_early: why the server ended it, or None.
    """

    def __init__(
        self,
        service: Service,
        runtime: ServedRuntime,
        requests: Sequence[Request],
        *,
        prompt_tokens: int,
        choices: int = 1,
        exchange: Exchange,
        timeout: float | None = None,
        readers: ReaderPolicy,
    ):
        exchange.client.enter(len(requests), prompt_tokens)
        exchange.prompt_tokens = prompt_tokens
        self.open = set(range(len(requests)))
        self.ended_early: ApiError | None = None
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.completion_tokens = 0
        self._prefilled: dict[int, int] = {}  # of streams that tell
        self._choices = choices
        self._service = service
        self._engine = runtime.engine
        self._tokenizer = runtime.tokenizer
        self._requests: list[Request | None] = list(requests)  # None: halted
        self._texts = [self._new_text(request.sampling) for request in requests]
        self._running: set[int] = set()
        self._arrived: deque[_Arrival] = deque()
        self._backlog = Backlog(
            readers,
            most=readers.max_unread * len(requests),
            unread=self._arrived.__len__,
            pause=partial(self.pause, PauseReason.SLOW_READER),
            resume=partial(self.resume, PauseReason.SLOW_READER),
            give_up=self.end,
        )
        self._held_by: set[PauseReason] = set()
        self._paused_at = 0.0
        self._metrics = service.metrics
        self._watches = [service.metrics.watch() for _ in requests]
        self._compile_guard = runtime.compile_guard
        self._returned = self._asked = time.monotonic()
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            self._timer = self._loop.call_later(timeout, self.end, timed_out(timeout))
        self._news = asyncio.Event()
        self._woken = False
        service.generations.add(self)
        try:
            self._start()
        except BaseException:
            self.close()
            exchange.client.spend(-prompt_tokens)
            raise
        service.metrics.entered(prompt_tokens)

    def _start(self) -> None:
        for index, request in enumerate(self._requests):
            if request.sampling.max_tokens == 0:
                self._sink(index, request, TokenEvent(finish=FinishReason.LENGTH))
                continue
            self._engine.submit(request, partial(self._sink, index, request))
            self._running.add(index)

    async def next(self, timeout: float | None, most: int | None = None) -> list[tuple[int, Delta]]:
        """Deltas that have come, each with the index of its choice; waits up to `timeout` seconds or
        without end for None, or until `wake`.

        May be empty. Not to be called once `open` is empty. Of tokens `most` are given, None is no bound;
        the others stay for the next call, and an end that comes without a token is given all the same.
        """
        self._asked = time.monotonic()
        if self._may_take(most):
            await asyncio.sleep(0)  # a fast stream must not keep the loop from the others
        elif self.ended_early is None:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._news.wait()
        deltas = []
        left = most
        for arrival in self._take(most):
            left = None if left is None else left - arrival.tokens
            delta = self._delta(arrival.index, arrival.event, arrival.came)
            if delta is not None:
                deltas.append((arrival.index, delta))
        if deltas:
            self._backlog.shrank()
        if self.ended_early is not None and not self._may_take(left):
            for index in sorted(self.open):
                self._ended(index, FinishReason.ERROR)
                deltas.append((index, Delta(finish=FinishReason.ERROR, error=self.ended_early.message)))
        self._returned = time.monotonic()
        return deltas

    def pause(self, reason: PauseReason) -> None:
        """Let the engine make no more tokens of the streams that run; those on their way still come."""
        if not self._held_by:
            self._paused_at = time.monotonic()
            for index in self._running:
                self._engine.pause(self._requests[index].id)
        if reason not in self._held_by:
            self._held_by.add(reason)
            self._metrics.paused(reason)

    def resume(self, reason: PauseReason) -> None:
        """The streams go on, unless they are paused for another reason too."""
        if reason not in self._held_by:
            return
        self._held_by.remove(reason)
        if not self._held_by:
            now = time.monotonic()
            for index in self._running:
                self._watches[index].resumed(now, held=now - self._paused_at)
                self._engine.resume(self._requests[index].id)

    def end(self, error: ApiError) -> None:
        """End all streams that are still open with this error."""
        self._backlog.close()
        self.ended_early = error
        self._exchange.error = error.code
        self._cancel_running()
        self._news.set()

    def wake(self) -> None:
        """Let `next` return, with what there is."""
        self._news.set()

    def close(self) -> None:
        """Cancel what still runs and give back its place. May be called twice."""
        self._cancel_running()
        for index in tuple(self.open):
            self._ended(index, FinishReason.CANCELLED)
        self._backlog.close()
        self._service.generations.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def prefill_progress(self) -> dict[str, int]:
        """Tokens of the prompts that are prefilled so far, and of all; of requests with `progress`."""
        return {"done": sum(self._prefilled.values()), "total": self.prompt_tokens}

    def _new_text(self, sampling: SamplingParams) -> TextStream:
        return TextStream(self._tokenizer, sampling)

    def _may_take(self, most: int | None) -> bool:
        """Whether something has come that may be given when `most` tokens may."""
        self._forget_halted()
        return bool(self._arrived) and (most is None or self._arrived[0].tokens <= most)

    def _take(self, most: int | None) -> Iterator[_Arrival]:
        for _ in range(min(len(self._arrived), MOST_AT_ONCE)):
            arrival = self._arrived[0]
            if arrival.request is self._requests[arrival.index]:
                if most is not None:
                    most -= arrival.tokens
                    if most < 0:
                        return
                self._arrived.popleft()
                yield arrival
            else:
                self._arrived.popleft()

    def _forget_halted(self) -> None:
        while self._arrived and self._arrived[0].request is not self._requests[self._arrived[0].index]:
            self._arrived.popleft()

    def _sink(self, index: int, request: Request, event: TokenEvent) -> None:
        # On the engine's thread. The append comes before the look at the flag, and the loop lowers the
        # flag before it looks at the deque, so no event is left behind.
        self._arrived.append(_Arrival(index, request, event, time.monotonic()))
        self._backlog.grew()
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._woken = False
        self._news.set()

    def _delta(self, index: int, event: TokenEvent, came: float) -> Delta | None:
        if event.finish is not None:
            self._running.discard(index)
        if index not in self.open:
            return None
        if self.ended_early is not None and event.finish == FinishReason.CANCELLED:
            return None  # our own cancel; `next` ends the stream with the reason
        delta = self._texts[index].push(event)
        if delta is None:
            return None
        if event.prefilled is not None:
            self._prefilled[index] = event.prefilled
        if event.token is not None:
            self._count_token(index, event, came)
        first = index % self._choices == 0 and not self._requests[index].generated
        if event.cached_tokens and first:  # a prompt's other choices, and what goes on from it, find its own
            self.cached_tokens += event.cached_tokens
        if delta.finish is not None:
            self._ended(index, delta.finish)
            if index in self._running:  # a stop string matched: the engine does not know yet
                self._running.discard(index)
                self._engine.cancel(self._requests[index].id, FinishReason.STOP)
        return delta

    def _count_token(self, index: int, event: TokenEvent, came: float) -> None:
        exchange, watch, taken = self._exchange, self._watches[index], time.monotonic()
        compilations = self._compile_guard.count
        self.completion_tokens += 1
        exchange.completion_tokens += 1
        exchange.client.spend(1)
        if watch.begun:
            gap, held_up = watch.next(
                event,
                came=came,
                returned=self._returned,
                asked=self._asked,
                taken=taken,
                compilations=compilations,
            )
        else:
            gap = None
            held_up = watch.first(
                event, arrived=exchange.arrived, came=came, taken=taken, compilations=compilations
            )
            self._metrics.first_token(taken - exchange.arrived, event.queued)
        self._metrics.token(gap, held_up)
        if exchange.first_token is None:
            exchange.first_token = taken - exchange.arrived

    def _ended(self, index: int, finish: FinishReason) -> None:
        self.open.discard(index)
        self._exchange.client.leave()
        self._exchange.finishes.append(finish.value)
        self._metrics.finished(finish, time.monotonic() - self._exchange.arrived)

    def _cancel_running(self) -> None:
        while self._running:
            self._engine.cancel(self._requests[self._running.pop()].id)


def timed_out(seconds: float) -> ApiError:
    """504: the answer took longer than the server allows."""
    message = f"The answer took longer than {seconds:g} seconds"
    return ApiError(504, message, type=SERVER, code="request_timeout")
