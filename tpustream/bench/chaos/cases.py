"""What each client of the chaos asks for, and what will happen to its connections.

The same seed draws the same cases. Knows nothing of how they are sent.
"""

import dataclasses
import enum
import random
from typing import Any

WORDS = ("river", "past", "seven", "old", "stones", "red", "boat", "waits", "for", "morning", "tide")
WHOLE = 0.15  # share of answers that are wanted at once
KEYED = 0.5  # share of streams with an idempotency key
LEAVING = 0.05  # share of streams that nobody wants to take up again
TWO_CHOICES = 0.25
MOST_MISHAPS = 3
PAUSES = (0.005, 0.05)  # seconds between two events of a slow reader
LONGEST_WAIT = 0.5  # seconds before a client comes back


class Mishap(enum.StrEnum):
    """What happens to one connection."""

    RESET = "reset"  # without a word, in the middle of what is sent
    CLOSED = "closed"  # in good order
    HALF_CLOSED = "half-closed"  # the client will send no more, and would still read
    SLOW = "slow"  # a client that takes its time, and is reset in the end
    UNREAD = "unread"  # gone before the first byte of the answer
    DOUBLED = "doubled"  # asked for once more while the first connection is still open


class Way(enum.StrEnum):
    """How a client comes back."""

    HEADER = "GET with Last-Event-ID"
    QUERY = "GET with ?from="
    POST = "POST with Last-Event-ID"
    KEY = "POST with Idempotency-Key"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """One mishap, and the way back from it.

    Attributes:
      after: events that are read before it.
      pause: seconds that a slow reader takes for each.
      wait: seconds before the client comes back.
    """

    mishap: Mishap
    after: int
    pause: float
    way: Way
    wait: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One client.

    Attributes:
      path, body: what it asks for.
      key: of idempotency, or None.
      troubles: of its connections, one after another; the connection after them is left in peace.
      leaves: it does not come back after the first.
    """

    index: int
    path: str
    body: dict[str, Any]
    key: str | None
    troubles: tuple[Trouble, ...]
    leaves: bool

    @property
    def streamed(self) -> bool:
        """As events, or at once."""
        return self.body["stream"]


def draw(count: int, *, seed: int, most_tokens: int) -> tuple[Case, ...]:
    """`count` cases with answers of at most `most_tokens` tokens. Raises ValueError below 1."""
    for name, value in (("streams", count), ("tokens", most_tokens)):
        if value < 1:
            raise ValueError(f"{name}: wanted >= 1, got {value}")
    rng = random.Random(seed)
    run = f"{rng.getrandbits(64):x}"
    return tuple(_case(rng, run, index, most_tokens) for index in range(count))


def _case(rng: random.Random, run: str, index: int, most_tokens: int) -> Case:
    streamed = rng.random() >= WHOLE
    leaves = streamed and rng.random() < LEAVING
    keyed = not leaves and (not streamed or rng.random() < KEYED)
    text = " ".join(rng.choices(WORDS, k=rng.randint(2, 12)))
    chat = rng.random() < 0.5
    body: dict[str, Any] = {
        "max_tokens": rng.randint(max(1, most_tokens // 4), most_tokens),
        "temperature": 0.9,
        "seed": rng.getrandbits(32),
        "n": 2 if rng.random() < TWO_CHOICES else 1,
        "stream": streamed,
    }
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    if streamed and not (keyed or leaves):
        body["stream_options"] = {"resumable": True, "include_usage": rng.random() < 0.5}
    troubles = tuple(
        _trouble(rng, body, keyed, streamed) for _ in range(1 if leaves else rng.randint(0, MOST_MISHAPS))
    )
    return Case(
        index=index,
        path="/v1/chat/completions" if chat else "/v1/completions",
        body=body,
        key=f"{run}-{index}" if keyed else None,
        troubles=troubles,
        leaves=leaves,
    )


def _trouble(rng: random.Random, body: dict[str, Any], keyed: bool, streamed: bool) -> Trouble:
    mishaps = list(Mishap)
    if not streamed:
        mishaps = [Mishap.UNREAD, Mishap.DOUBLED]
    elif not keyed:
        mishaps.remove(Mishap.UNREAD)  # only a key finds an answer of which nothing was seen
    ways = [Way.KEY] if not streamed else [Way.HEADER, Way.QUERY, Way.POST] + [Way.KEY] * keyed
    return Trouble(
        mishap=rng.choice(mishaps),
        after=rng.randint(1, body["max_tokens"]),
        pause=rng.uniform(*PAUSES),
        way=rng.choice(ways),
        wait=rng.uniform(0.0, LONGEST_WAIT) if rng.random() < 0.5 else 0.0,
    )
