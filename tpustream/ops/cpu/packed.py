"""Int8Weight in the order in which the kernel reads it, front to back.

    bytes[panel, quad, lane, i] = values[32 * panel + lane, 4 * quad + i] + 128

One instruction multiplies 16 channels by 4 inputs each, so a panel's bytes are one straight read.
The offset of 128 is there because that instruction wants one unsigned operand (dot.h).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from tpustream.ops.int8.quantize import Int8Weight

PANEL = 32  # output channels of a panel
QUAD = 4  # inputs that one instruction sums
INPUT_MULTIPLE = 64  # inputs are padded to it
OFFSET = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """A weight [out..., in...] in panels; a pytree of two arrays.

    Attributes:
      bytes: weights plus 128, padding included.
      scale: of each output, zero where padding is.
      outer: sizes of the weight's output axes.
      inputs: `in` without padding.
    """

    bytes: UInt8[Array, "panels quads 32 4"]
    scale: Float[Array, "32*panels"]
    outer: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    inputs: int = dataclasses.field(metadata={"static": True})


def packed_shapes(outputs: int, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `bytes` and `scale` of a packed weight [outputs, inputs]."""
    panels, padded = -(-outputs // PANEL), -(-inputs // INPUT_MULTIPLE) * INPUT_MULTIPLE
    return (panels, padded // QUAD, PANEL, QUAD), (panels * PANEL,)


def pack(weight: Int8Weight) -> PackedWeight:
    """The weight in panels, on the host (numpy)."""
    values, scale = _padded(weight)
    inputs = weight.values.shape[1]
    return PackedWeight(bytes=_panels(values), scale=scale, outer=weight.outer, inputs=inputs)


def unpack(packed: PackedWeight) -> Int8Weight:
    """What `pack` was given."""
    panels, quads = packed.bytes.shape[:2]
    flat = np.asarray(packed.bytes).transpose(0, 2, 1, 3).reshape(panels * PANEL, quads * QUAD)
    outputs = math.prod(packed.outer)
    values = (flat[:outputs, : packed.inputs] ^ OFFSET).view(np.int8)
    return Int8Weight(values=values, scale=np.asarray(packed.scale)[:outputs], outer=packed.outer)


def take_rows(packed: PackedWeight, index: Int32[Array, "*b"]) -> Float[Array, "*b in"]:
    """Output channels by number, float32, inside jit: the embedding of tokens where the table is packed."""
    channel = packed.bytes[index // PANEL, :, index % PANEL]
    values = channel.reshape(*index.shape, -1)[..., : packed.inputs].astype(jnp.float32) - OFFSET
    return values * packed.scale[index][..., None]


def _padded(weight: Int8Weight) -> tuple[np.ndarray, np.ndarray]:
    """Values and scale with zeros up to whole panels, and to a multiple of INPUT_MULTIPLE inputs."""
    values, scale = np.asarray(weight.values), np.asarray(weight.scale, np.float32)
    more_outputs, more_inputs = -values.shape[0] % PANEL, -values.shape[1] % INPUT_MULTIPLE
    return np.pad(values, ((0, more_outputs), (0, more_inputs))), np.pad(scale, (0, more_outputs))


def _panels(values: np.ndarray) -> np.ndarray:
    # A quad moves as one number of four bytes, twelve times faster than byte by byte.
    quads = (values.view(np.uint8) ^ np.uint8(OFFSET)).view(np.uint32)
    panels = quads.reshape(-1, PANEL, quads.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(panels).view(np.uint8).reshape(*panels.shape, QUAD)
