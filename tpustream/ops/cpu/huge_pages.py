"""Memory in pages of 2 MB for what every step reads, on Linux.

In pages of 4 kB a read of all weights looks up an address for every 64 cache lines, and each row of keys lies
in a page of its own. All of it is advice: where the system does not take it, nothing changes but time.
"""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterable

import jax
import numpy as np

PAGE = 1 << 21
LINE = 64  # bytes; XLA takes host memory as it is where an array begins at such a multiple
BLOCK = 16 * PAGE
COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1: now, where MADV_HUGEPAGE alone leaves it to a background thread
ON_LINUX = sys.platform == "linux"


class HugePages:
    """Room for arrays side by side; a block of it is given back when none of its arrays is left."""

    def __init__(self):
        self._block = np.empty(0, np.uint8)

    def hold(self, array: np.ndarray) -> np.ndarray:
        """A copy of the array in this room, at a whole cache line; elsewhere than on Linux the array."""
        if not ON_LINUX:
            return array
        size = -(-array.nbytes // LINE) * LINE
        if size > len(self._block):
            self._block = _block(max(BLOCK, -(-size // PAGE) * PAGE))
        room, self._block = self._block[:size], self._block[size:]
        held = room[: array.nbytes].view(array.dtype).reshape(array.shape)
        held[...] = array
        return held


def move_to_huge_pages(arrays: Iterable[jax.Array]) -> None:
    """Puts the whole pages of these arrays, all on one CPU device, into large ones; their values stay."""
    if not ON_LINUX:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for array in arrays:
        start, end = array.unsafe_buffer_pointer(), array.unsafe_buffer_pointer() + array.nbytes
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        for advice in (mmap.MADV_HUGEPAGE, COLLAPSE) if first < last else ():
            madvise(first, last - first, advice)


def _block(size: int) -> np.ndarray:
    """Bytes of fresh memory that begin at a whole page."""
    memory = mmap.mmap(
        -1, size + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # shared memory has no large ones
    with contextlib.suppress(OSError):  # a system without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    return whole[-whole.ctypes.data % PAGE :][:size]
