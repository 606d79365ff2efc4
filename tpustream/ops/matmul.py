"""The one product of float arrays: what it accumulates in, and how exactly."""

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
