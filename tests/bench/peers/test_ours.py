"""Our side of the comparison: the right work is timed, and its rate counts the right tokens."""

import pytest

from tests.tiny import SMALL_ENGINE, request, tiny_files
from tpustream.bench.peers.ours import Ours, stream_times, together_rate
from tpustream.bench.peers.work import Workload
from tpustream.core.request import FinishReason, TokenEvent


def test_together_rate_counts_what_ran_together():
    """From the first token of the last stream to the last of the first to end, whoever they are."""
    early, late = [1.0, 2.0, 3.0, 4.0, 5.0], [2.5, 3.5, 4.5, 5.5]
    assert together_rate([early, late]) == (3 + 2) / 2.5
    with pytest.raises(ValueError, match="generate: wanted streams long enough"):
        together_rate([[1.0, 2.0], [2.0, 3.0]])


class ScriptedEngine:
    """Answers each request at once with as many tokens as asked, and this end."""

    def __init__(self, finish, error=None):
        self.finish, self.error = finish, error

    def submit(self, request, sink):
        for token in range(request.sampling.max_tokens - 1):
            sink(TokenEvent(token=token))
        sink(TokenEvent(token=7 if self.error is None else None, finish=self.finish, error=self.error))


def test_every_token_of_every_stream_has_its_time():
    """The token that comes with the end counts too."""
    wanted = [request([3, 5], "a"), request([4], "b", max_tokens=5)]
    times = stream_times(ScriptedEngine(FinishReason.LENGTH), wanted)
    assert [len(stream) for stream in times] == [8, 5]
    assert all(stream == sorted(stream) for stream in times)


@pytest.mark.parametrize(("finish", "error"), [(FinishReason.STOP, None), (FinishReason.ERROR, "NaN")])
def test_a_stream_that_ends_early_is_no_measurement(finish, error):
    """Less work in the same time would look slow, or fast; the reason is shown instead."""
    with pytest.raises(ValueError, match=f"wanted streams of full length, got .*{error}"):
        stream_times(ScriptedEngine(finish, error), [request([3])])


def test_both_sides_of_one_model():
    """Steps and engine work with the same executables; a stream never grows over its ring."""
    ours = Ours(tiny_files(), SMALL_ENGINE, quiet=True)
    decode = Workload(kind="decode", streams=2, prompt=3, tokens=32)
    assert ours.steps(decode) > 0
    assert ours.engine(decode) > 0
    assert ours.engine(decode) > 0  # requests of another round are others
    assert ours.steps(Workload(kind="prefill", streams=2, prompt=0, tokens=40)) > 0
    with pytest.raises(ValueError, match=r"ring_length: wanted at least 40 \+ 32 tokens, got 64"):
        ours.steps(Workload(kind="decode", streams=2, prompt=40, tokens=32))
    ours.close()
