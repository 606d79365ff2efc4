"""Weights as bytes: the quality that is promised, and the same streams however they are multiplied."""

import functools

import jax
import numpy as np
import pytest

from tests.goldens.streams import streams
from tests.reference.sampling import log_probabilities
from tests.tiny import TINY, collect, generate, request, submit, tiny_engine, tiny_files
from tpustream.config import EngineConfig
from tpustream.engine import steps
from tpustream.ops.cpu import build
from tpustream.runtime import load_weights, make_placer
from tpustream.weights.resolve import resolve_model

CONFIG = EngineConfig(slots=2, ring_length=64, prefill_chunk=16, emitter="transfer", weights="int8")
PADDED = 448  # tokens: the longest golden stream fits


@pytest.fixture
def without_kernel(monkeypatch):
    """As on a machine without a C++ compiler."""
    monkeypatch.setattr(build, "usable", lambda *_, **__: False)


@pytest.mark.parametrize(
    ("name", "kept"), [("embed.table", True), ("layers.0.attn.o", True), ("final_norm.scale", False)]
)
def test_matrices_are_bytes_and_norms_are_not(name, kept):
    """What a step multiplies with is quantized, and described as it is held."""
    placer = make_placer(TINY, CONFIG, jax.devices()[:1])
    described, held = placer.weights(), load_weights(tiny_files(), placer, quiet=True)
    assert jax.tree.structure(described.params) == jax.tree.structure(held.params)
    for shape, array in zip(jax.tree.leaves(described), jax.tree.leaves(held), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
    assert (not isinstance(held.params[name], jax.Array)) == kept


def test_the_kernel_and_plain_xla_give_the_same_tokens(without_kernel, monkeypatch):
    """One device with and without a compiler, and meshes that split the bytes."""
    wanted = None
    for devices, mesh in [(1, (1, 1)), (4, (1, 4)), (8, (2, 4))]:
        config = EngineConfig(**{**vars(CONFIG), "mesh": mesh})
        engine = tiny_engine(config, devices=jax.devices()[:devices])
        tokens = generate(engine, request((5, 17, 99, 3), max_tokens=40))
        engine.stop()
        wanted = wanted or tokens
        assert tokens == wanted
    monkeypatch.undo()
    engine = tiny_engine(CONFIG)
    assert generate(engine, request((5, 17, 99, 3), max_tokens=40)) == wanted
    engine.stop()


def test_a_seed_gives_the_same_tokens_in_any_company():
    """Bytes of one row do not depend on the rows beside it."""
    engine = tiny_engine(CONFIG)
    sampled = {"temperature": 1.5, "max_tokens": 30, "seed": 3}
    alone = generate(engine, request((1, 2, 3), **sampled))
    other = submit(engine, request((9, 9), request_id="other", max_tokens=10**6))
    assert generate(engine, request((1, 2, 3), **sampled)) == alone
    engine.cancel("other")
    collect(other)
    engine.stop()


@pytest.mark.embedded
def test_quality_is_that_of_full_weights(embedded_gguf):
    """Teacher-forced over texts, code and seven languages: 95% of greedy tokens, 2% of perplexity."""
    full, quantized = _scores("full"), _scores("int8")
    agree, loss = [], []
    for ids, one, other in zip(*full, quantized[1], strict=True):
        agree += (one.argmax(-1) == other.argmax(-1)).tolist()
        for row, (a, b) in enumerate(zip(one, other, strict=True)):
            token = ids[row + 1]
            loss.append(log_probabilities(a)[token] - log_probabilities(b)[token])
    assert np.mean(agree) >= 0.95
    assert np.exp(np.mean(loss)) <= 1.02


def _scores(weights: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of every golden stream, and the logits after each token but the last."""
    files = resolve_model("smollm2-135m-instruct")
    placer = make_placer(files.config, EngineConfig(weights=weights), jax.devices()[:1])
    held = load_weights(files, placer, quiet=True)
    score = jax.jit(functools.partial(steps.prompt_logits, files.config))
    every_ids, every_logits = [], []
    for stream in streams("smollm2").values():
        ids = np.array(stream.prompt_ids + stream.generated_ids, np.int32)
        padded = np.zeros(PADDED, np.int32)
        padded[: len(ids)] = ids
        every_ids.append(ids)
        every_logits.append(np.asarray(score(held, padded)[: len(ids) - 1]))
    return every_ids, every_logits
