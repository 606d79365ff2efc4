"""Projections with an int8 weight, whichever way it is held: what a model calls inside jit.

An Int8Weight takes plain XLA, a PackedWeight the C++ kernel. A loader decides once, with
`use_cpu_kernel`, and packs or does not.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from tpustream.ops.int8 import quantize, xla
from tpustream.ops.int8.cpu_kernel import build, call, packed
from tpustream.ops.int8.cpu_kernel.packed import PackedWeight
from tpustream.ops.int8.quantize import Int8Weight


def use_cpu_kernel(folder: Path, *, platform: str, devices: int) -> bool:
    """Whether weights should be packed for the kernel: one CPU device, and a library that loads.

    Builds it in `folder` where it is not there yet (seconds). Without a compiler: one warning, and no.
    """
    return platform == "cpu" and devices == 1 and build.available(folder)


def project(
    x: Float[Array, "rows *i"], weight: Int8Weight | PackedWeight, *, out_dtype: jnp.dtype
) -> Float[Array, "rows *o"]:
    """Rows of x times a weight [out..., in...], over all axes that x has beside its rows.

    Raises ValueError for inputs that do not fit.
    """
    if isinstance(weight, PackedWeight):
        return _in_two_passes(x, lambda rows: call.matmul(rows, weight)).astype(out_dtype)

    def weight_only(x, weight):
        return xla.matmul(x, weight, form="weight_only", out_dtype=out_dtype)

    def dynamic(x, weight):
        product = functools.partial(xla.matmul, weight=weight, form="dynamic")
        return _in_two_passes(x, product).astype(out_dtype)

    # Decided when the step is lowered for its platform; nothing of the other is compiled.
    on_cpu = dynamic if xla.choose_form(x.shape[0], "cpu") == "dynamic" else weight_only
    return jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=weight_only)


def _in_two_passes(x: Float[Array, "rows *i"], product: Callable[[Array], Array]) -> Float[Array, "rows *o"]:
    """A product that turns rows into bytes, of the rows and of what their rounding leaves: 15 bits.

    One pass alone costs a model of 135M parameters 5% of perplexity and one greedy token in ten: a few
    large activations set the scale of their whole row (LLM.int8(), section 3). Both passes are rows of
    one call, which reads the weight once.
    """
    rows = x.shape[0]
    x = x.reshape(rows, -1).astype(jnp.float32)
    values, scale = quantize.quantize_rows(x)
    rest = x - values.astype(jnp.float32) * scale[:, None]
    out = product(jnp.concatenate([x, rest]))
    return out[:rows] + out[rows:]


def take_rows(weight: Int8Weight | PackedWeight, index: Int32[Array, "*b"]) -> Float[Array, "*b in"]:
    """Output channels by number, float32: the embedding of tokens, from the table that is the head too."""
    rows = packed.take_rows if isinstance(weight, PackedWeight) else quantize.take_rows
    return rows(weight, index)
