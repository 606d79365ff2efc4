"""The kernels over a mesh: every chip runs them on its own slots and kv heads, and nothing is sent.

The only file of this folder that knows meshes.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from tpustream.config import EngineConfig, ModelConfig
from tpustream.ops.ring import layer_layout
from tpustream.ops.tpu import ring_attention
from tpustream.ops.tpu.ring_plan import LANES

HEAD_MULTIPLE = 32  # head dimensions are rows of whole tiles, of bytes too
DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuKernels:
    """The kernels on one mesh.

    Attributes:
      slots, kv_heads: mesh axes that slots and kv heads are split over, heads with their kv head; None
        where they are whole on every chip.
      interpret: run them on CPU devices instead, statement by statement: for tests.
    """

    mesh: Mesh
    slots: str | None
    kv_heads: str | None
    interpret: bool = False

    def ring_attention(
        self,
        q: Float[Array, "B N H"],
        q_sink: Float[Array, "B N H"],
        k_new: Float[Array, "B K H"],
        v_new: Float[Array, "B K H"],
        written: Sequence[Array],
        cache: Sequence[Array],
        visible: Bool[Array, "B S"],
        column: Int32[Array, "B"],
        active: Bool[Array, "B"],
        *,
        sinks: int,
        scale: float,
        softcap: float | None,
    ) -> tuple[Float[Array, "B N H"], tuple[Array, ...]]:
        """ring_attention.ring_attention, each chip with its share. Whether a token is finite, and so
        written, each decides from its own heads.
        """
        cores = 1 if self.interpret else self.mesh.devices.flat[0].num_cores
        local = functools.partial(
            ring_attention.ring_attention,
            sinks=sinks,
            scale=scale,
            softcap=softcap,
            cores=cores,
            interpret=self.interpret,
        )
        of_slot, of_head = PartitionSpec(self.slots), PartitionSpec(self.slots, self.kv_heads)
        call = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(*(of_head,) * 6, *(of_slot,) * 3),
            out_specs=of_head,
            check_vma=False,  # a kernel says nothing of what varies over the mesh
        )
        return call(q, q_sink, k_new, v_new, tuple(written), tuple(cache), visible, column, active)


def refusal(model: ModelConfig, engine: EngineConfig, kernels: TpuKernels, *, dtype: jnp.dtype) -> str | None:
    """Why the kernels cannot serve this model, as "wanted ..., got ..."; None where they can.

    Args:
      dtype: of activations and cache.
    """
    columns = {layer_layout(model, engine, layer).columns for layer in range(model.num_layers)}
    odd = sorted(size for size in columns if size % LANES)
    if odd:
        return f"columns of a slot: wanted multiples of {LANES}, got {odd[0]}"
    if model.head_dim % HEAD_MULTIPLE:
        return f"head_dim: wanted a multiple of {HEAD_MULTIPLE}, got {model.head_dim}"
    if jnp.dtype(dtype).name not in DTYPES:
        return f"dtype: wanted one of {DTYPES}, got {jnp.dtype(dtype).name}"
    if kernels.kv_heads is None:
        return f"kv heads: wanted a number that the chips sharing a slot divide, got {model.num_kv_heads}"
    return None
