"""Prompts that are scored: the reference's numbers, in any company, bounded, and nobody hangs."""

import dataclasses
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from tests.engine.test_engine import wait_for
from tests.goldens import families
from tests.reference import decoder
from tests.reference.sampling import log_probabilities
from tests.tiny import TINY, WAIT, collect, generate, request, submit, tiny_engine
from tpustream.config import EngineConfig
from tpustream.core.errors import EngineStopped, InvalidRequest, QueueFull
from tpustream.engine.admission import check_scored
from tpustream.engine.compile_guard import CompileGuard
from tpustream.weights.resolve import resolve_model

FAMILY = "gemma2"  # second norms, a soft cap, local layers, a scaled embedding
CONFIG = EngineConfig(
    slots=2,
    ring_length=64,
    prefill_chunk=16,
    emitter="transfer",
    weights="full",
    max_waiting=5,
    max_waiting_tokens=200,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Chunks of 16 tokens, so that a short prompt has several. The last test stops it."""
    folder = tmp_path_factory.mktemp(FAMILY)
    families.write_model(FAMILY, folder)
    built = tiny_engine(CONFIG, files=resolve_model(str(folder)), prompt_scores=True)
    yield built
    built.stop()


@pytest.mark.parametrize("length", [1, 16, 37])
def test_scores_are_those_of_the_reference(engine, length):
    """Mean hidden state and every token's log-probability, over whole and broken chunks."""
    weights, config = families.weights(FAMILY), families.golden(FAMILY).config
    tokens = np.resize(families.golden(FAMILY).tokens[0], length)
    scores = engine.score(tokens.tolist(), logprobs=2).result(WAIT)
    hidden = decoder.hidden_states(weights, config, tokens).mean(axis=0)
    np.testing.assert_allclose(scores.hidden, hidden, rtol=0, atol=1e-4 * np.abs(hidden).max())
    rows = map(log_probabilities, decoder.logits(weights, config, tokens)[:-1])
    for got, row, token in zip(scores.logprobs, rows, tokens[1:], strict=True):
        assert got.chosen == pytest.approx(row[token], abs=2e-3)
        best = np.argsort(-row)[:2]
        assert [id for id, _ in got.top] == best.tolist()
        assert [value for _, value in got.top] == pytest.approx(row[best].tolist(), abs=2e-3)


@pytest.fixture
def gate(engine, monkeypatch):
    """An event without which the engine's thread begins no turn of its loop."""
    passing, clock = threading.Event(), engine._clock

    def held():
        if threading.current_thread().name == "engine":
            passing.wait(WAIT)
        return clock()

    monkeypatch.setattr(engine, "_clock", held)
    yield passing
    passing.set()


def test_only_what_is_asked_for(engine):
    """No log-probabilities, or those of the tokens alone; the same hidden state in each case."""
    prompt = tuple(range(1, 20))
    hidden, plain = (engine.score(prompt, logprobs=n).result(WAIT) for n in (None, 0))
    assert hidden.logprobs == ()
    assert [entry.top for entry in plain.logprobs] == [()] * 18
    np.testing.assert_array_equal(hidden.hidden, plain.hidden)


def test_streams_and_scores_do_not_disturb_each_other(engine):
    """Each gets what it gets alone, prompts of both kinds in turns, and nothing is compiled."""
    prompts = [tuple(range(start, start + 40)) for start in range(1, 6)]
    alone = [engine.score(prompt, logprobs=1).result(WAIT) for prompt in prompts[:3]]
    wanted = [generate(engine, request(prompt, max_tokens=20)) for prompt in prompts]
    with CompileGuard().watching() as guard:
        streams = [
            submit(engine, request(prompt, request_id=str(n), max_tokens=20))
            for n, prompt in enumerate(prompts)
        ]
        scores = [engine.score(prompt, logprobs=1) for prompt in prompts[:3]]
        assert [[event.token for event in collect(events)[0]] for events in streams] == wanted
        for future, before in zip(scores, alone, strict=True):
            np.testing.assert_array_equal(future.result(WAIT).hidden, before.hidden)
            assert future.result().logprobs == before.logprobs
    assert guard.count == 0


def test_prompts_without_end_leave_scores_every_second_turn(engine, gate):
    """Neither kind of prompt keeps the other from the device."""
    future = engine.score((1, 2))
    wait_for(lambda: engine._scorer.busy)
    assert [engine._scorer.takes_turn(others=True) for _ in range(4)] == [True, False, True, False]
    assert [engine._scorer.takes_turn(others=False) for _ in range(2)] == [True, True]
    gate.set()
    future.result(WAIT)
    assert not engine._scorer.takes_turn(others=True)


@pytest.mark.parametrize(
    ("prompt", "logprobs", "field"),
    [((), None, "prompt"), ((10**6,), None, "prompt"), ((1,), 21, "logprobs"), ((1,) * 65, None, "messages")],
)
def test_what_cannot_be_scored(engine, prompt, logprobs, field):
    """Refused before any work."""
    with pytest.raises(InvalidRequest) as caught:
        engine.score(prompt, logprobs=logprobs)
    assert caught.value.param == field


def test_the_queue_is_bounded_and_cancelled_scores_leave_it(engine, gate):
    """By requests and by tokens; a cancelled one gives its place back and costs no work."""
    scores = [engine.score((1, 2)) for _ in range(6)]
    with pytest.raises(QueueFull):
        engine.score((1, 2))
    assert scores.pop().cancel()
    scores.append(engine.score((1, 2)))
    for _ in range(5):
        assert scores.pop().cancel()
    scores += [engine.score((1,) * 60) for _ in range(3)]
    with pytest.raises(QueueFull):
        engine.score((1,) * 60)
    gate.set()
    for future in scores:
        assert future.result(WAIT).hidden.ndim == 1


def test_not_finite_is_an_error(engine, monkeypatch):
    """Of that prompt alone."""
    weights = engine._weights
    broken = {"final_norm.scale": weights.params["final_norm.scale"] * np.float32("nan")}
    broken = dataclasses.replace(weights, params={**weights.params, **broken})
    with monkeypatch.context() as patch:
        patch.setattr(engine._scorer, "_weights", broken)
        with pytest.raises(FloatingPointError):
            engine.score((1, 2)).result(WAIT)
    assert np.isfinite(engine.score((1, 2)).result(WAIT).hidden).all()


def test_an_engine_without_scores_says_so():
    """The flag saves a compilation, and is named where it is missed."""
    with pytest.raises(InvalidRequest, match="prompt_scores"):
        check_scored((1,), None, TINY, EngineConfig(prompt_scores=False))


def test_nobody_hangs_when_the_engine_stops(engine, gate):
    """What waits ends with EngineStopped; what comes later is told at once."""
    futures = [engine.score(range(1, 60)) for _ in range(2)]
    cancelled = engine.score((1,))
    cancelled.cancel()
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    gate.set()
    for future in futures:
        with pytest.raises(EngineStopped, match="stopped"):
            future.result(WAIT)
    with pytest.raises(CancelledError):
        cancelled.result(WAIT)
    stopping.join(WAIT)
    with pytest.raises(EngineStopped):
        engine.score((1,))
