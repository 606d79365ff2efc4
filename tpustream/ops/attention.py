"""Attention in plain XLA: causal over a prompt, and one token over a ring. The path that always is.

Query heads are grouped over key-value heads: N = K * G. Scores and softmax are float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from tpustream.ops.matmul import einsum

MIN_QUERY_BLOCK = 512  # rows of scores alive at a time in prefill
MAX_QUERY_BLOCKS = 8  # each is unrolled, so they cost compile time


def causal_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Float[Array, "T N H"]:
    """Every token sees itself and what came before, at most `window` tokens in all.

    Blocks of queries meet only the keys that some of them see.
    """
    length = q.shape[0]
    size = max(MIN_QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        oldest = 0 if window is None else max(0, start - window + 1)
        seen = _distance(start, stop, oldest)
        seen = (seen >= 0) if window is None else (seen >= 0) & (seen < window)
        keys, values = k[oldest:stop], v[oldest:stop]
        blocks.append(_block_attention(q[start:stop], keys, values, seen, scale=scale, softcap=softcap))
    return jnp.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def _distance(start: int, stop: int, oldest: int) -> Int32[Array, "t s"]:
    """Tokens from each key, positions oldest..stop, to each query, positions start..stop."""
    return jnp.arange(start, stop, dtype=jnp.int32)[:, None] - jnp.arange(oldest, stop, dtype=jnp.int32)


def _block_attention(q, k, v, seen, *, scale, softcap):
    """Heads lead and a group's queries are joined: one plain product a kv head, fast everywhere."""
    rows, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    joined = q.reshape(rows, kv_heads, -1, head_dim).transpose(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
    scores = einsum("kth,khs->kts", joined, k.transpose(1, 2, 0), out_dtype=jnp.float32)
    scores = scores.reshape(kv_heads, -1, rows, k.shape[0])
    scores = jnp.where(seen, _capped(scores * scale, softcap), -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1)
    weights = weights.reshape(kv_heads, -1, k.shape[0]).astype(v.dtype)
    out = einsum("kts,ksh->kth", weights, v.transpose(1, 0, 2), out_dtype=jnp.float32)
    out = out.reshape(kv_heads, -1, rows, head_dim) / total[..., None]
    return out.transpose(2, 0, 1, 3).reshape(rows, heads, head_dim).astype(q.dtype)


def ring_attention(
    q: Float[Array, "B N H"],
    q_sink: Float[Array, "B N H"],
    k_new: Float[Array, "B K H"],
    v_new: Float[Array, "B K H"],
    cache_k: Float[Array, "B K H S"],
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

    scores = einsum("bkgh,bkhs->bkgs", grouped(q), cache_k, out_dtype=jnp.float32)
    if sinks:
        of_sinks = einsum("bkgh,bkhs->bkgs", grouped(q_sink), cache_k[..., :sinks], out_dtype=jnp.float32)
        scores = jnp.concatenate([of_sinks, scores[..., sinks:]], axis=-1)
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
