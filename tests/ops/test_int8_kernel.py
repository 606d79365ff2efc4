"""The C++ kernel against plain XLA, bit for bit, in every set of instructions that this machine has."""

import logging
import platform
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpustream.ops.int8 import project, xla
from tpustream.ops.int8.cpu_kernel import build, call, packed
from tpustream.ops.int8.quantize import dequantize, quantize, take_rows
from tpustream.weights.cache import cache_folder

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in build.COMPILERS), reason="no C++ compiler"
)
NATIVE = build.native_options()
MACHINES = {"native": NATIVE}
if platform.machine().lower() in ("x86_64", "amd64"):
    MACHINES |= {
        "no_tiles": (*NATIVE, "-mno-amx-int8"),
        "avx2": (*NATIVE, "-mno-amx-int8", "-mno-avx512f"),
        "portable": ("-march=x86-64",),
    }


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def folder() -> Path:
    """Kept between runs: a build takes seconds."""
    return cache_folder() / "kernels"


@pytest.fixture(scope="module", params=MACHINES)
def target(request, folder) -> str:
    """Name of the product's target, built for one set of instructions."""
    try:
        library = build.load(build.build(folder, machine=MACHINES[request.param]))
    except build.BuildError as error:
        pytest.skip(str(error))
    name = f"int8_matmul_{request.param}"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library.tpustream_int8_matmul), platform="cpu")
    return name


def product(target: str, x: np.ndarray, weight) -> np.ndarray:
    held = packed.pack(weight)
    result = jax.ShapeDtypeStruct((x.shape[0], weight.values.shape[0]), jnp.float32)
    return np.asarray(jax.jit(jax.ffi.ffi_call(target, result))(jnp.asarray(x), held.bytes, held.scale))


def in_xla(x: np.ndarray, weight) -> np.ndarray:
    return np.asarray(jax.jit(xla.matmul, static_argnames="form")(jnp.asarray(x), weight, form="dynamic"))


@needs_compiler
@pytest.mark.parametrize(
    ("out", "inputs"), [(1, 1), (31, 3), (32, 64), (33, 65), (192, 576), (70, 131), (577, 260)]
)
def test_the_same_bits_as_xla(target, out, inputs):
    """One rule of rounding in both paths, whatever the padding, the tile of rows or the thread."""
    weight = quantize(normal(out, inputs))
    for rows in (1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 259):
        x = normal(rows, inputs, seed=rows) * np.float32(3.7)
        np.testing.assert_array_equal(product(target, x, weight), in_xla(x, weight), err_msg=f"{rows} rows")


@needs_compiler
def test_the_largest_sums_do_not_saturate(target):
    """Every byte at its end: 16-bit steps in between would clip here."""
    weight, x = quantize(np.ones((34, 4096), np.float32)), np.ones((9, 4096), np.float32)
    x[::2] = -1
    np.testing.assert_allclose(product(target, x, weight), np.tile(4096 * x[:, :1], 34), rtol=1e-6)


@needs_compiler
def test_a_broken_row_breaks_no_other(target):
    """NaN and infinity make their own row NaN; a row of zeros and a vanishing one are zero."""
    weight, x = quantize(normal(40, 70)), normal(11, 70, seed=1)
    whole = product(target, x, weight)
    x[1, 3], x[4, 69], x[6, 0], x[8], x[9] = np.nan, np.inf, -np.inf, 0, 1e-35
    out = product(target, x, weight)
    np.testing.assert_array_equal(out[[0, 2, 3, 5, 7, 10]], whole[[0, 2, 3, 5, 7, 10]])
    assert np.isnan(out[[1, 4, 6]]).all()
    assert (out[8:10] == 0).all()
    np.testing.assert_array_equal(out, in_xla(x, weight))


@needs_compiler
def test_a_row_does_not_depend_on_its_neighbours(target):
    """The same stream gives the same tokens alone and among others: every count of rows, same bits."""
    weight, x = quantize(normal(96, 192)), normal(40, 192, seed=1)
    whole = product(target, x, weight)
    for rows in (1, 2, 4, 8, 16, 32):
        np.testing.assert_array_equal(product(target, x[:rows], weight), whole[:rows])


@pytest.fixture
def kernel(folder):
    """The targets that the package calls."""
    if not build.available(folder):
        pytest.skip("the kernel cannot be built here")


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(("hidden", "inputs", "out"), [(37, 53, 41), (96, 64, 64), (130, 129, 7)])
def test_a_feed_forward_in_one_call(kernel, activation, hidden, inputs, out):
    """The same as its parts in plain XLA, but for what an exponential's last bit rounds differently."""
    gate, up, down = (
        quantize(normal(*shape, seed=i) / 8)
        for i, shape in enumerate([(hidden, inputs), (hidden, inputs), (out, hidden)])
    )
    run = jax.jit(project.gated, static_argnames=("activation", "platform", "out_dtype"))
    static = {"activation": activation, "platform": "cpu", "out_dtype": jnp.float32}
    held = packed.pack_gates(gate, up), packed.pack(down)
    for rows in (2, 5, 16, 300):
        x = normal(rows, inputs, seed=rows)
        x[1, 0] = np.nan
        got, wanted = run(x, *held, **static), run(x, (gate, up), down, **static)
        step = np.nanmax(np.abs(wanted)) / 127
        np.testing.assert_allclose(got, wanted, atol=step / 2, rtol=0)
        differs = np.nan_to_num(np.abs(got - wanted)) > 1e-5 * np.nanmax(np.abs(wanted))
        assert differs.any(axis=1).mean() <= 0.5, "most rows round alike"


def test_weights_come_back_from_their_panels():
    """Packing moves bytes and loses none; rows of an embedding can be read from the panels."""
    weight = quantize(normal(5, 14, 67))
    held = packed.pack(weight)
    back = packed.unpack(held)
    np.testing.assert_array_equal(back.values, weight.values)
    np.testing.assert_array_equal(back.scale, weight.scale)
    assert back.outer == (5, 14)
    index = jnp.array([0, 31, 32, 69, 69])
    np.testing.assert_array_equal(packed.take_rows(held, index), take_rows(jax.device_put(weight), index))


def test_joined_weights_are_split_where_they_met(kernel):
    """Query, key and value in one call."""
    parts = [quantize(normal(out, 48, seed=out)) for out in (33, 20, 7)]
    x = normal(3, 48)
    out = np.split(np.asarray(call.matmul(jnp.asarray(x), packed.pack_joined(*parts))), [33, 53], axis=1)
    for part, got in zip(parts, out, strict=True):
        np.testing.assert_array_equal(got, in_xla(x, part))


def test_several_axes_through_the_kernel(kernel):
    """What the output projection of attention is: [embed, heads, head_dim]."""
    weight = quantize(normal(11, 3, 16), inner_axes=2)
    x = normal(4, 3, 16, seed=1)
    out = project.project(x, packed.pack(weight), platform="cpu", out_dtype=jnp.float32)
    wanted = x.reshape(4, -1) @ dequantize(weight).T
    assert np.linalg.norm(out - wanted) < 0.02 * np.linalg.norm(wanted)


def test_without_a_compiler_it_says_so_once(tmp_path, monkeypatch, caplog):
    """The slower path is taken aloud, and only a single CPU device asks for the kernel at all."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert not build.available(tmp_path)
        assert not build.available(tmp_path)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "no-such-compiler" in caplog.text and "XLA path" in caplog.text
    assert not project.use_cpu_kernel(tmp_path, platform="gpu", devices=1)
    assert not project.use_cpu_kernel(tmp_path, platform="cpu", devices=8)


@needs_compiler
def test_a_compiler_that_fails_shows_what_it_said(tmp_path):
    """The reason is in the message, and no broken library stays behind."""
    with pytest.raises(build.BuildError, match="no-such-option"):
        build.build(tmp_path, machine=("--no-such-option",))
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_a_library_is_built_once(folder, monkeypatch):
    """A second process finds the file, and no compiler runs."""
    path = build.build(folder)
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail("compiled again"))
    assert build.build(folder) == path
    with pytest.raises(pytest.fail.Exception):
        build.build(folder, machine=(*NATIVE, "-DOTHER"))


def test_what_does_not_fit_is_refused():
    """Before a buffer of the wrong size meets C++."""
    weight = packed.pack(quantize(normal(5, 7)))
    gates = packed.pack_gates(quantize(normal(6, 7)), quantize(normal(6, 7)))
    with pytest.raises(ValueError, match="wanted rows of 7 inputs"):
        call.matmul(jnp.zeros((2, 8)), weight)
    with pytest.raises(ValueError, match="wanted 6 inputs"):
        call.gated(jnp.zeros((2, 7)), gates, weight, activation="silu")
    with pytest.raises(ValueError, match=r"wanted one of \['gelu', 'silu'\]"):
        call.gated(jnp.zeros((2, 7)), gates, weight, activation="relu")
    with pytest.raises(ValueError, match="wanted the shape of gate"):
        packed.pack_gates(quantize(normal(6, 7)), quantize(normal(5, 7)))
