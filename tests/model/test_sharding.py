"""Rules from logical axes to mesh axes, and meshes that cannot be."""

import jax
import pytest
from jax.sharding import PartitionSpec

from tpustream.model.sharding import ShardingRules, make_mesh


def test_a_dimension_that_does_not_divide_is_replicated():
    """3 kv heads on 4 devices are kept whole; 8 heads are split."""
    mesh, rules = make_mesh((1, 4)), ShardingRules()
    assert rules.spec(("kv_heads", "head_dim", "embed"), (3, 8, 24), mesh) == PartitionSpec(None, None, None)
    assert rules.spec(("heads", "head_dim", "embed"), (8, 8, 24), mesh) == PartitionSpec("model", None, None)


def test_two_dimensions_on_one_mesh_axis_collide():
    """A rule that splits twice over one axis is an error, not a surprise at run time."""
    rules = ShardingRules(embed="model")
    with pytest.raises(ValueError, match="want one mesh axis"):
        rules.spec(("ffw", "embed"), (8, 8), make_mesh((1, 4)))


def test_an_unknown_logical_axis_is_named():
    """Wanted and got."""
    with pytest.raises(ValueError, match=r"wanted some of .* got \['colour'\]"):
        ShardingRules().spec(("colour",), (8,), make_mesh((1, 1)))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((1, 0), (1, 8)), ((2, 0), (2, 4)), ((0, 4), (2, 4)), ((0, 0), (1, 8)), ((1, 3), (1, 3))],
)
def test_a_zero_takes_the_devices_that_are_left(sizes, shape):
    """Of eight devices; fixed sizes may leave some unused."""
    assert tuple(make_mesh(sizes).shape.values()) == shape


@pytest.mark.parametrize("sizes", [(3, 0), (1, 9), (16, 0), (0, 5)])
def test_an_impossible_mesh_says_wanted_and_got(sizes):
    """Devices that cannot be laid out so are an error that says how many there are."""
    with pytest.raises(ValueError, match=rf"wanted data x model = {sizes[0]} x {sizes[1]} .*got 8 device"):
        make_mesh(sizes, jax.devices())
