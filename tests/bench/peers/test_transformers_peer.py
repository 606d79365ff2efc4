"""The transformers peer's process: what it is told, what it answers, how it fails. No torch here."""

from pathlib import Path

import pytest

from tests.bench.peers.programs import script
from tpustream.bench.peers.transformers_peer import Transformers
from tpustream.bench.peers.transformers_worker import TokenClock, decode_seconds
from tpustream.bench.peers.work import PeerError, PeerMissing, Workload

MODEL = Path("model.gguf")
DECODE = Workload(kind="decode", streams=4, prompt=16, tokens=8)
ANSWERING = """
assert sys.argv[1:] == ["model.gguf", "2"], sys.argv
print(json.dumps({"ready": {"torch": "2.0"}}), flush=True)
for line in sys.stdin:
    work = json.loads(line)
    print(json.dumps({"seconds": work["streams"] * work["prompt"] / 128}), flush=True)
"""
MISSING = """print(json.dumps({"missing": "No module named 'torch'"}))"""
CRASHING = """
print(json.dumps({"ready": {}}), flush=True)
sys.stdin.readline()
print("out of memory", file=sys.stderr)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rates_of_a_process_that_answers(tmp_path):
    """Tokens of all streams a second, several measurements from one process; closing ends it."""
    peer = Transformers(MODEL, threads=2, worker=script(tmp_path / "worker.py", ANSWERING))
    assert peer.describe()["torch"] == "2.0"
    assert [peer.measure(DECODE) for _ in range(2)] == [4 * 8 / 0.5] * 2
    peer.close()
    assert peer._process.returncode == 0


def test_a_python_without_torch(tmp_path):
    """This interpreter may lack torch, and the peer is left out; one that was named may not."""
    worker = script(tmp_path / "worker.py", MISSING)
    with pytest.raises(PeerMissing, match="got: No module named 'torch'"):
        Transformers(MODEL, threads=2, worker=worker)
    with pytest.raises(PeerError, match="wanted torch") as caught:
        # a script is its own interpreter here: the worker's path becomes its first argument
        Transformers(MODEL, threads=2, python=worker, worker=worker)
    assert not isinstance(caught.value, PeerMissing)
    with pytest.raises(PeerError, match="wanted a Python that starts"):
        Transformers(MODEL, threads=2, python=tmp_path / "absent")


def test_a_process_that_dies_says_why(tmp_path):
    """The signal and the last words, at this measurement and, if tried again, at the next."""
    peer = Transformers(MODEL, threads=2, worker=script(tmp_path / "worker.py", CRASHING))
    for _ in range(2):
        with pytest.raises(PeerError, match=r"(?s)got the signal SIGKILL; it said last:.*out of memory"):
            peer.measure(DECODE)
    peer.close()


class FakeTorch:
    """As much of torch as the worker asks for."""

    @staticmethod
    def randint(vocabulary, shape):
        return shape

    ones_like = staticmethod(lambda ids: ids)


class FakeModel:
    """Generates nothing, at a known pace."""

    def __init__(self, steps):
        self.config = type("Config", (), {"vocab_size": 7})
        self.steps = steps

    def generate(self, *, streamer: TokenClock, **options):
        assert options["min_new_tokens"] == options["max_new_tokens"] == 9
        assert not options["do_sample"]
        streamer.times += [0.0, *(10.0 + step for step in range(self.steps))]


def test_the_first_token_is_prefill():
    """Eight tokens are timed from the first token on, which belongs to the prompt; fewer are an error."""
    assert decode_seconds(FakeModel(9), FakeTorch, streams=4, prompt=16, tokens=8) == 8.0
    with pytest.raises(ValueError, match="wanted 9 steps, got 8"):
        decode_seconds(FakeModel(8), FakeTorch, streams=4, prompt=16, tokens=8)
