"""Several short prompts in one call of prefill: the weights are read once for all of them.

Rows of all prompts meet the weights together. Each prompt attends to its own rows alone, in the shapes
that it would have alone, so that it gets the same bits; `packing_check` sees to it that it does.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from tpustream.config import ModelConfig
from tpustream.engine.state import Prefix, Weights
from tpustream.model.decoder import bind
from tpustream.ops.attention import causal_attention
from tpustream.ops.rope import rotate, rotation_at


def prefill_packed(
    model: ModelConfig, weights: Weights, prefix: Prefix, tokens: Int32[Array, "S T"]
) -> tuple[Prefix, tuple[Bool[Array, ""], ...]]:
    """A workspace with S whole prompts side by side, and of each whether all its numbers are finite.

    Args:
      prefix: gives its memory; what it holds is lost.
      tokens: a prompt a row, padded with any valid id; what follows a prompt is never seen by it.

    Returns:
      Prompt s in positions s T to (s + 1) T of k and v. `length` and `finite` are for the caller to
      set, before it inserts the prompts one by one.
    """
    prompts, rows = tokens.shape
    decoder = bind(model, weights.params, prefix.k[0].dtype)
    position = jnp.tile(jnp.arange(rows, dtype=jnp.int32), prompts)
    rotations = {kind: rotation_at(table, position) for kind, table in weights.rope.items()}
    no_past = (prefix.k[0][:, :, :0], prefix.v[0][:, :0], jnp.zeros((), jnp.int32))
    x = decoder.embedded(tokens.reshape(-1))
    keys, values, finite = [], [], jnp.ones(prompts, bool)
    for index, layer in enumerate(decoder.layers):
        rotation, window = rotations[model.layer_kind(index)], model.layer_window(index)

        def attend(q, k, v, index=index, rotation=rotation, window=window):
            all_k, all_v = prefix.k[index], prefix.v[index]
            k, v = rotate(k, rotation).astype(all_k.dtype), v.astype(all_v.dtype)
            one = functools.partial(
                causal_attention, scale=model.score_scale, softcap=model.attn_softcap, window=window
            )
            q, k, v = (each.reshape(prompts, rows, *each.shape[1:]) for each in (rotate(q, rotation), k, v))
            out = jax.vmap(lambda q, k, v: one(q, k, v, *no_past))(q, k, v)
            # As in `prefill_rows`: what is not finite stays out, and the flag remembers it.
            finite = jnp.isfinite(out).all(axis=(1, 2, 3))
            k, v = (
                jnp.where(finite[:, None, None, None], new, 0).reshape(-1, *new.shape[2:]) for new in (k, v)
            )
            all_k = jax.lax.dynamic_update_slice_in_dim(all_k, k.transpose(1, 2, 0), 0, axis=2)
            all_v = jax.lax.dynamic_update_slice_in_dim(all_v, v.transpose(1, 0, 2), 0, axis=1)
            return out.reshape(-1, *out.shape[2:]), (all_k, all_v, finite)

        x, (k, v, layer_finite) = layer(x, attend)
        keys.append(k)
        values.append(v)
        finite &= layer_finite
    packed = Prefix(k=tuple(keys), v=tuple(values), length=prefix.length, finite=prefix.finite)
    return packed, tuple(finite)
