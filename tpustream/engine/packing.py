"""One step's results in one array, so that a step costs one transfer. Both directions, side by side.

    i32[B, 6 + 2 n]:  token | epoch | step | finish, emitted | wanted | logprob | ids x n | logprobs x n

Floats travel as their bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from tpustream.core.token_batch import TokenBatch

HEADER = 6
EMITTED = 1 << 8  # a bit above every finish code


def packed_width(top: int) -> int:
    """C, numbers of a row with `top` alternatives."""
    return HEADER + 2 * top


def pack(
    *,
    token: Int32[Array, "B"],
    epoch: Int32[Array, "B"],
    step: Int32[Array, ""],
    finish: Int32[Array, "B"],
    emitted: Bool[Array, "B"],
    wanted: Int32[Array, "B"],
    logprob: Float[Array, "B"],
    top_ids: Int32[Array, "B n"],
    top_logprobs: Float[Array, "B n"],
) -> Int32[Array, "B C"]:
    """On the device."""

    def bits(x):
        return jax.lax.bitcast_convert_type(x, jnp.int32)

    flags = finish | jnp.where(emitted, EMITTED, 0)
    steps = jnp.broadcast_to(step, token.shape)
    header = jnp.stack([token, epoch, steps, flags, wanted, bits(logprob)], axis=-1)
    return jnp.concatenate([header, top_ids, bits(top_logprobs)], axis=-1)


def unpack(packed: np.ndarray) -> TokenBatch:
    """On the host: views of i32[B, C] wherever possible."""
    packed = np.ascontiguousarray(packed)
    top = (packed.shape[1] - HEADER) // 2
    return TokenBatch(
        step=int(packed[0, 2]),
        token=packed[:, 0],
        epoch=packed[:, 1],
        emitted=(packed[:, 3] & EMITTED) != 0,
        finish=packed[:, 3] & ~EMITTED,
        wanted=packed[:, 4],
        logprob=packed.view(np.float32)[:, 5],
        top_ids=packed[:, HEADER : HEADER + top],
        top_logprobs=packed.view(np.float32)[:, HEADER + top :],
    )
