"""How a prompt is cut for prefill, and which prompt is at work. Host only, no jax.

The cut depends on the prompt's length alone, never on load: the same prompt meets the same executables
in any company, and so gets the same bits.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator

import numpy as np

from tpustream.config import EngineConfig
from tpustream.core.plan import Placement
from tpustream.core.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One call of prefill.

    Attributes:
      placement: whose prompt it is.
      start: position of the first token; 0 begins a prefix.
      count: tokens that count.
      bucket: tokens that the executable takes.
      past: earlier positions that the executable reads.
      last: the prefix is whole after it.
    """

    placement: Placement
    start: int
    count: int
    bucket: int
    past: int
    last: bool

    def tokens(self) -> np.ndarray:
        """The chunk, i32[bucket], padded with 0."""
        out = np.zeros(self.bucket, np.int32)
        out[: self.count] = self.placement.request.prompt[self.start : self.start + self.count]
        return out


def cut(placement: Placement, engine: EngineConfig) -> Iterator[Chunk]:
    """Chunks of all prompt tokens but the last, which decode takes; at least one, maybe of no tokens."""
    length = prefix_tokens(placement.request)
    for start in range(0, max(length, 1), engine.chunk):
        count = min(engine.chunk, length - start)
        yield Chunk(
            placement=placement,
            start=start,
            count=count,
            bucket=_at_least(count, engine.buckets),
            past=_at_least(start, engine.pasts),
            last=start + count == length,
        )


def prefix_tokens(request: Request) -> int:
    """Tokens of a request's prompt that are prefilled."""
    return len(request.prompt) - 1


class Prefills:
    """Prompts that have a slot and wait for their keys and values, first come first served."""

    def __init__(self, engine: EngineConfig):
        self._engine = engine
        self._todo: deque[deque[Chunk]] = deque()

    def __bool__(self) -> bool:
        return bool(self._todo)

    def add(self, placement: Placement) -> None:
        """Queue a prompt."""
        self._todo.append(deque(cut(placement, self._engine)))

    def drop(self, slot: int, epoch: int) -> bool:
        """Forget the prompt of this occupant; False when there is none."""
        for chunks in self._todo:
            placement = chunks[0].placement
            if (placement.slot, placement.epoch) == (slot, epoch):
                self._todo.remove(chunks)
                return True
        return False

    def next(self) -> Chunk:
        """The chunk to do now. Only while there is one."""
        chunks = self._todo[0]
        chunk = chunks.popleft()
        if not chunks:
            self._todo.popleft()
        return chunk


def _at_least(size: int, sizes: tuple[int, ...]) -> int:
    return next(candidate for candidate in sizes if candidate >= size)
