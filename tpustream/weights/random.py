"""Random weights for any shape, made where they stay: for benchmarks and tests without a download.

The same seed gives the same weights on any number of devices and in any order of parameters.
"""

import functools
import zlib

import jax
import jax.numpy as jnp

from tpustream.core.params import ParamSpec


def random_param(
    name: str, spec: ParamSpec, dtype: jnp.dtype, sharding: jax.sharding.Sharding | None, *, seed: int = 0
) -> jax.Array:
    """One parameter: ones for a norm, else normal with variance 1 / fan-in (LeCun et al. 1998)."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    deviation = 0.0 if name.endswith(".scale") else spec.shape[-1] ** -0.5
    mean = 1.0 if name.endswith(".scale") else 0.0
    return _generator(spec.shape, jnp.dtype(dtype), sharding)(key, mean, deviation)


@functools.lru_cache(maxsize=64)
def _generator(shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.Sharding | None):
    """Compiled once a shape: the layers of a model share a handful."""

    def generate(key: jax.Array, mean: jax.Array, deviation: jax.Array) -> jax.Array:
        return (mean + deviation * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return jax.jit(generate, out_shardings=sharding)
