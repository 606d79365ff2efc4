"""What both kernels compute with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(
    x: Float[Array, "..."], y: Float[Array, "..."], *, contract: tuple[int, int], batch: bool = False
) -> Float[Array, "..."]:
    """Of two matrices, or of as many pairs as the first axes have; float32, in full where operands are.

    Args:
      contract: the axis of x and that of y that are summed over.
    """
    exact = x.dtype == jnp.float32
    axes = ((0,), (0,)) if batch else ((), ())
    return jax.lax.dot_general(
        x,
        y,
        (((contract[0],), (contract[1],)), axes),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def capped(scores: Float[Array, "..."], softcap: float | None) -> Float[Array, "..."]:
    """Gemma 2's soft cap: cap * tanh(x / cap)."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)
