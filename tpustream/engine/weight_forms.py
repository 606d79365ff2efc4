"""How a parameter is held on the devices: in full, as bytes, or as bytes packed for the CPU kernel.

One place says which parameters are quantized and what becomes of them; the loader makes them, the
placer describes them, and the model multiplies with whatever it finds (ops/project.py).
"""

import dataclasses
import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpustream.core.params import ParamSpec
from tpustream.model.sharding import ShardingRules
from tpustream.ops.cpu.packed import PackedWeight, pack, packed_shapes
from tpustream.ops.int8.parts import WeightParts, part_count
from tpustream.ops.int8.quantize import Int8Weight, quantize

Param = jax.Array | Int8Weight | PackedWeight | WeightParts
HEADS = ("embed.table", "head.kernel")  # the output head, tied or not


class WeightForm(enum.Enum):
    """FULL: the engine's dtype. INT8: Int8Weight. PACKED: PackedWeight."""

    FULL = "full"
    INT8 = "int8"
    PACKED = "packed"


def resolve_form(weights: str, *, platform: str, kernels: bool) -> WeightForm:
    """What EngineConfig.weights means on "cpu", "gpu" or "tpu".

    Args:
      kernels: whether steps may call those of ops/cpu.
    """
    if weights == "full" or (weights == "auto" and platform != "cpu"):
        return WeightForm.FULL
    return WeightForm.PACKED if kernels else WeightForm.INT8


def is_quantized(name: str, spec: ParamSpec, *, tied: bool) -> bool:
    """Whether the parameter is a matrix that a step multiplies with.

    Norms and biases stay as they are, and so does an embedding that is only looked up.
    """
    return not spec.keep_float32 and (tied or name != "embed.table")


def quantized(name: str, array: jax.Array, spec: ParamSpec, form: WeightForm) -> Param:
    """A loaded parameter as bytes, on the host."""

    def held(array: np.ndarray) -> Param:
        weight = quantize(array)
        return pack(weight) if form is WeightForm.PACKED else weight

    array = np.asarray(array)
    if name not in HEADS:
        return held(array)
    return WeightParts(parts=tuple(map(held, np.split(array, part_count(array.shape[-1]), axis=-1))))


def abstract(name: str, spec: ParamSpec, form: WeightForm, rules: ShardingRules, mesh: Mesh) -> Param:
    """Shapes and shardings of what `quantized` gives.

    A flattened axis is split as the first of its axes is: blocks of heads stay whole.
    """
    if name not in HEADS:
        return _abstract(spec, form, rules, mesh)
    count = part_count(spec.shape[-1])
    part = dataclasses.replace(spec, shape=(*spec.shape[:-1], spec.shape[-1] // count))
    return WeightParts(parts=(_abstract(part, form, rules, mesh),) * count)


def _abstract(spec: ParamSpec, form: WeightForm, rules: ShardingRules, mesh: Mesh) -> Param:
    *outer, inputs = spec.shape
    if form is WeightForm.PACKED:
        whole = NamedSharding(mesh, PartitionSpec())
        panels, scale = packed_shapes(math.prod(outer), inputs)
        return PackedWeight(
            bytes=jax.ShapeDtypeStruct(panels, jnp.uint8, sharding=whole),
            scale=jax.ShapeDtypeStruct(scale, jnp.float32, sharding=whole),
            outer=tuple(outer),
            inputs=inputs,
        )
    split = rules.spec(spec.axes, spec.shape, mesh)
    of_outer, of_inner = split[0], split[-1]
    values, scale = NamedSharding(mesh, PartitionSpec(of_outer, of_inner)), PartitionSpec(of_outer)
    return Int8Weight(
        values=jax.ShapeDtypeStruct((math.prod(outer), inputs), jnp.int8, sharding=values),
        scale=jax.ShapeDtypeStruct((math.prod(outer),), jnp.float32, sharding=NamedSharding(mesh, scale)),
        outer=tuple(outer),
    )
