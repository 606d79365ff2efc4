"""Scores of prompts, awaited on the event loop."""

import asyncio
from collections.abc import Sequence

from tpustream.core.prompt_scores import PromptScores
from tpustream.serve.errors import SERVER, ApiError
from tpustream.serve.service import ServedEngine


async def scored(
    engine: ServedEngine, prompts: Sequence[Sequence[int]], *, logprobs: int | None = None
) -> list[PromptScores]:
    """Scores of each prompt, one after another: a request never holds more than one place in the queue.

    Cancelling it gives the place back. Raises InvalidRequest, QueueFull or EngineStopped as the engine
    does, ApiError 500 for a prompt of which the model makes no numbers.
    """
    out = []
    for prompt in prompts:
        try:
            out.append(await asyncio.wrap_future(engine.score(prompt, logprobs=logprobs)))
        except FloatingPointError as error:
            raise ApiError(500, str(error), type=SERVER, code="generation_failed") from None
    return out
