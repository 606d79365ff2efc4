"""What a soak asks for: requests of mixed lengths, sampling and urgency, some of which leave early.

The same seed draws the same requests. Knows nothing of how they are sent.
"""

import dataclasses

import numpy as np

from tpustream.core.request import SamplingParams

BEGINNINGS = 4  # prompts share these now and then, for the prefix cache
LEAVING = 0.2  # share of requests that do not wait for their end
WITH_DEADLINE = 0.05
DEADLINES = (0.05, 5.0)  # seconds; the shortest pass now and then
PRIORITIES = (-1, 0, 0, 0, 1)
KEYS = ("a", "a", "a", "b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One request of the soak.

    Attributes:
      index: its place.
      leaves_after: tokens (over HTTP: chunks of text) after which its client leaves, 0 for at once; None
        for a client that stays.
      whole: over HTTP, the answer is wanted in one piece rather than as a stream.
    """

    index: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    key: str
    priority: int
    deadline: float | None
    leaves_after: int | None
    whole: bool


def draw(
    count: int, *, seed: int, vocabulary: int, longest_prompt: int, most_tokens: int
) -> tuple[Asked, ...]:
    """`count` requests with prompts of 1..longest_prompt tokens, most of them short, and answers of
    1..most_tokens.

    Raises ValueError for a count, or a length, below 1.
    """
    for name, value in (("requests", count), ("prompt", longest_prompt), ("tokens", most_tokens)):
        if value < 1:
            raise ValueError(f"{name}: wanted >= 1, got {value}")
    rng = np.random.default_rng(seed)
    beginnings = rng.integers(0, vocabulary, (BEGINNINGS, longest_prompt))

    def one(index: int) -> Asked:
        length = int(np.exp(rng.uniform(0, np.log(longest_prompt + 1))))
        prompt = rng.integers(0, vocabulary, length)
        if rng.random() < 0.5:
            shared = int(rng.integers(0, length + 1))
            prompt[:shared] = beginnings[rng.integers(BEGINNINGS), :shared]
        tokens = int(rng.integers(1, most_tokens + 1))
        return Asked(
            index=index,
            prompt=tuple(prompt.tolist()),
            sampling=_sampling(rng, tokens, vocabulary),
            key=str(rng.choice(KEYS)),
            priority=int(rng.choice(PRIORITIES)),
            deadline=float(rng.uniform(*DEADLINES)) if rng.random() < WITH_DEADLINE else None,
            leaves_after=int(rng.integers(0, tokens)) if rng.random() < LEAVING else None,
            whole=bool(rng.random() < 0.2),
        )

    return tuple(one(index) for index in range(count))


def _sampling(rng: np.random.Generator, tokens: int, vocabulary: int) -> SamplingParams:
    def sometimes(value: float, off: float, share: float = 0.3) -> float:
        return value if rng.random() < share else off

    return SamplingParams(
        max_tokens=tokens,
        temperature=float(rng.choice([0.0, 0.7, 1.0, 1.4])),
        top_k=int(sometimes(20, 0)),
        top_p=sometimes(0.9, 1.0),
        min_p=sometimes(0.05, 0.0),
        repetition_penalty=sometimes(1.2, 1.0),
        frequency_penalty=sometimes(0.5, 0.0),
        presence_penalty=sometimes(-0.4, 0.0),
        logit_bias={int(rng.integers(vocabulary)): -3.0} if rng.random() < 0.2 else {},
        seed=int(rng.integers(2**53)),
        ignore_eos=bool(rng.random() < 0.5),
    )
