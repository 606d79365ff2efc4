"""The kernel's product as a jax function, for use inside jit on one CPU device.

Only after build.available() said yes: without it XLA does not know the target and says so. A custom
call cannot be split over a mesh: with more than one device, keep Int8Weight and the XLA path.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpustream.ops.int8.cpu_kernel.packed import PackedWeight
from tpustream.ops.int8.xla import flat_rows


def matmul(x: Float[Array, "rows *i"], weight: PackedWeight) -> Float[Array, "rows *o"]:
    """x times the weight, float32: the same bits as xla.matmul in its dynamic form.

    Raises ValueError for inputs that do not fit.
    """
    flat = flat_rows(x, weight.inputs).astype(jnp.float32)
    outputs = math.prod(weight.outer)
    result = jax.ShapeDtypeStruct((flat.shape[0], outputs), jnp.float32)
    out = jax.ffi.ffi_call("tpustream_int8_matmul", result)(flat, weight.bytes, weight.scale)
    return out.reshape(-1, *weight.outer)
