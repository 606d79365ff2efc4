"""The bridge from the engine's thread to the event loop: TokenEvents in, Deltas out.

One Generation is one HTTP request: its choices are streams of the engine, numbered from 0. The
engine's sink only appends and wakes the loop, at most once until the loop has looked; detokenizing
and stop strings run on the loop. Whatever happens, every stream ends once, and what still runs in
the engine when the Generation closes is cancelled.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from tpustream.control.text_stream import TextStream
from tpustream.core.request import Delta, FinishReason, Request, TokenEvent
from tpustream.serve.service import ServedRuntime, Service


class Generation:
    """Runs `requests` on the engine and yields their text as it comes; `choices` of them a prompt.

    Must be made, read and closed on the event loop. Raises InvalidRequest, QueueFull or EngineStopped
    when the engine refuses one of the requests; none of them runs then.

    Attributes:
      open: indices whose stream has not ended.
      prompt_tokens: of all prompts, each counted once; the caller's figure.
      cached_tokens: of the prompt tokens, those that came from the prefix cache.
      completion_tokens: tokens that came so far, of all choices.
    """

    def __init__(
        self,
        service: Service,
        runtime: ServedRuntime,
        requests: Sequence[Request],
        *,
        prompt_tokens: int,
        choices: int = 1,
    ):
        self.open = set(range(len(requests)))
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.completion_tokens = 0
        self._choices = choices
        self._service = service
        self._engine = runtime.engine
        self._requests = tuple(requests)
        self._texts = [TextStream(runtime.tokenizer, request.sampling) for request in requests]
        self._running: set[int] = set()
        self._arrived: deque[tuple[int, TokenEvent]] = deque()
        self._ended_early: str | None = None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._woken = False
        service.generations.add(self)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for index, request in enumerate(self._requests):
            if request.sampling.max_tokens == 0:
                self._sink(index, TokenEvent(finish=FinishReason.LENGTH))
                continue
            self._engine.submit(request, partial(self._sink, index))
            self._running.add(index)

    async def next(self, timeout: float | None) -> list[tuple[int, Delta]]:
        """Deltas that have come, each with the index of its choice; waits up to `timeout` seconds or
        without end for None.

        May be empty. Not to be called once `open` is empty.
        """
        if self._arrived:
            await asyncio.sleep(0)  # a fast stream must not keep the loop from the others
        elif self._ended_early is None:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._news.wait()
        deltas = []
        while self._arrived:
            index, event = self._arrived.popleft()
            delta = self._delta(index, event)
            if delta is not None:
                deltas.append((index, delta))
        if self._ended_early is not None:
            failed = Delta(finish=FinishReason.ERROR, error=self._ended_early)
            deltas += [(index, failed) for index in sorted(self.open)]
            self.open.clear()
        return deltas

    def end(self, reason: str) -> None:
        """End all streams that are still open with an error that says `reason`."""
        self._ended_early = reason
        self._cancel_running()
        self._news.set()

    def close(self) -> None:
        """Cancel what still runs and give back its place. May be called twice."""
        self._cancel_running()
        self.open.clear()
        self._service.generations.discard(self)

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def _sink(self, index: int, event: TokenEvent) -> None:
        # On the engine's thread. The append comes before the look at the flag, and the loop lowers the
        # flag before it looks at the deque, so no event is left behind.
        self._arrived.append((index, event))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._woken = False
        self._news.set()

    def _delta(self, index: int, event: TokenEvent) -> Delta | None:
        if event.finish is not None:
            self._running.discard(index)
        if index not in self.open:
            return None
        if self._ended_early is not None and event.finish == FinishReason.CANCELLED:
            return None  # our own cancel; `next` ends the stream with the reason
        delta = self._texts[index].push(event)
        if delta is None:
            return None
        self.completion_tokens += event.token is not None
        if event.cached_tokens and index % self._choices == 0:  # a prompt's other choices find the first's
            self.cached_tokens += event.cached_tokens
        if delta.finish is not None:
            self.open.discard(index)
            if index in self._running:  # a stop string matched: the engine does not know yet
                self._running.discard(index)
                self._engine.cancel(self._requests[index].id, FinishReason.STOP)
        return delta

    def _cancel_running(self) -> None:
        while self._running:
            self._engine.cancel(self._requests[self._running.pop()].id)
