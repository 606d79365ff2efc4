"""Attention in plain XLA: causal over a prompt, and one token over a ring. The path that always is.

Query heads are grouped over key-value heads: N = K * G. Scores and softmax are float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from tpustream.ops.matmul import einsum

QUERY_BLOCK = 512  # rows of scores alive at a time in prefill


def causal_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Float[Array, "T N H"]:
    """Every token sees itself and what came before, at most `window` tokens in all."""
    length = q.shape[0]
    if length <= QUERY_BLOCK or length % QUERY_BLOCK:
        positions = jnp.arange(length, dtype=jnp.int32)
        return _block_attention(q, positions, k, v, scale=scale, softcap=softcap, window=window)

    def block(start: Int32[Array, ""]) -> Float[Array, "b N H"]:
        rows = jax.lax.dynamic_slice_in_dim(q, start, QUERY_BLOCK)
        positions = start + jnp.arange(QUERY_BLOCK, dtype=jnp.int32)
        return _block_attention(rows, positions, k, v, scale=scale, softcap=softcap, window=window)

    out = jax.lax.map(block, jnp.arange(0, length, QUERY_BLOCK, dtype=jnp.int32))
    return out.reshape(q.shape)


def _block_attention(q, positions, k, v, *, scale, softcap, window):
    rows, heads, head_dim = q.shape
    groups = q.reshape(rows, k.shape[1], -1, head_dim)
    scores = einsum("tkgh,skh->kgts", groups, k, out_dtype=jnp.float32)
    distance = positions[:, None] - jnp.arange(k.shape[0], dtype=jnp.int32)
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    weights = jax.nn.softmax(jnp.where(seen, _capped(scores * scale, softcap), -jnp.inf), axis=-1)
    out = einsum("kgts,skh->tkgh", weights.astype(v.dtype), v, out_dtype=v.dtype)
    return out.reshape(rows, heads, head_dim)


def ring_attention(
    q: Float[Array, "B N H"],
    q_sink: Float[Array, "B N H"],
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    cache_k: Float[Array, "B K S H"],
    cache_v: Float[Array, "B K S H"],
    visible: Bool[Array, "B S"],
    *,
    sinks: int,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B N H"]:
    """One new token a slot over the slot's ring and itself. Nothing is written.

    The new token's key and value come apart from the cache: on XLA:CPU a cache that is read first
    and written after needs no copy, one that is written first does.

    Args:
      q: queries rotated at their position, for ring columns and for the new token.
      q_sink: the same queries rotated at RingLayout.sink_query_position, for sink columns.
      visible: columns that the token sees, RingLayout.visible.
    """
    slots, heads, head_dim = q.shape
    kv_heads = k_new.shape[1]

    def grouped(x):
        return x.reshape(slots, kv_heads, heads // kv_heads, head_dim)

    def scores_of(q, keys):
        # The cache on the left: XLA:CPU is three times faster so than with the query there.
        return einsum("bksh,bkgh->bksg", keys, grouped(q), out_dtype=jnp.float32).swapaxes(2, 3)

    scores = scores_of(q, cache_k)
    if sinks:
        scores = jnp.concatenate([scores_of(q_sink, cache_k[:, :, :sinks]), scores[..., sinks:]], axis=-1)
    own = einsum("bkgh,bkh->bkg", grouped(q), k_new, out_dtype=jnp.float32)[..., None]
    scores = jnp.where(visible[:, None, None, :], _capped(scores * scale, softcap), -jnp.inf)
    own = _capped(own * scale, softcap)

    peak = jnp.maximum(scores.max(axis=-1, keepdims=True), own)
    weights, own = jnp.exp(scores - peak), jnp.exp(own - peak)
    total = weights.sum(axis=-1, keepdims=True) + own
    out = einsum("bkgs,bksh->bkgh", weights.astype(cache_v.dtype), cache_v, out_dtype=jnp.float32)
    out = (out + own * v_new[:, :, None, :].astype(jnp.float32)) / total
    return out.reshape(slots, heads, head_dim).astype(q.dtype)


def _capped(scores, softcap):
    """Gemma 2's soft cap: cap * tanh(x / cap)."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)
