"""What is told of decode steps: how many, how full, how long, and how many bytes at least."""

import jax
import jax.numpy as jnp
import pytest

from tests.tiny import TINY
from tpustream.config import EngineConfig
from tpustream.engine.state import cache_bytes, empty_state, position_bytes
from tpustream.engine.step_meter import StepBytes, StepMeter

BYTES = StepBytes(weights=1000, positions={8: 3, 4: 10})


class Hand:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def test_bytes_of_a_slot():
    """Layers with a short ring hold no more than it."""
    assert BYTES.cache(2) == 2 * 3 + 2 * 10
    assert BYTES.cache(6) == 6 * 3 + 4 * 10
    assert BYTES.cache(100) == BYTES.full_cache == 8 * 3 + 4 * 10


def test_steps_are_timed_from_when_the_device_could_begin():
    """From their dispatch, or from the delivery before: dispatches wait in line behind each other."""
    hand = Hand()
    meter = StepMeter(slots=2, step_bytes=BYTES, clock=hand)
    hand.now = 10.0
    meter.dispatched(1, after_prefill=False)
    hand.now = 10.5
    meter.dispatched(1, after_prefill=False)
    hand.now = 12.0
    meter.delivered(0, [1])
    hand.now = 13.0
    meter.delivered(1, [1, 2])
    hand.now = 50.0  # idle in between: nobody's time
    meter.dispatched(1, after_prefill=False)
    hand.now = 51.0
    meter.delivered(2, [])
    stats = meter.stats([4, 4])
    assert stats.timed_seconds == pytest.approx(2.0 + 1.0 + 1.0)
    assert stats.timed_bytes == 3 * 1000 + 2 * 13 + 26
    assert (stats.decode_steps, stats.decode_rows) == (3, 3)
    assert stats.cache_usage == pytest.approx(2 * (4 * 13) / (2 * (8 * 3 + 4 * 10)))


def test_steps_behind_a_chunk_are_not_timed():
    """The chunk's time is not theirs; the steps of one dispatch share its fate."""
    hand = Hand()
    meter = StepMeter(slots=2, step_bytes=BYTES, clock=hand)
    for steps, after_prefill in ((1, False), (2, True), (3, False)):
        meter.dispatched(steps, after_prefill=after_prefill)
    seen = []
    for step in range(6):
        hand.now += 1.0
        seen.append(meter.after_prefill(step))
        meter.delivered(step, [1])
    assert seen == [False, True, True, False, False, False]
    assert meter.stats([]).timed_seconds == pytest.approx(4.0)
    assert meter.stats([]).decode_steps == 6


@pytest.mark.parametrize("kv", ["full", "int8"])
def test_position_bytes_add_up_to_the_cache(kv):
    """Every column of every layer and slot, scales included."""
    engine = EngineConfig(slots=3, ring_length=64, kv=kv)
    dtype = jnp.dtype("bfloat16")
    positions = position_bytes(TINY, engine, dtype)
    whole = jax.eval_shape(lambda: empty_state(TINY, engine, dtype))
    assert 3 * StepBytes(weights=0, positions=positions).full_cache == cache_bytes(whole)
