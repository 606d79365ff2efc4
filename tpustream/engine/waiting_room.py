"""How much may wait: the one place that knows when the queue is full. Host only, no jax, no threads.

The router counts streams in and out under its own lock.
"""

from tpustream.core.errors import QueueFull

RETRY_AFTER = 1.0  # seconds: a stream of a few dozen tokens ends in about that time


class WaitingRoom:
    """Counts requests in flight and the prompt tokens of those that have no slot yet.

    Args:
      slots: B; that many requests wait for nobody and are never refused.
      max_waiting: requests beyond them.
      max_waiting_tokens: prompt tokens without a slot. One request may always wait alone, or a prompt
        longer than the bound could never pass.
    """

    def __init__(self, *, slots: int, max_waiting: int, max_waiting_tokens: int):
        self._slots = slots
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._in_flight = 0
        self._waiting_tokens = 0

    @property
    def in_flight(self) -> int:
        """Requests that have entered and not left."""
        return self._in_flight

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens without a slot."""
        return self._waiting_tokens

    def check(self, requests: int = 1, tokens: int = 0) -> None:
        """Raise QueueFull when `requests` more with `tokens` prompt tokens in all would be refused now."""
        waiting = self._in_flight + requests - self._slots
        if waiting <= 0:
            return
        if waiting > self._max_waiting:
            raise QueueFull(
                f"The queue is full: wanted at most {self._max_waiting} requests waiting, got {waiting}",
                retry_after=RETRY_AFTER,
            )
        total = self._waiting_tokens + tokens
        if self._waiting_tokens and total > self._max_waiting_tokens:
            raise QueueFull(
                f"The queue is full: wanted at most {self._max_waiting_tokens} prompt tokens waiting, "
                f"got {total}",
                retry_after=RETRY_AFTER,
            )

    def enter(self, tokens: int) -> None:
        """One more request, with a prompt of `tokens`. Raises QueueFull, and then counts nothing."""
        self.check(1, tokens)
        self._in_flight += 1
        self._waiting_tokens += tokens

    def seat(self, tokens: int) -> None:
        """A prompt of `tokens` waits no longer: it has its slot, or it left before."""
        self._waiting_tokens -= tokens

    def leave(self) -> None:
        """A request has ended."""
        self._in_flight -= 1
