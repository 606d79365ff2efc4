"""Scores of prompts for one request, awaited on the event loop."""

import asyncio
from collections.abc import Sequence

from tpustream.core.prompt_scores import PromptScores
from tpustream.serve.errors import SERVER, ApiError
from tpustream.serve.exchange import Exchange
from tpustream.serve.service import ServedRuntime, Service
from tpustream.serve.tokens import timed_out


async def scored(
    service: Service,
    runtime: ServedRuntime,
    prompts: Sequence[Sequence[int]],
    *,
    exchange: Exchange,
    timeout: float | None,
    logprobs: int | None = None,
) -> list[PromptScores]:
    """Scores of each prompt, one after another: a request never holds more than one place in the queue.

    Counts as one stream of the client, whom its tokens are charged to. Cancelling it gives the place
    back. Raises InvalidRequest, QueueFull or EngineStopped as the engine does; ApiError when the client's
    bounds refuse it, 500 for a prompt of which the model makes no numbers, 504 after `timeout` seconds,
    and the reason when the server ends it.
    """
    tokens = sum(map(len, prompts))
    exchange.client.enter(1, tokens)
    exchange.prompt_tokens = tokens
    scoring = _Scoring()
    loop = asyncio.get_running_loop()
    timer = None if timeout is None else loop.call_later(timeout, scoring.end, timed_out(timeout))
    service.generations.add(scoring)
    try:
        futures = (runtime.engine.score(prompt, logprobs=logprobs) for prompt in prompts)
        return [await scoring.outcome(asyncio.wrap_future(future)) for future in futures]
    finally:
        service.generations.discard(scoring)
        exchange.client.leave()
        if timer is not None:
            timer.cancel()


class _Scoring:
    """What a shutdown can end."""

    def __init__(self):
        self._error: ApiError | None = None
        self._awaited: asyncio.Future | None = None

    def end(self, error: ApiError) -> None:
        """Give up what is awaited; whoever awaits it gets this error."""
        self._error = error
        if self._awaited is not None:
            self._awaited.cancel()

    async def outcome(self, score: "asyncio.Future[PromptScores]") -> PromptScores:
        """The score. Raises ApiError."""
        if self._error is not None:
            score.cancel()
            raise self._error
        self._awaited = score
        try:
            return await score
        except asyncio.CancelledError:
            if self._error is None:
                raise  # the client left
            raise self._error from None
        except FloatingPointError as error:
            raise ApiError(500, str(error), type=SERVER, code="generation_failed") from None
