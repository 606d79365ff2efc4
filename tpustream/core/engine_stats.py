"""EngineStats: what an engine tells of itself to whoever watches it. Host only."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """One look at an engine; counts run from its start.

    Attributes:
      slots: B.
      running: requests in a slot.
      paused: requests that were paused and not resumed; most of them are in a slot.
      waiting: requests without one.
      cache_usage: part of the slots' cache that holds tokens, 0 to 1.
      prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and found there.
      decode_steps: steps whose tokens have come.
      decode_rows: tokens that they brought; divided by steps and slots it is the batch's occupancy.
      timed_bytes: what the steps that could be timed had to read at least: weights and live cache.
      timed_seconds: how long those steps took.
    """

    slots: int
    running: int = 0
    paused: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    timed_bytes: int = 0
    timed_seconds: float = 0.0
