"""When requests are due."""

import math

import numpy as np
import pytest

from tpustream.bench.serving.arrivals import arrival_times

COUNT = 4000


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_rate_and_the_spread_of_their_gamma(burstiness):
    """The rate is exact, and the burstiness is the one asked for: variance of the gaps 1 / burstiness."""
    times = arrival_times(COUNT, rate=50.0, burstiness=burstiness, seed=3)
    gaps = np.diff(times, prepend=0.0)
    assert times[-1] == pytest.approx(COUNT / 50.0)
    assert (gaps >= 0).all()
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.12)


def test_poisson_gaps_are_exponential():
    """Burstiness 1 is a Poisson process: a share of exp(-1) of the gaps is above their mean."""
    gaps = np.diff(arrival_times(COUNT, rate=2.0, burstiness=1.0, seed=5), prepend=0.0)
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), abs=0.03)


def test_the_ends_of_the_scale():
    """An infinite rate sends all at once; an infinite burstiness sends like a clock."""
    assert arrival_times(3, rate=math.inf, burstiness=1.0, seed=0).tolist() == [0, 0, 0]
    even = arrival_times(4, rate=2.0, burstiness=math.inf, seed=0)
    np.testing.assert_allclose(even, [0.5, 1.0, 1.5, 2.0])


def test_a_seed_repeats():
    """Two servers can be compared under the same arrivals, and other seeds give others."""
    one, same, other = (arrival_times(9, rate=1.0, burstiness=1.0, seed=seed) for seed in (7, 7, 8))
    assert one.tolist() == same.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("change", "flag"),
    [({"count": 0}, "num_prompts"), ({"rate": 0.0}, "request_rate"), ({"burstiness": -1.0}, "burstiness")],
)
def test_impossible_arrivals_are_refused(change, flag):
    """The message names the flag and what it got."""
    settings = {"count": 2, "rate": 1.0, "burstiness": 1.0, "seed": 0} | change
    with pytest.raises(ValueError, match=f"{flag}: wanted .*, got {next(iter(change.values())):g}"):
        arrival_times(settings.pop("count"), **settings)
