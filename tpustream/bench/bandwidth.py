"""The memory bandwidth that a matrix-vector product sees: the ceiling of a decode step."""

import time

import jax
import jax.numpy as jnp

ROWS, COLUMNS = 32_768, 4_096  # 512 MiB in float32: far beyond any cache
REPEATS = 7


def read_bandwidth(device: jax.Device | None = None) -> float:
    """Bytes a second read by a float32 matrix-vector product, best of several runs."""
    with jax.default_device(device):
        matrix, vector = jnp.ones((ROWS, COLUMNS)), jnp.ones((COLUMNS,))
        product = jax.jit(lambda m, v: m @ v)
        product(matrix, vector).block_until_ready()
        best = min(_seconds(product, matrix, vector) for _ in range(REPEATS))
    return matrix.nbytes / best


def _seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments).block_until_ready()
    return time.perf_counter() - start
