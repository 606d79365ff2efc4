"""Rotations against float64, near and a million tokens away."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference.rope import frequencies as reference_frequencies
from tpustream.config import RopeConfig
from tpustream.ops.rope import frequencies, rope_table, rotate, rotation_at

HEAD_DIM = 64
KINDS = {
    "plain": RopeConfig(base=100_000.0),
    "linear": RopeConfig(kind="linear", factor=8.0, base=1e6),
    "llama3": RopeConfig(kind="llama3", factor=8.0, base=500_000.0),
    "yarn": RopeConfig(kind="yarn", factor=4.0, original_context=4096),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 1, 10, 2047, 2048, 131_071, 1_000_010, 2**31 - 1])
def test_angles_are_exact_at_any_position(kind, position):
    """Digits joined by angle addition give float64's cos and sin within float32 rounding."""
    rope = KINDS[kind]
    got = rotation_at(rope_table(rope, HEAD_DIM), jnp.int32(position))
    angle = position * frequencies(rope, HEAD_DIM)
    np.testing.assert_allclose(got.cos, rope.magnitude * np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(got.sin, rope.magnitude * np.sin(angle), atol=1e-6)


def test_attention_is_the_same_a_million_tokens_later():
    """Scores depend on distances alone, at positions around 10 and around 1,000,010."""
    rng = np.random.default_rng(0)
    table = rope_table(KINDS["plain"], HEAD_DIM)
    q, k = (jnp.asarray(rng.standard_normal((11, 1, HEAD_DIM)), jnp.float32) for _ in range(2))

    def scores(start: int) -> np.ndarray:
        rotation = rotation_at(table, start + jnp.arange(11, dtype=jnp.int32))
        return np.einsum("qnh,knh->qk", rotate(q, rotation), rotate(k, rotation))

    np.testing.assert_allclose(scores(1_000_000), scores(0), atol=1e-4)


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(kind="llama3", factor=8.0, original_context=512, low_freq_factor=1, high_freq_factor=4),
        RopeConfig(kind="yarn", factor=4.0, original_context=512, beta_fast=16, truncate=False),
        RopeConfig(kind="yarn", factor=40.0, original_context=4096),
        RopeConfig(kind="linear", factor=3.0),
    ],
)
def test_frequencies_follow_the_papers(rope):
    """Every stretching equals the reference's formula."""
    described = {
        "rope_type": rope.kind,
        "rope_theta": rope.base,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_context,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "truncate": rope.truncate,
    }
    wanted, magnitude = reference_frequencies(described, HEAD_DIM)
    np.testing.assert_allclose(frequencies(rope, HEAD_DIM), wanted, rtol=1e-12)
    assert rope.magnitude == pytest.approx(magnitude)
