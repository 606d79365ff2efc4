"""ShardingRules: which mesh axis each logical axis of an array is split over."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Logical axis -> mesh axis; None is replicated.

    A dimension that the mesh axis does not divide is replicated: 3 kv heads on 4 chips are kept
    whole on each, never refused.
    """

    slots: str | None = "data"
    vocab: str | None = "model"
    embed: str | None = None
    ffw: str | None = "model"
    heads: str | None = "model"
    kv_heads: str | None = "model"
    head_dim: str | None = None
    ring: str | None = None

    def spec(self, axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
        """Partition of an array with these logical axes.

        Raises ValueError for an unknown logical axis, or where two dimensions want one mesh axis.
        """
        known = {field.name for field in dataclasses.fields(self)}
        unknown = [axis for axis in axes if axis is not None and axis not in known]
        if unknown:
            raise ValueError(f"logical axes: wanted some of {sorted(known)}, got {unknown}")
        physical = [None if axis is None else getattr(self, axis) for axis in axes]
        used = [axis for axis in physical if axis is not None]
        if len(set(used)) != len(used):
            raise ValueError(f"logical axes {tuple(axes)}: two of them want one mesh axis, got {physical}")
        divides = [
            axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(physical, shape, strict=True)
        ]
        return PartitionSpec(*(axis if fits else None for axis, fits in zip(physical, divides, strict=True)))

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
        """`spec` on this mesh."""
        return NamedSharding(mesh, self.spec(axes, shape, mesh))


def make_mesh(sizes: tuple[int, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of axes (data, model); a size of 0 takes all devices that the other axis leaves.

    Raises ValueError when the devices cannot be laid out so.
    """
    devices = jax.devices() if devices is None else devices
    data, model = sizes
    if data == 0 and model == 0:
        data = 1
    fixed = (data or 1) * (model or 1)
    left = len(devices) // fixed
    data, model = data or left, model or left
    if left < 1 or (0 in sizes and len(devices) % fixed):
        raise ValueError(
            f"mesh: wanted data x model = {sizes[0]} x {sizes[1]} (0 takes what is left), "
            f"got {len(devices)} device(s)"
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 2)
