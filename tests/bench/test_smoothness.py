"""Figures of scripts/bench_smoothness.py: gaps, and which round of them counts."""

import pytest

from tpustream.bench.smoothness import Gaps, gaps_between, gaps_of, rate, smoothest

STREAMS = [[0.0, 0.010, 0.020, 0.050], [0.005, 0.025]]


def test_gaps_of_streams():
    """Gaps are within a stream, never between two; a span takes those that end in it."""
    assert gaps_of(STREAMS) == Gaps(count=4, p50_ms=15.0, p99_ms=29.7)
    assert gaps_between(STREAMS, 0.02, 0.03) == Gaps(count=1, p50_ms=20.0, p99_ms=20.0)
    with pytest.raises(ValueError, match="wanted tokens"):
        gaps_of([[1.0], []])


def test_rate_adds_streams_up():
    """Each stream's own rate, first token left out."""
    assert rate(STREAMS) == pytest.approx(3 / 0.050 + 1 / 0.020)


def test_the_smoothest_round_counts():
    """By p99, whatever the median says."""
    rough, smooth = Gaps(count=9, p50_ms=1.0, p99_ms=9.0), Gaps(count=9, p50_ms=2.0, p99_ms=3.0)
    assert smoothest([rough, smooth]) is smooth
