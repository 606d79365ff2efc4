"""Bytes for weights and for rows of activations: error bounds, zeros, what is not finite."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpustream.ops.int8.quantize import (
    MAX_INPUTS,
    SMALLEST,
    dequantize,
    quantize,
    quantize_rows,
    take_rows,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", [(7, 5), (1, 3), (5, 1), (64, 129)])
def test_a_weight_is_off_by_half_a_step_at_most(shape):
    """The bound of symmetric rounding, channel by channel; -128 is never used."""
    w = normal(*shape) * np.exp(normal(shape[0], 1, seed=1))
    weight = quantize(w)
    assert weight.values.dtype == np.int8 and weight.values.min() >= -127
    error = np.abs(dequantize(weight) - w)
    assert (error <= weight.scale[:, None] * (0.5 + 1e-5)).all()
    np.testing.assert_array_equal(np.abs(weight.values).max(axis=1), 127)


def test_axes_are_flattened_and_remembered():
    """A query projection [heads, head_dim, embed] and an output one [embed, heads, head_dim]."""
    w = normal(3, 5, 7)
    outputs, inputs = quantize(w), quantize(w, inner_axes=2)
    assert outputs.values.shape == (15, 7) and outputs.outer == (3, 5)
    assert inputs.values.shape == (3, 35) and inputs.outer == (3,)
    np.testing.assert_array_equal(outputs.values, quantize(w.reshape(15, 7)).values)


def test_numpy_and_jax_agree():
    """A loader may quantize on either side."""
    w = normal(19, 23)
    of_numpy, of_jax = quantize(w), quantize(jnp.asarray(w))
    assert isinstance(of_numpy.values, np.ndarray) and not isinstance(of_jax.values, np.ndarray)
    np.testing.assert_allclose(of_jax.scale, of_numpy.scale, rtol=1e-6)
    assert np.abs(np.asarray(of_jax.values, np.int32) - of_numpy.values).max() <= 1  # ties
    np.testing.assert_allclose(dequantize(of_jax), dequantize(of_numpy), atol=of_numpy.scale.max() * 1.01)


def test_a_channel_of_zeros_stays_zero():
    """No division by zero in a channel that a model does not use."""
    w = normal(3, 4)
    w[1] = 0
    weight = quantize(w)
    assert not weight.values[1].any() and weight.scale[1] == 0
    assert np.isfinite(dequantize(weight)).all()


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (np.zeros(3, np.float32), "wanted output axes"),
        (np.zeros((2, 0), np.float32), "wanted 1 to"),
        (np.zeros((1, MAX_INPUTS + 1), np.float32), "wanted 1 to"),
        (np.array([[1, np.inf], [1, 2]], np.float32), r"got 1 channel"),
        (np.array([[1, np.nan], [1, 2]], np.float32), r"got 1 channel"),
    ],
)
def test_weights_that_cannot_be_bytes_are_refused(w, message):
    """A broken file is found at load, not as NaN in an answer."""
    with pytest.raises(ValueError, match=message):
        quantize(w)


def test_rows_are_off_by_half_a_step_at_most():
    """The same bound for activations, with rows of very different size."""
    x = normal(9, 33) * np.float32(10.0) ** np.arange(-12, 15, 3)[:, None]
    high, low, scale = (np.asarray(part, np.float64) for part in quantize_rows(jnp.asarray(x)))
    error = np.abs((256 * high + low) * scale[:, None] - x)
    assert (error <= scale[:, None] * (0.5 + 4e-3)).all()


def test_rows_of_nothing_and_of_what_is_not_finite():
    """Zero and vanishing rows are zero, rows with NaN or infinity say NaN, others do not notice."""
    x = normal(6, 8)
    x[0], x[1], x[2, 3], x[3, 7], x[4] = 0, SMALLEST / 2, np.nan, -np.inf, SMALLEST * 2
    high, low, scale = quantize_rows(jnp.asarray(x))
    assert not np.asarray(high)[:4].any() and not np.asarray(low)[:4].any()
    np.testing.assert_array_equal(np.isnan(scale), [False, False, True, True, False, False])
    np.testing.assert_array_equal(high[5], quantize_rows(jnp.asarray(x[5:]))[0][0])


def test_rows_of_an_embedding():
    """Tokens of any shape, from the table that is the output head too."""
    weight = quantize(normal(11, 6))
    index = jnp.array([[3, 10], [0, 3]])
    np.testing.assert_array_equal(take_rows(weight, index), dequantize(weight)[np.asarray(index)])
