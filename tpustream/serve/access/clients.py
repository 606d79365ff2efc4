"""How much each client may use: requests and tokens a minute, streams at the same time.

A budget refills evenly and holds one minute's worth at most (a token bucket). Tokens are charged when
they are there: the prompt as it enters, each generated token as it comes, so a long answer may
overdraw the budget, and its client waits until that is paid back. Lives on the event loop.
"""

import dataclasses
import math
import time
from collections.abc import Callable

from tpustream.serve.errors import ApiError

MINUTE = 60.0
MOST_CLIENTS = 10_000  # beyond it, those that owe nothing are forgotten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one client; 0 is none.

    Attributes:
      requests_per_minute: requests that are sent to be worked on (POST).
      tokens_per_minute: of prompts and answers together.
      streams: choices that are being generated or wait for it.

    Raises ValueError for a bound that is negative.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    streams: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise ValueError(f"{field.name}: wanted >= 0, got {value}")


class Budget:
    """So many units a minute, of which at most one minute's worth is saved up."""

    def __init__(self, per_minute: int, clock: Callable[[], float]):
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._counted = clock()

    @property
    def left(self) -> float:
        """Units that may be used now; below 0 after an overdraft."""
        now = self._clock()
        grown = self._left + (now - self._counted) * self.per_minute / MINUTE
        self._left, self._counted = min(float(self.per_minute), grown), now
        return self._left

    def spend(self, units: int) -> None:
        """Use units, whether they are there or not."""
        self._left = self.left - units

    def wait_for(self, units: int) -> float:
        """Seconds until so many units may be used; more than a minute's worth counts as that."""
        missing = min(units, self.per_minute) - self.left
        return max(0.0, missing * MINUTE / self.per_minute)


class Client:
    """One name under which somebody enters.

    Args:
      clock: seconds that never go back.

    Attributes:
      name: what the engine shares its slots fairly between; "" for anybody.
      limits: as the key says, or the server's own.
      streams: choices in flight.
    """

    def __init__(self, name: str, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.name = name
        self.limits = limits
        self.streams = 0
        self._requests = Budget(limits.requests_per_minute, clock)
        self._tokens = Budget(limits.tokens_per_minute, clock)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and no budget is touched: forgetting this client changes nothing."""
        budgets = (self._requests, self._tokens)
        return self.streams == 0 and all(budget.left >= budget.per_minute for budget in budgets)

    def request(self) -> None:
        """One more request. Raises ApiError 429."""
        if self.limits.requests_per_minute:
            self._check(self._requests, 1, "requests")
            self._requests.spend(1)

    def enter(self, streams: int, prompt_tokens: int) -> None:
        """So many choices of a prompt begin. Raises ApiError 429, or 400 for more than may ever run."""
        most = self.limits.streams
        if most and streams > most:
            raise ApiError(400, f"n: wanted at most {most} choices for this key, got {streams}", param="n")
        if most and self.streams + streams > most:
            raise limited(
                f"wanted at most {most} streams at the same time, got {self.streams + streams}", 1.0, {}
            )
        if self.limits.tokens_per_minute:
            self._check(self._tokens, max(1, prompt_tokens), "tokens")
        self.streams += streams
        self.spend(prompt_tokens)

    def leave(self) -> None:
        """A choice has ended."""
        self.streams -= 1

    def spend(self, tokens: int) -> None:
        """So many tokens were read or written."""
        if self.limits.tokens_per_minute:
            self._tokens.spend(tokens)

    def headers(self) -> dict[str, str]:
        """What OpenAI's servers tell of limits: x-ratelimit-{limit,remaining,reset}-{requests,tokens}."""
        out = {}
        for word, budget in (("requests", self._requests), ("tokens", self._tokens)):
            if budget.per_minute:
                out[f"x-ratelimit-limit-{word}"] = str(budget.per_minute)
                out[f"x-ratelimit-remaining-{word}"] = str(max(0, math.floor(budget.left)))
                out[f"x-ratelimit-reset-{word}"] = f"{budget.wait_for(budget.per_minute):.3f}s"
        return out

    def _check(self, budget: Budget, units: int, word: str) -> None:
        wait = budget.wait_for(units)
        if wait > 0:
            raise limited(f"wanted at most {budget.per_minute} {word} a minute", wait, self.headers())


class Clients:
    """Every client that came, by name. Also gives the server's own limits to those who have none."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._known: dict[str, Client] = {}

    def get(self, name: str, limits: Limits | None = None) -> Client:
        """The client of this name; a new one where its limits have changed."""
        limits = limits or self._limits
        client = self._known.get(name)
        if client is None or client.limits != limits:
            if len(self._known) >= MOST_CLIENTS:
                self._known = {name: client for name, client in self._known.items() if not client.idle}
            client = self._known[name] = Client(name, limits)
        return client


def anybody() -> Client:
    """A client without a name and without bounds."""
    return Client("", Limits())


def limited(message: str, wait: float, headers: dict[str, str]) -> ApiError:
    """429: this client, not now. `wait` in seconds."""
    return ApiError(
        429,
        f"Rate limit reached: {message}",
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(max(1, math.ceil(wait))), **headers},
    )
