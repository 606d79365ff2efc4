"""How smoothly streams run: their rate, and their gaps while a long prompt comes in. Host only."""

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np

from tpustream.core.request import Request, SamplingParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaps:
    """Gaps between tokens of running streams, in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float


def fresh_prompt(tokens: int, number: int, vocabulary: int) -> tuple[int, ...]:
    """A prompt that no other number shares, so that no prefix cache helps."""
    drawn = random.Random(number)
    return tuple(drawn.randrange(vocabulary) for _ in range(tokens))


def greedy(name: str, prompt: tuple[int, ...], tokens: int) -> Request:
    """A request for exactly so many tokens, unless the engine knows EOS."""
    sampling = SamplingParams(temperature=0.0, seed=0, max_tokens=tokens, ignore_eos=True)
    return Request(id=name, prompt=prompt, sampling=sampling)


def rate(times: Sequence[Sequence[float]]) -> float:
    """Tokens a second of streams that run side by side: the sum of each one's 1 / TPOT."""
    return sum((len(stream) - 1) / (stream[-1] - stream[0]) for stream in times)


def gaps_of(times: Sequence[Sequence[float]]) -> Gaps:
    """All gaps of these streams. Raises ValueError where there is none."""
    return gaps_between(times, -math.inf, math.inf)


def smoothest(rounds: Sequence[Gaps]) -> Gaps:
    """The round of the smallest p99: what else the machine does only adds to it."""
    return min(rounds, key=lambda gaps: gaps.p99_ms)


def gaps_between(times: Sequence[Sequence[float]], begin: float, end: float) -> Gaps:
    """Gaps that end in this span. Raises ValueError where there is none."""
    found = [
        1e3 * (after - before)
        for stream in times
        for before, after in itertools.pairwise(stream)
        if begin < after <= end
    ]
    if not found:
        raise ValueError("gaps: wanted tokens of the running streams in this span, got none")
    p50, p99 = np.percentile(found, [50, 99])
    return Gaps(count=len(found), p50_ms=round(float(p50), 2), p99_ms=round(float(p99), 2))
