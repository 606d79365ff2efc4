"""Ring index rules against a growing list."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.ring import ListCache
from tpustream.ops.ring import RingLayout

layouts = st.sampled_from([1, 2, 3, 7, 23]).flatmap(
    lambda columns: st.tuples(st.just(columns), st.integers(0, columns - 1), st.integers(0, 5 * columns))
)


@given(layouts)
def test_columns_hold_what_a_growing_list_shows(case):
    """After any number of tokens the cache holds the sinks and the newest, at the right columns."""
    columns, sinks, length = case
    layout = RingLayout(columns=columns, sinks=sinks)
    written = np.full(columns, -1)
    for position in range(length):
        written[int(layout.column(np.int32(position)))] = position
    np.testing.assert_array_equal(layout.held_positions(np.int32(length)), written)


@given(layouts)
def test_a_new_token_sees_what_the_list_shows_beside_itself(case):
    """Visibility before the write, plus the token itself, is what the reference shows after it."""
    columns, sinks, length = case
    layout, cache = RingLayout(columns=columns, sinks=sinks), ListCache(columns, sinks)
    for position in range(length + 1):
        cache.append(position, position)
    held = np.asarray(layout.held_positions(np.int32(length)))
    seen = held[np.asarray(layout.visible(np.int32(length)))].tolist()
    assert [*sorted(seen), length] == [position for position, _ in cache.visible()]


def test_a_window_is_a_ring_without_sinks():
    """A local layer's ring of W shows the last W tokens."""
    layout, cache = RingLayout(columns=5, sinks=0), ListCache(64, 4, window=5)
    for position in range(23):
        held = np.asarray(layout.held_positions(np.int32(position)))
        cache.append(position, None)
        seen = {*held[np.asarray(layout.visible(np.int32(position)))].tolist(), position}
        assert seen == {p for p, _ in cache.visible()}


def test_sinks_are_never_farther_than_the_cache_is_long():
    """The query of sinks stops at the last column (StreamingLLM's in-cache distance)."""
    layout = RingLayout(columns=8, sinks=2)
    positions = np.arange(20, dtype=np.int32)
    np.testing.assert_array_equal(layout.sink_query_position(positions), np.minimum(positions, 7))
