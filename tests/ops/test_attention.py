"""Attention over a prompt against the naive reference, block borders included."""

import jax
import numpy as np
import pytest

from tests.reference.attention import attend
from tpustream.ops import attention

T, N, K, H = 23, 6, 2, 4


@pytest.mark.parametrize("block", [1, 5, 8, 23, 64])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 64])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_prompt_attention_equals_the_reference(block, window, softcap, monkeypatch):
    """Any block size and window: each query sees itself and the tokens of its window before it."""
    monkeypatch.setattr(attention, "MIN_QUERY_BLOCK", block)
    monkeypatch.setattr(attention, "MAX_QUERY_BLOCKS", T)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((T, heads, H), np.float32) for heads in (N, K, K))
    got = jax.jit(attention.causal_attention, static_argnames=("scale", "softcap", "window"))(
        q, k, v, scale=0.7, softcap=softcap, window=window
    )
    for position in range(T):
        first = 0 if window is None else max(0, position - window + 1)
        columns = [(p, k[p], v[p]) for p in range(first, position + 1)]
        frequencies = np.zeros(H // 2)  # rotation is not this function's part
        wanted = attend(
            q[position], columns, position=position, frequencies=frequencies, scale=0.7, softcap=softcap
        )
        np.testing.assert_allclose(got[position], wanted, atol=2e-6)
