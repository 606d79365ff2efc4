"""Streams that outlive their ring equal a naive window-with-sinks decoder, whatever came before."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.goldens import families
from tests.reference.sampling import log_probabilities
from tests.reference.stream import StreamingDecoder
from tests.tiny import collect, request, submit, tiny_engine
from tpustream.config import EngineConfig
from tpustream.core.request import FinishReason
from tpustream.weights.resolve import resolve_model

EXACT = EngineConfig(dtype="float32", weights="full", emitter="transfer")
TOLERANCE = 2e-4  # of log-probabilities, float32 against float64


def _engine(name, folder, config):
    families.write_model(name, folder)
    return tiny_engine(config, files=resolve_model(str(folder)))


def _assert_follows(events, prompt, reference: StreamingDecoder) -> None:
    """Every token is the reference's most likely one, with its probability."""
    for token in prompt[:-1]:
        reference.step(token)
    fed = prompt[-1]
    for event in events:
        if event.token is None:
            continue
        wanted = log_probabilities(reference.step(fed))
        assert wanted.max() - wanted[event.token] < TOLERANCE
        assert event.logprobs.chosen == pytest.approx(wanted[event.token], abs=TOLERANCE)
        fed = event.token


@pytest.mark.parametrize("name", ["smollm2", "qwen2_window"])
def test_a_stream_of_300_tokens_in_a_ring_of_64(name, tmp_path):
    """300 tokens wrap the ring four times; sinks, windows and rotations stay right."""
    config = dataclasses.replace(EXACT, slots=2, ring_length=64, sinks=4, prefill_chunk=16)
    engine = _engine(name, tmp_path, config)
    prompt = families.golden(name).tokens[0][:11].tolist()
    events, finish = collect(submit(engine, request(prompt, max_tokens=300, logprobs=0)))
    engine.stop()
    assert finish == FinishReason.LENGTH and len(events) == 300
    reference = StreamingDecoder(families.weights(name), families.golden(name).config, columns=64, sinks=4)
    _assert_follows(events, prompt, reference)


@pytest.fixture(scope="module")
def small_ring(tmp_path_factory):
    """An engine with a ring of 12, three slots and steps that are fused."""
    config = dataclasses.replace(
        EXACT, slots=3, ring_length=12, sinks=2, prefill_chunk=4, fused_steps=3, itl_target_ms=0
    )
    engine = _engine("mistral_window", tmp_path_factory.mktemp("model"), config)
    yield engine
    engine.stop()


streams = st.tuples(
    st.lists(st.integers(0, 100), min_size=1, max_size=12),
    st.integers(1, 30),  # tokens to generate
    st.one_of(st.none(), st.integers(0, 8)),  # cancelled after so many
)


@settings(max_examples=12)
@given(st.lists(streams, min_size=1, max_size=7))
def test_any_mix_of_streams_equals_each_alone(small_ring, wanted):
    """Random lengths, wraps, inserts, cancellations and epochs: every stream is its own reference."""
    started = []
    for number, (prompt, length, cancel) in enumerate(wanted):
        ask = request(prompt, request_id=f"s{number}", max_tokens=length, logprobs=0)
        started.append((prompt, cancel, ask.id, submit(small_ring, ask)))
    golden = families.golden("mistral_window")
    for prompt, cancel, request_id, events in started:
        if cancel == 0:
            small_ring.cancel(request_id)
        got, _ = collect(events)
        reference = StreamingDecoder(families.weights("mistral_window"), golden.config, columns=12, sinks=2)
        _assert_follows(got[:12], prompt, reference)


def test_prompt_rows_beyond_a_window_are_left_behind(tmp_path):
    """A prompt longer than a layer's window is inserted as the ring would hold it."""
    config = dataclasses.replace(EXACT, slots=1, ring_length=64, sinks=4, prefill_chunk=64)
    engine = _engine("mistral_window", tmp_path, config)
    prompt = families.golden("mistral_window").tokens[0].tolist()
    events, _ = collect(submit(engine, request(prompt, max_tokens=20, logprobs=0)))
    engine.stop()
    golden = families.golden("mistral_window")
    reference = StreamingDecoder(families.weights("mistral_window"), golden.config, columns=64, sinks=4)
    assert np.isfinite(events[0].logprobs.chosen)
    _assert_follows(events, prompt, reference)
