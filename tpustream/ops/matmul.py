"""The matrix products of the decoder: what they accumulate in, and how exactly."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def einsum(
    equation: str, x: Float[Array, "..."], w: Float[Array, "..."], *, out_dtype: jnp.dtype
) -> Float[Array, "..."]:
    """`jnp.einsum` that sums in float32 and returns `out_dtype`.

    float32 operands ask for full precision: the default on TPU and GPU would round them to bfloat16
    or TensorFloat-32, and a user who chose float32 chose exactness.
    """
    exact = x.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jnp.einsum(equation, x, w, precision=precision, preferred_element_type=out_dtype)


def project(
    x: Float[Array, "rows *i"], w: Float[Array, "..."], *, out_dtype: jnp.dtype
) -> Float[Array, "rows *o"]:
    """Rows of x times a weight stored [out..., in...], over all axes that x has beside its rows.

    Axes are flattened first: XLA:CPU transposes a weight of three axes at every call.
    """
    inner = math.prod(x.shape[1:])
    outer = w.shape[: w.ndim - (x.ndim - 1)]
    flat = einsum("ri,oi->ro", x.reshape(-1, inner), w.reshape(-1, inner), out_dtype=out_dtype)
    return flat.reshape(-1, *outer)
