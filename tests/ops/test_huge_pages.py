"""Memory in large pages: the numbers stay what they are, whatever the system makes of the advice."""

import jax.numpy as jnp
import numpy as np

from tpustream.ops.cpu import huge_pages
from tpustream.ops.cpu.huge_pages import LINE, HugePages, move_to_huge_pages


def test_what_is_held_is_a_copy_at_a_cache_line(monkeypatch):
    """Arrays side by side, and one larger than a block: none runs into the next."""
    monkeypatch.setattr(huge_pages, "BLOCK", huge_pages.PAGE)
    pages, rng = HugePages(), np.random.default_rng(0)
    shapes = [(3, 5), (700, 1000), (0, 4), (1, 1), (900, 700)]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    held = [pages.hold(array) for array in arrays]
    for ours, theirs in zip(held, arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
        if huge_pages.ON_LINUX:
            assert ours.ctypes.data % LINE == 0 and not np.shares_memory(ours, theirs)


def test_what_is_moved_keeps_its_values():
    """Arrays of many pages, of one, and of none that is whole."""
    arrays = [jnp.arange(count, dtype=jnp.int32) for count in (3, 1 << 19, 3 << 19)]
    move_to_huge_pages(arrays)
    for array in arrays:
        np.testing.assert_array_equal(array, np.arange(array.size))
