"""How fast the compiled steps are on this machine, beside what its memory allows.

    python scripts/bench_decode.py --batches=1,4 --contexts=128,1024
    python scripts/bench_decode.py --emitters=transfer,callback --fused_steps=8

Prints prefill by prompt length, then decode by emitter, batch and context. `share` is the part of the
measured memory bandwidth that the step's necessary bytes (weights and live cache) account for.
The last line is one JSON object with every figure.
"""

import dataclasses
import json
import sys

import jax
from absl import flags

from tpustream.bench.bandwidth import read_bandwidth
from tpustream.bench.decode import describe_state, time_decode, time_prefill
from tpustream.config.engine import EMITTERS
from tpustream.engine.compile import compile_steps
from tpustream.engine.emitters import TokenQueue, resolve_emitter
from tpustream.flags import define_engine_flags, define_model_flag, engine_config_from_flags, run_command
from tpustream.runtime import compile_progress, enable_compile_cache, load_weights, make_placer
from tpustream.weights.resolve import resolve_model

define_model_flag()
define_engine_flags(fused_steps=1)  # here every dispatch is that deep
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Slots that decode together; replaces --slots.")
_CONTEXTS = flags.DEFINE_list("contexts", ["128", "1024"], "Tokens in each slot's cache.")
_PROMPTS = flags.DEFINE_list(
    "prompts", ["32", "128", "512", "1024"], "Lengths of prefilled prompts, in tokens."
)
_EMITTERS = flags.DEFINE_list("emitters", [], f"Measure these of {EMITTERS[1:]}; empty means --emitter.")
_DISPATCHES = flags.DEFINE_integer("dispatches", 30, "Timed dispatches a figure.", lower_bound=1)
_COMPILE_CACHE = flags.DEFINE_bool("compile_cache", False, "Read and fill the persistent compile cache.")

_ROW = "{:>9} {:>5} {:>8} {:>9} {:>9} {:>8} {:>7} {:>9}"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    if _COMPILE_CACHE.value:
        enable_compile_cache()
    config = engine_config_from_flags()
    files = resolve_model(flags.FLAGS.model)
    device = jax.devices()[0]
    bandwidth = read_bandwidth(device)
    print(f"{files.name} on {jax.device_count()} x {device.device_kind}, jax {jax.__version__}")
    print(f"memory bandwidth seen by a float32 matrix-vector product: {bandwidth / 1e9:.1f} GB/s")

    placer = make_placer(files.config, config)
    weights = load_weights(files, placer)
    emitters = _EMITTERS.value or [resolve_emitter(config, device.platform)]
    runs, prefill, compiled = [], {}, {}
    for emitter in emitters:
        for batch in map(int, _BATCHES.value):
            placer = make_placer(files.config, dataclasses.replace(config, slots=batch, emitter=emitter))
            with compile_progress(quiet=False) as report:
                steps = compile_steps(placer, emit=TokenQueue(emitter).emit, progress=report)
            if not prefill:
                lengths = [int(length) for length in _PROMPTS.value]
                prefill = time_prefill(placer, weights, steps, lengths, repeats=5)
                compiled = steps.compile_seconds
                _print_prefill(prefill)
                print(
                    _ROW.format(
                        "emitter", "batch", "context", "step ms", "tok/s", "GB/s", "share", "compile s"
                    )
                )
            for timing in time_decode(
                placer, weights, steps, [int(c) for c in _CONTEXTS.value], dispatches=_DISPATCHES.value
            ):
                share = timing.gigabytes_per_second * 1e9 / bandwidth
                runs.append({"emitter": emitter, "share": share, **dataclasses.asdict(timing)})
                print(
                    _ROW.format(
                        emitter,
                        timing.batch,
                        timing.context,
                        f"{timing.step_ms:.2f}",
                        f"{timing.tokens_per_second:.1f}",
                        f"{timing.gigabytes_per_second:.1f}",
                        f"{share:.0%}",
                        f"{timing.compile_seconds:.1f}",
                    ),
                    flush=True,
                )
    record = {
        "model": files.name,
        "platform": device.platform,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "dtype": placer.dtype.name,
        "ring_length": config.ring_length,
        "fused_steps": config.fused_steps,
        "bandwidth_bytes_per_second": bandwidth,
        "prefill_ms": prefill,
        "compile_seconds": compiled,
        **describe_state(placer),
        "decode": runs,
    }
    print(json.dumps(record))


def _print_prefill(prefill: dict[int, float]) -> None:
    print(f"{'prompt':>9} {'ms':>9} {'tok/s':>9}")
    for length, ms in prefill.items():
        print(f"{length:>9} {ms:>9.1f} {1e3 * length / ms:>9.0f}")


def checked(argv: list[str]) -> int:
    """One clear line for an error of the user's, no traceback."""
    try:
        main(argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(checked)
