"""The C++ kernel against plain XLA, bit for bit, in every set of instructions that this machine has."""

import logging
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
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
@pytest.mark.parametrize(("out", "inputs"), [(1, 1), (31, 3), (33, 65), (192, 576), (577, 260)])
def test_the_same_bits_as_xla(target, out, inputs):
    """One rule of rounding in both paths, whatever the padding, the tile of rows or the thread."""
    weight = quantize(normal(out, inputs))
    for rows in (1, 2, 3, 7, 9, 17, 33, 259):
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


def test_calls_at_once_do_not_meet(kernel, cpu_devices):
    """Several devices of one process share the kernel's threads and nothing else."""
    weight, x = quantize(normal(320, 256)), normal(12, 256, seed=1)
    wanted = in_xla(x, weight)
    run = jax.jit(call.matmul)

    def many(device: jax.Device) -> int:
        arguments = jax.device_put((x, packed.pack(weight)), device)
        return sum(not np.array_equal(run(*arguments), wanted) for _ in range(200))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(many, cpu_devices[:4])) == [0, 0, 0, 0]


def test_several_axes_through_the_kernel(kernel):
    """What the output projection of attention is: [embed, heads, head_dim]."""
    weight = quantize(normal(11, 3, 16), inner_axes=2)
    x = normal(4, 3, 16, seed=1)
    out = project.project(x, packed.pack(weight), out_dtype=jnp.float32)
    wanted = x.reshape(4, -1) @ dequantize(weight).T
    assert np.linalg.norm(out - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("form", ["int8", "packed"])
def test_one_large_activation_does_not_cost_the_others_their_bits(form, rows, request):
    """Where rows are rounded it takes two passes: one, with the scale of the largest, is 6% off."""
    weight, x = quantize(normal(96, 576)), normal(rows, 576, seed=1)
    x[:, 7] = 100 * np.abs(x).max(axis=1)
    held = weight
    if form == "packed":
        request.getfixturevalue("kernel")
        held = packed.pack(weight)
    out = jax.jit(project.project, static_argnames="out_dtype")(jnp.asarray(x), held, out_dtype=jnp.float32)
    wanted = x @ dequantize(weight).T
    error = np.linalg.norm(out - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (error < 1e-3).all()


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
    """A second process finds the file and compiles nothing; other options, another compiler do."""
    path = build.build(folder)
    version = build._version(build.find_compiler())
    monkeypatch.setattr(build, "_version", lambda compiler: version)
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail("compiled again"))
    assert build.build(folder) == path
    with pytest.raises(pytest.fail.Exception):
        build.build(folder, machine=(*NATIVE, "-DOTHER"))
    monkeypatch.setattr(build, "_version", lambda compiler: f"{version}, newer")
    with pytest.raises(pytest.fail.Exception):
        build.build(folder)


def test_what_does_not_fit_is_refused():
    """Before a buffer of the wrong size meets C++."""
    weight = packed.pack(quantize(normal(5, 7)))
    with pytest.raises(ValueError, match="wanted rows of 7 inputs"):
        call.matmul(jnp.zeros((2, 8)), weight)
