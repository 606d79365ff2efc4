"""A head in parts along its inputs: finer scales, the same products."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpustream.ops.cpu import packed
from tpustream.ops.int8.parts import WeightParts, part_count
from tpustream.ops.int8.quantize import quantize
from tpustream.ops.project import project, take_rows

ROWS = jnp.array([0, 39, 7])


@pytest.mark.parametrize(("inputs", "count"), [(576, 3), (2048, 4), (640, 2), (64, 1), (24, 1)])
def test_parts_are_whole_reads_of_the_kernel(inputs, count):
    """As many as go up to four, and one for a head that cannot be cut."""
    assert part_count(inputs) == count


@pytest.mark.parametrize("form", ["int8", "packed"])
def test_parts_are_nearer_to_the_weight_than_the_whole(form, request):
    """Each part has its own scales: one large input costs only its part."""
    if form == "packed":
        request.getfixturevalue("kernel")
    rng = np.random.default_rng(0)
    weight, x = (rng.standard_normal(shape, np.float32) for shape in ((40, 192), (3, 192)))
    weight[:, 5] = 30
    held = packed.pack if form == "packed" else (lambda part: part)
    parts = WeightParts(parts=tuple(held(quantize(part)) for part in np.split(weight, 3, axis=1)))
    whole = held(quantize(weight))

    def error(got, wanted) -> float:
        return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))

    products = [
        error(project(jnp.asarray(x), w, out_dtype=jnp.float32), x @ weight.T) for w in (parts, whole)
    ]
    assert products[0] < 0.7 * products[1]
    taken = [error(take_rows(w, ROWS, dtype=jnp.float32), weight[np.asarray(ROWS)]) for w in (parts, whole)]
    assert taken[0] < 0.7 * taken[1]
