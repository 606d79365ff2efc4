"""What the flags of the comparison spell."""

import pytest

from tpustream.bench.peers.work import Workload, plan

FLAGS = {
    "batches": ["1", "8"],
    "prompt": 16,
    "generate": 8,
    "prefill": 20,
    "ring_length": 24,
    "fused_steps": 4,
}


def test_the_plan():
    """Prefill comes first and may be left out; decode keeps the order of the flag."""
    decode = [Workload(kind="decode", streams=count, prompt=16, tokens=8) for count in (1, 8)]
    assert plan(**FLAGS) == [Workload(kind="prefill", streams=1, prompt=0, tokens=20), *decode]
    assert plan(**FLAGS | {"prefill": 0}) == decode


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generate": 12}, "ring_length: wanted >= 28, what a stream grows to, got 24"),
        ({"prefill": 25}, "ring_length: wanted >= 25, what a stream grows to, got 24"),
        ({"generate": 6}, r"generate: wanted a multiple of fused_steps \(4\), got 6"),
        ({"batches": ["1", "x"]}, "batches: wanted numbers >= 1 separated by commas, got 'x'"),
        ({"batches": ["0"]}, "batches: wanted numbers >= 1 separated by commas, got '0'"),
    ],
)
def test_flags_that_cannot_be_honoured(changed, message):
    """An error names the flag before anything is built, loaded or compiled."""
    with pytest.raises(ValueError, match=message):
        plan(**FLAGS | changed)
