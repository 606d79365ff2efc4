"""Attention in plain XLA: causal over a prompt, and one token over a ring. The path that always is.

Query heads are grouped over key-value heads: N = K * G. Scores and softmax are float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from tpustream.ops.matmul import einsum


def causal_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    past_k: Float[Array, "K H P"],
    past_v: Float[Array, "K P H"],
    start: Int32[Array, ""],
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Float[Array, "T N H"]:
    """A chunk of a prompt: every token sees itself and what came before, at most `window` in all.

    Args:
      q, k, v: of positions start..start+T, rotated.
      past_k, past_v: of positions 0..P; those from `start` on are not seen. P may be 0.
      start: position of the chunk's first token, at most P.
    """
    rows, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    # Heads lead and a group's queries are joined: one plain product a kv head, fast everywhere.
    joined = q.reshape(rows, kv_heads, -1, head_dim).transpose(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)

    def scores_of(keys: Float[Array, "K H S"], distance: Int32[Array, "T S"]) -> Float[Array, "K G T S"]:
        scores = einsum("kth,khs->kts", joined, keys, out_dtype=jnp.float32)
        scores = _capped(scores.reshape(kv_heads, -1, rows, keys.shape[-1]) * scale, softcap)
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return jnp.where(seen, scores, -jnp.inf)

    def weighted(scores: Float[Array, "K G T S"], values: Float[Array, "K S H"]) -> Float[Array, "K G T H"]:
        flat = scores.reshape(kv_heads, -1, scores.shape[-1]).astype(values.dtype)
        out = einsum("kts,ksh->kth", flat, values, out_dtype=jnp.float32)
        return out.reshape(kv_heads, -1, rows, head_dim)

    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    own = scores_of(k.transpose(1, 2, 0), row - jnp.arange(rows, dtype=jnp.int32))
    peak = own.max(axis=-1, keepdims=True)
    past_length = past_k.shape[-1]
    if past_length:
        position = jnp.arange(past_length, dtype=jnp.int32)
        # Positions of this chunk and later ones are stale or empty there: farther than any window.
        distance = jnp.where(position < start, start + row - position, -1)
        past = scores_of(past_k, distance)
        peak = jnp.maximum(peak, past.max(axis=-1, keepdims=True))
    own = jnp.exp(own - peak)
    total = own.sum(axis=-1)
    out = weighted(own, v.transpose(1, 0, 2))
    if past_length:
        past = jnp.exp(past - peak)
        total = total + past.sum(axis=-1)
        out = out + weighted(past, past_v)
    out = out / total[..., None]
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
