"""Long prompts beside streams that run: smaller turns, the same bits."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from tests.tiny import TINY, collect, request, submit, tiny_engine, tiny_files
from tpustream.config import EngineConfig
from tpustream.core.plan import Placement
from tpustream.core.request import TokenEvent
from tpustream.engine.chunks import cut, split
from tpustream.engine.prefix_cache import PrefixCache
from tpustream.ops.cpu import build
from tpustream.weights.cache import cache_folder

# What the kernels take: attention with heads of whole vectors, and weights as bytes.
MODEL = dataclasses.replace(TINY, head_dim=16)
CONFIG = EngineConfig(slots=2, ring_length=512, emitter="transfer", weights="int8")
PROMPT = tuple(int(token) for token in np.random.default_rng(0).integers(0, TINY.vocab_size, 300))


@pytest.fixture(scope="module")
def engine():
    """Two slots, on the CPU kernels."""
    if not build.available(cache_folder() / "kernels"):
        pytest.skip("the kernels cannot be built here")
    built = tiny_engine(CONFIG, files=dataclasses.replace(tiny_files(), config=MODEL))
    yield built
    built.stop()


@pytest.fixture
def buckets(engine, monkeypatch) -> Counter:
    """How often prefill ran with each bucket."""
    counts, mine = Counter(), engine._prefiller._steps

    def counted(bucket, step):
        def call(*arguments):
            counts[bucket] += 1
            return step(*arguments)

        return call

    prefill = {(b, p): counted(b, step) for (b, p), step in mine.prefill.items()}
    monkeypatch.setattr(engine._prefiller, "_steps", dataclasses.replace(mine, prefill=prefill))
    return counts


def test_beside_a_stream_a_prompt_takes_small_turns_and_keeps_its_bits(engine, buckets, monkeypatch):
    """A stream waits for 32 tokens of a prompt at most; the prompt's own stream notices nothing."""
    wanted = request(PROMPT, "alone", max_tokens=12, logprobs=3, seed=1, temperature=1.2)
    alone, _ = collect(submit(engine, wanted))
    assert buckets == {128: 2, 64: 1}
    buckets.clear()
    fresh = PrefixCache(
        block=64, device_blocks=8, host_blocks=0, to_host=lambda block: block, to_device=lambda block: block
    )
    monkeypatch.setattr(engine._prefiller, "cache", fresh)
    other = submit(engine, request((1, 2, 3), "other", max_tokens=10**6))
    other.get(timeout=60)
    beside, _ = collect(submit(engine, dataclasses.replace(wanted, id="beside")))
    assert buckets[32] >= 10 and not buckets[64] and not buckets[128]
    again, _ = collect(submit(engine, dataclasses.replace(wanted, id="again")))
    assert fresh.stats.hits == 4  # blocks of 64 that the pieces left

    def said(events: list[TokenEvent]) -> list[tuple]:
        return [(event.token, event.logprobs, event.finish) for event in events]

    assert said(beside) == said(again) == said(alone)
    engine.cancel("other")
    collect(other)


@pytest.mark.parametrize("length", [1, 2, 33, 129, 300])
def test_pieces_cover_a_prompt_once(length):
    """Each token in one piece, in order, within the room of the prefix."""
    placement = Placement(request=request(PROMPT[:length]), slot=0, epoch=0)
    chunks = list(cut(placement, CONFIG))
    pieces = [piece for chunk in chunks for piece in split(chunk, 32, CONFIG)]
    assert np.concatenate([piece.tokens()[: piece.count] for piece in pieces]).tolist() == list(
        PROMPT[: length - 1]
    )
    assert all(piece.start + piece.bucket <= CONFIG.prefix_length for piece in pieces)
