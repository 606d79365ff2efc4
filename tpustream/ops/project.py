"""Projections with a weight, however it is held: what the decoder calls."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from tpustream.ops.int8 import project as int8
from tpustream.ops.int8.cpu_kernel.packed import PackedWeight
from tpustream.ops.int8.quantize import Int8Weight
from tpustream.ops.matmul import einsum

Weight = Float[Array, "..."] | Int8Weight | PackedWeight


def project(x: Float[Array, "rows *i"], w: Weight, *, out_dtype: jnp.dtype) -> Float[Array, "rows *o"]:
    """Rows of x times a weight stored [out..., in...], over all axes that x has beside its rows.

    Axes are flattened first: XLA:CPU transposes a weight of three axes at every call.
    """
    if not isinstance(w, jax.Array):
        return int8.project(x, w, out_dtype=out_dtype)
    inner = math.prod(x.shape[1:])
    outer = w.shape[: w.ndim - (x.ndim - 1)]
    flat = einsum("ri,oi->ro", x.reshape(-1, inner), w.reshape(-1, inner), out_dtype=out_dtype)
    return flat.reshape(-1, *outer)


def take_rows(w: Weight, index: Int32[Array, "rows"], *, dtype: jnp.dtype) -> Float[Array, "rows D"]:
    """Rows of an embedding table [V, D]."""
    return w[index] if isinstance(w, jax.Array) else int8.take_rows(w, index).astype(dtype)
