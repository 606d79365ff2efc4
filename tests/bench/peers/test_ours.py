"""Our side of the comparison: the right work is timed, and its rate counts the right tokens."""

import pytest

from tests.tiny import SMALL_ENGINE, generate, request, tiny_engine, tiny_files
from tpustream.bench.peers.ours import Ours, stream_times, together_rate
from tpustream.bench.peers.work import Workload


def test_together_rate_counts_what_ran_together():
    """From the first token of the last stream to the last of the first to end, whoever they are."""
    early, late = [1.0, 2.0, 3.0, 4.0, 5.0], [2.5, 3.5, 4.5, 5.5]
    assert together_rate([early, late]) == (3 + 2) / 2.5
    with pytest.raises(ValueError, match="generate: wanted streams long enough"):
        together_rate([[1.0, 2.0], [2.0, 3.0]])


def test_streams_of_full_length():
    """Every token of every stream has its time; a stream that ends early is no measurement."""
    engine = tiny_engine()
    try:
        times = stream_times(engine, [request([3, 5], "a"), request([4], "b", max_tokens=5)])
        assert [len(stream) for stream in times] == [8, 5]
        assert all(stream == sorted(stream) for stream in times)
        first = stream_times(engine, [request([3, 5], "c", max_tokens=1)])
        assert len(first[0]) == 1
        second = generate(engine, request([3]))[1]
        with pytest.raises(ValueError, match="wanted streams of full length"):
            stream_times(engine, [request([3], "d", stop_token_ids=(second,))])
    finally:
        engine.stop()


def test_both_sides_of_one_model():
    """Steps and engine work with the same executables, and change of streams compiles anew."""
    ours = Ours(tiny_files(), SMALL_ENGINE, quiet=True)
    decode = Workload(kind="decode", streams=2, prompt=3, tokens=32)
    assert ours.steps(decode) > 0
    assert ours.engine(decode) > 0
    assert ours.engine(decode) > 0  # requests of another round are others
    assert ours.steps(Workload(kind="prefill", streams=2, prompt=0, tokens=40)) > 0
    with pytest.raises(ValueError, match=r"ring_length: wanted at least 40 \+ 32 tokens, got 64"):
        ours.steps(Workload(kind="decode", streams=2, prompt=40, tokens=32))
    ours.close()
