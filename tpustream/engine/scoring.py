"""Prompts that are scored and not continued: one chunk a turn of the engine's loop, in a prefix of its own.

Device arrays are read on a thread of its own, so that the engine's never waits for a number. Knows
nothing of slots, streams and the prefix cache.
"""

import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor

import jax
import numpy as np

from tpustream.config import EngineConfig
from tpustream.core.errors import EngineStopped
from tpustream.core.prompt_scores import PromptScores
from tpustream.core.request import TokenLogprobs
from tpustream.engine.compile import CompiledSteps
from tpustream.engine.score_step import Scores
from tpustream.engine.state import Prefix, Weights
from tpustream.engine.waiting_room import WaitingRoom


@dataclasses.dataclass(kw_only=True, slots=True, eq=False)
class ScoreJob:
    """One prompt, what is wanted of it, and how far it has come."""

    prompt: tuple[int, ...]
    wanted: int
    future: "Future[PromptScores]" = dataclasses.field(default_factory=Future)
    begun: bool = False
    parts: list[Scores] = dataclasses.field(default_factory=list)


class Scorer:
    """The queue of prompts to score. `open` and `close` may be called from any thread, the rest is the
    engine's own.
    """

    def __init__(self, config: EngineConfig, weights: Weights, steps: CompiledSteps):
        self._config, self._weights, self._steps = config, weights, steps
        self._jobs: deque[ScoreJob] = deque()
        self._prefix: Prefix | None = None
        self._went_last = False
        self._lock = threading.Lock()
        self._open: set[ScoreJob] = set()
        self._room = WaitingRoom(
            slots=1, max_waiting=config.max_waiting, max_waiting_tokens=config.max_waiting_tokens
        )
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="scores")

    @property
    def busy(self) -> bool:
        """Whether there is a prompt to work on."""
        return bool(self._jobs)

    def open(self, prompt: Sequence[int], wanted: int) -> ScoreJob:
        """Take a place for a prompt. Raises QueueFull."""
        job = ScoreJob(prompt=tuple(prompt), wanted=wanted)
        with self._lock:
            self._room.enter(len(job.prompt))
            self._open.add(job)
        job.future.add_done_callback(lambda _: self._leave(job))
        return job

    def add(self, job: ScoreJob) -> None:
        """Queue an opened job."""
        self._jobs.append(job)

    def takes_turn(self, *, others: bool) -> bool:
        """Whether this turn of the loop is for a score: every second one while `others` have work."""
        self._went_last = self.busy and not (others and self._went_last)
        return self._went_last

    def advance(self, *, alone: bool) -> None:
        """One chunk of the first prompt.

        Args:
          alone: no stream runs. Return then only when the device has done it, so that little is in flight.
        """
        job = self._jobs[0]
        if not job.begun:
            if not job.future.set_running_or_notify_cancel():
                self._forget()
                return
            job.begun = True
            self._prefix = self._begin()
        start, chunk = len(job.parts) * self._config.chunk, self._config.chunk
        tokens, targets = (self._padded(job.prompt[first : first + chunk]) for first in (start, start + 1))
        count = np.int32(min(chunk, len(job.prompt) - start))
        self._prefix, part = self._steps.score(
            self._weights, self._prefix, tokens, targets, count, np.int32(job.wanted)
        )
        job.parts.append(part)
        if alone:
            part[0].block_until_ready()
        if start + chunk >= len(job.prompt):
            self._forget()
            self._reader.submit(_settle, job.future, lambda: read(job))

    def close(self, why: str) -> None:
        """Every open prompt ends with EngineStopped; those that come later must not be opened."""
        with self._lock:
            jobs = tuple(self._open)
        for job in jobs:
            _settle(job.future, lambda: _raise(EngineStopped(why)))
        self._reader.shutdown(wait=False)

    def _begin(self) -> Prefix:
        prefix = self._steps.initial_prefix() if self._prefix is None else self._prefix
        return dataclasses.replace(prefix, length=np.int32(0))

    def _forget(self) -> None:
        self._jobs.popleft()
        if not self._jobs:
            self._prefix = None  # as large as a slot of the cache: nobody needs it between bursts

    def _padded(self, tokens: Sequence[int]) -> np.ndarray:
        out = np.zeros(self._config.chunk, np.int32)
        out[: len(tokens)] = tokens
        return out

    def _leave(self, job: ScoreJob) -> None:
        with self._lock:
            self._open.discard(job)
            self._room.seat(len(job.prompt))
            self._room.leave()


def read(job: ScoreJob) -> PromptScores:
    """The scores of a whole prompt, fetched from the device."""
    parts: list[Scores] = jax.tree.map(np.asarray, job.parts)
    hidden = sum(part[0] for part in parts) / np.float32(len(job.prompt))
    if not np.isfinite(hidden).all():
        raise FloatingPointError("hidden states: wanted finite numbers, got NaN or infinity")
    if job.wanted < 0:
        return PromptScores(hidden=hidden, logprobs=())
    chosen, ids, values = (
        np.concatenate(arrays) for arrays in zip(*(part[1:] for part in parts), strict=True)
    )
    logprobs = tuple(
        TokenLogprobs(
            chosen=float(chosen[row]),
            top=tuple(zip(ids[row, : job.wanted].tolist(), values[row, : job.wanted].tolist(), strict=True)),
        )
        for row in range(len(job.prompt) - 1)
    )
    return PromptScores(hidden=hidden, logprobs=logprobs)


def _settle(future: "Future[PromptScores]", make: Callable[[], PromptScores]) -> None:
    """Give a future what `make` returns or raises, unless it has ended before."""
    with contextlib.suppress(InvalidStateError):
        try:
            result = make()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _raise(error: Exception) -> PromptScores:
    raise error
