"""How many decode steps there were, how long they took, and what they had to read. Host only.

A step is timed from when the device could begin it (the step before it was delivered, or it was
dispatched, whichever came later) to its delivery. A dispatch behind a chunk of prefill is not timed:
the chunk's time cannot be told from its own. Bytes are a lower bound, weights once and the filled part
of every slot's cache, so that bytes by seconds is what a roofline compares with the memory's bandwidth.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from tpustream.core.engine_stats import EngineStats


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBytes:
    """What a step reads.

    Attributes:
      weights: bytes, in every step.
      positions: columns of a slot -> bytes of one position in all layers that have so many.
    """

    weights: int
    positions: Mapping[int, int]

    def cache(self, length: int) -> int:
        """Bytes of a slot that holds `length` tokens, older ones dropped as the ring drops them."""
        return sum(size * min(length, columns) for columns, size in self.positions.items())

    @property
    def full_cache(self) -> int:
        """Bytes of a slot whose every column is filled."""
        return sum(size * columns for columns, size in self.positions.items())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Dispatch:
    end: int  # the first step after it
    at: float
    after_prefill: bool


class StepMeter:
    """`dispatched` is called by the engine's loop, everything else by who delivers or looks.

    Args:
      slots: B.
      clock: seconds that never go back.
    """

    def __init__(self, *, slots: int, step_bytes: StepBytes, clock: Callable[[], float]):
        self._slots = slots
        self._bytes = step_bytes
        self._clock = clock
        self._dispatches: deque[_Dispatch] = deque()
        self._dispatched = 0
        self._delivered = 0.0
        self._steps = 0
        self._rows = 0
        self._timed_bytes = 0
        self._timed_seconds = 0.0

    def dispatched(self, steps: int, *, after_prefill: bool) -> None:
        """A dispatch goes out; `after_prefill`, behind a chunk of a prompt."""
        self._dispatched += steps
        dispatch = _Dispatch(end=self._dispatched, at=self._clock(), after_prefill=after_prefill)
        self._dispatches.append(dispatch)

    def after_prefill(self, step: int) -> bool:
        """Whether the dispatch that holds this step waited for a chunk. Steps come in order, from 0."""
        return self._dispatch(step).after_prefill

    def delivered(self, step: int, lengths: Iterable[int]) -> None:
        """A step's tokens are here, for slots that hold `lengths` tokens each."""
        now, dispatch = self._clock(), self._dispatch(step)
        lengths = tuple(lengths)
        self._steps += 1
        self._rows += len(lengths)
        if not dispatch.after_prefill:
            self._timed_bytes += self._bytes.weights + sum(map(self._bytes.cache, lengths))
            self._timed_seconds += now - max(dispatch.at, self._delivered)
        self._delivered = now

    def stats(self, lengths: Iterable[int]) -> EngineStats:
        """The counts, and how much of the cache slots with so many tokens each fill."""
        used = sum(map(self._bytes.cache, lengths))
        return EngineStats(
            slots=self._slots,
            cache_usage=used / (self._slots * self._bytes.full_cache),
            decode_steps=self._steps,
            decode_rows=self._rows,
            timed_bytes=self._timed_bytes,
            timed_seconds=self._timed_seconds,
        )

    def _dispatch(self, step: int) -> _Dispatch:
        while self._dispatches[0].end <= step:
            self._dispatches.popleft()
        return self._dispatches[0]
