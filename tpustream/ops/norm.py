"""Root-mean-square norm, apart or as part of the product that follows it."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowNorm:
    """Root-mean-square norm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + epsilon) * scale.

    Attributes:
      scale: the whole multiplier.
    """

    scale: Float[Array, "D"]
    epsilon: float

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """In float32, given back in the type of x."""
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale).astype(x.dtype)
