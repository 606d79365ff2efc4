"""When requests are sent: all at once, or as a gamma process of a chosen rate."""

import math
from collections.abc import Sequence

import numpy as np


def arrival_times(count: int, *, rate: float, burstiness: float, seed: int | Sequence[int]) -> np.ndarray:
    """Seconds after the start at which each request is due, ascending, f64[count].

    Gaps are Gamma(shape=burstiness, scale=1 / (rate * burstiness)): their squared coefficient of
    variation is 1 / burstiness. 1 is a Poisson process, less comes in bursts, inf is even. As in
    `vllm bench serve`, times are scaled so that the last is exactly count / rate: the rate of a short
    run then does not depend on its seed.

    Args:
      rate: requests a second; inf makes all due at 0.

    Raises ValueError for a count, rate or burstiness that is not positive.
    """
    if count < 1:
        raise ValueError(f"num_prompts: wanted at least 1, got {count}")
    for name, value in (("request_rate", rate), ("burstiness", burstiness)):
        if not value > 0:
            raise ValueError(f"{name}: wanted more than 0, got {value:g}")
    if math.isinf(rate):
        return np.zeros(count)
    if math.isinf(burstiness):
        gaps = np.full(count, 1 / rate)
    else:
        gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), count)
    times = np.cumsum(gaps)
    if times[-1] == 0:
        raise ValueError(f"burstiness: wanted gaps that a float can hold, got {burstiness:g}")
    return times * (count / rate / times[-1])
