"""How fast the forms of a matrix product with int8 weights are on this machine, side by side.

    python scripts/bench_int8.py --rows=1,8,16,512
    python scripts/bench_int8.py --shapes=1536x576,576x1536 --layers=30

First one product after another over distinct weights, together larger than the processor's own
caches, in turns, so that what else runs on the machine meets all forms alike; best of --repeats. Then
the projections of a whole decoder stack by the kernel, as the model calls them, in two passes (query,
key, value and output; gate, up and down; head), without attention: the ceiling of a decode step. Ends
with one JSON line.
"""

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from tpustream.flags import run_command
from tpustream.ops.cpu import build, packed
from tpustream.ops.int8 import project, xla
from tpustream.ops.int8.quantize import dequantize, quantize
from tpustream.weights.cache import cache_folder

_SHAPES = flags.DEFINE_list(
    "shapes", ["1536x576", "576x1536", "576x576", "192x576", "49152x576"], "Outputs x inputs of weights."
)
_ROWS = flags.DEFINE_list("rows", ["1", "2", "4", "8", "16", "128", "512"], "Rows of x.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Timed runs a figure.", lower_bound=1)
_SET_BYTES = flags.DEFINE_integer("set_bytes", 16 << 20, "int8 weights that one run passes over.")
_LARGEST = flags.DEFINE_integer("largest", 4 << 20, "Elements of a result beyond which a shape is left out.")
_LAYERS = flags.DEFINE_integer("layers", 30, "Layers of the stack; 0 leaves it out.")
_EMBED, _FFW, _KEY, _VOCAB = 576, 1536, 192, 49_152  # the stack is SmolLM2-135M's

Product = Callable[[jax.Array, object], jax.Array]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    has_kernel = build.available(cache_folder() / "kernels")
    rows = [int(count) for count in _ROWS.value]
    products = []
    print(f"{'shape':>12} {'rows':>5} {'form':>12} {'us':>10} {'GB/s':>7} {'GOP/s':>7} {'error':>8}")
    for shape in _SHAPES.value:
        outputs, inputs = map(int, shape.split("x"))
        for count in rows:
            if count * outputs <= _LARGEST.value:
                products += time_products(outputs, inputs, count, has_kernel)
    stack = time_stack(rows) if has_kernel and _LAYERS.value else []
    print(json.dumps({"products": products, "stack": stack}))


def time_products(outputs: int, inputs: int, rows: int, has_kernel: bool) -> list[dict]:
    """Every form of this product, timed in turns."""
    rng = np.random.default_rng(0)
    count = max(2, _SET_BYTES.value // (outputs * inputs))
    weights = [quantize(rng.standard_normal((outputs, inputs), np.float32)) for _ in range(count)]
    x = jnp.asarray(rng.standard_normal((rows, inputs), np.float32))
    exact = np.asarray(x) @ dequantize(weights[0]).T

    def float32(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w.T

    def in_form(form: xla.Form) -> Product:
        return lambda x, weight: xla.matmul(x, weight, form=form)

    forms: dict[str, tuple[Product, list]] = {
        "float32": (float32, [jnp.asarray(dequantize(weight)) for weight in weights]),
        "dynamic": (in_form("dynamic"), jax.device_put(weights)),
    }
    if rows == 1:  # with more, 20 times slower than the other
        forms["weight_only"] = (in_form("weight_only"), jax.device_put(weights))
    if has_kernel:
        forms["kernel"] = (call.matmul, jax.device_put([packed.pack(weight) for weight in weights]))

    runs = {name: (jax.jit(chain(product)), held) for name, (product, held) in forms.items()}
    best = dict.fromkeys(runs, np.inf)
    for run, held in runs.values():
        run(x, held).block_until_ready()
    for _ in range(_REPEATS.value):
        for name, (run, held) in runs.items():
            best[name] = min(best[name], seconds(run, x, held) / count)
    records = []
    for name, (product, held) in forms.items():
        out = np.asarray(jax.jit(product)(x, held[0]))
        weight_bytes = outputs * inputs * (4 if name == "float32" else 1)
        record = {
            "outputs": outputs,
            "inputs": inputs,
            "rows": rows,
            "form": name,
            "microseconds": round(best[name] * 1e6, 1),
            "gigabytes_per_second": round(weight_bytes / best[name] / 1e9, 1),
            "giga_operations_per_second": round(2 * outputs * inputs * rows / best[name] / 1e9),
            "relative_error": float(np.linalg.norm(out - exact) / np.linalg.norm(exact)),
        }
        records.append(record)
        print(
            f"{outputs:>6}x{inputs:<5} {rows:>5} {name:>12} {record['microseconds']:>10.1f} "
            f"{record['gigabytes_per_second']:>7.1f} {record['giga_operations_per_second']:>7} "
            f"{record['relative_error']:>8.1e}"
        )
    return records


def chain(product: Product) -> Callable[[jax.Array, list], jax.Array]:
    """One product after another: each waits for the one before."""

    def run(x: jax.Array, weights: list) -> jax.Array:
        for weight in weights:
            x = x + product(x, weight)[0, 0] * 1e-20
        return x

    return run


def time_stack(rows: list[int]) -> list[dict]:
    """All projections of a decoder, by the kernel, with norms and gates between them."""
    rng = np.random.default_rng(1)

    def weight(outputs: int, inputs: int) -> packed.PackedWeight:
        return packed.pack(quantize(rng.standard_normal((outputs, inputs), np.float32) / np.sqrt(inputs)))

    shapes = {
        "q": (_EMBED, _EMBED),
        "k": (_KEY, _EMBED),
        "v": (_KEY, _EMBED),
        "o": (_EMBED, _EMBED),
        "gate": (_FFW, _EMBED),
        "up": (_FFW, _EMBED),
        "down": (_EMBED, _FFW),
    }
    layers = [{name: weight(*shape) for name, shape in shapes.items()} for _ in range(_LAYERS.value)]
    layers, head = jax.device_put((layers, weight(_VOCAB, _EMBED)))

    def times(x: jax.Array, weight: packed.PackedWeight) -> jax.Array:
        return project.project(x, weight, out_dtype=jnp.float32)

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)

    @jax.jit
    def step(x: jax.Array, layers: list, head: packed.PackedWeight) -> jax.Array:
        for layer in layers:
            q, k, v = (times(norm(x), layer[name]) for name in ("q", "k", "v"))
            # In place of attention: what keeps XLA from leaving out the keys and values.
            x = x + times(q + jnp.tile(k + v, _EMBED // _KEY), layer["o"])
            gate, up = (times(norm(x), layer[name]) for name in ("gate", "up"))
            x = x + times(jax.nn.silu(gate) * up, layer["down"])
        # A prompt needs the logits of its last token alone.
        return times(norm(x if x.shape[0] < 128 else x[-1:]), head).argmax(axis=-1)

    records = []
    for count in rows:
        x = jnp.asarray(rng.standard_normal((count, _EMBED), np.float32))
        step(x, layers, head).block_until_ready()
        best = min(seconds(step, x, layers, head) for _ in range(_REPEATS.value))
        records.append({"rows": count, "milliseconds": best * 1e3, "tokens_per_second": count / best})
        print(
            f"{len(layers)} layers and head, {count} rows: {best * 1e3:.2f} ms, {count / best:.0f} tokens/s"
        )
    return records


def seconds(function: Callable, *arguments) -> float:
    """Wall time of one run, result included."""
    start = time.perf_counter()
    function(*arguments).block_until_ready()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_command(main)
