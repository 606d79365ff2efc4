"""Attention over chunks of a prompt against the naive reference."""

import jax
import numpy as np
import pytest

from tests.reference.attention import attend
from tpustream.ops.attention import causal_attention

T, N, K, H = 23, 6, 2, 4
STALE = 1e4  # what lies in the prefix beyond its length


@pytest.mark.parametrize("start", [0, 1, 7, 22])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 64])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_chunk_equals_the_reference(start, window, softcap):
    """Each query sees itself and the tokens of its window before it, in the chunk and in the past."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((T, heads, H), np.float32) for heads in (N, K, K))
    past_k, past_v = k.copy(), v.copy()
    past_k[start:], past_v[start:] = STALE, STALE
    if start == 0:
        past_k, past_v = past_k[:0], past_v[:0]
    got = jax.jit(causal_attention, static_argnames=("scale", "softcap", "window"))(
        q[start:],
        k[start:],
        v[start:],
        past_k.transpose(1, 2, 0),
        past_v.transpose(1, 0, 2),
        np.int32(start),
        scale=0.7,
        softcap=softcap,
        window=window,
    )
    for position in range(start, T):
        first = 0 if window is None else max(0, position - window + 1)
        columns = [(p, k[p], v[p]) for p in range(first, position + 1)]
        frequencies = np.zeros(H // 2)  # rotation is not this function's part
        wanted = attend(
            q[position], columns, position=position, frequencies=frequencies, scale=0.7, softcap=softcap
        )
        np.testing.assert_allclose(got[position - start], wanted, atol=2e-6)
