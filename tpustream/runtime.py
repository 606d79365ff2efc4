"""load_runtime: from a model's name to an engine that is warm and running, with progress on the way.

The one place where all parts meet: weights, mesh, compiled steps, token queue, tokenizer.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tpustream.config import EngineConfig, ModelConfig
from tpustream.core.errors import ModelError
from tpustream.engine.bit_checks import keep_exact
from tpustream.engine.compile import CompiledSteps, Progress, compile_steps
from tpustream.engine.compile_guard import CompileGuard
from tpustream.engine.emitters import TokenQueue, resolve_emitter
from tpustream.engine.engine import Engine
from tpustream.engine.placer import Placer
from tpustream.engine.state import Weights
from tpustream.engine.weight_forms import Param, quantized, resolve_form
from tpustream.model.decoder import param_specs
from tpustream.model.sharding import ShardingRules, make_mesh
from tpustream.ops.attend import choose_form
from tpustream.ops.cpu import build
from tpustream.ops.rope import rope_table
from tpustream.text.tokenizer import Tokenizer, load_tokenizer
from tpustream.weights.cache import cache_folder
from tpustream.weights.load import load_params
from tpustream.weights.resolve import ModelFiles, resolve_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """A model that is ready to stream.

    Attributes:
      name: what clients call the model.
      engine: started.
      tokenizer: text to ids and back.
      model_config: the model's shape.
      compile_guard: counts what is compiled after the start, which should be nothing.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    model_config: ModelConfig
    compile_guard: CompileGuard

    def stop(self) -> None:
        """End every stream as cancelled, join the engine's threads, and stop counting. Safe to call twice."""
        self.engine.stop()
        self.compile_guard.stop()


def load_runtime(model: str, config: EngineConfig, *, quiet: bool = False) -> Runtime:
    """Resolve, load, compile, warm up and start.

    Args:
      model: as `weights.resolve.resolve_model` takes it; it must come with a tokenizer.
      quiet: no progress on stderr.

    Raises:
      ModelError: the model cannot be found, read, or streamed as text.
      ValueError: the devices do not suit `config.mesh`.
    """
    enable_compile_cache()
    files = resolve_model(model)
    if files.tokenizer is None:
        raise ModelError(f"{files.name}: wanted a model with a tokenizer, got weights alone")
    tokenizer = load_tokenizer(files.tokenizer)
    engine = build_engine(files, config, eos_ids=sorted(tokenizer.eos_ids), quiet=quiet)
    engine.start()
    guard = CompileGuard()
    guard.start()
    return Runtime(
        name=files.name,
        engine=engine,
        tokenizer=tokenizer,
        model_config=files.config,
        compile_guard=guard,
    )


def build_engine(
    files: ModelFiles,
    config: EngineConfig,
    *,
    eos_ids: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = False,
) -> Engine:
    """An engine with its weights loaded and every step compiled and run once; not started.

    Weights are read while the steps compile: the compiler needs shapes, not numbers.
    """
    placer = make_placer(files.config, config, devices)
    tokens = TokenQueue(resolve_emitter(config, placer.mesh.devices.flat[0].platform))
    with ThreadPoolExecutor(1) as pool, compile_progress(quiet=quiet) as report:
        loading = pool.submit(load_weights, files, placer, quiet=quiet)
        steps = compile_steps(placer, emit=tokens.emit, progress=report)
        weights = loading.result()
    steps = _warm_up(placer, weights, steps)
    return Engine(
        model=files.config, config=config, weights=weights, steps=steps, tokens=tokens, eos_ids=eos_ids
    )


def make_placer(
    model: ModelConfig, config: EngineConfig, devices: Sequence[jax.Device] | None = None
) -> Placer:
    """Where everything of this model lies on the mesh that `config` asks for."""
    mesh = make_mesh(config.mesh, devices)
    platform = mesh.devices.flat[0].platform
    # bfloat16 arithmetic on XLA:CPU is ten times slower than float32.
    auto = "float32" if platform == "cpu" else "bfloat16"
    dtype = jnp.dtype(auto if config.dtype == "auto" else config.dtype)
    kernels = build.usable(cache_folder() / "kernels", platform=platform, devices=mesh.devices.size)
    rules = ShardingRules()
    slots, kv_heads = rules.spec(("slots", "kv_heads"), (config.slots, model.num_kv_heads), mesh)
    return Placer(
        model=model,
        engine=config,
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        form=resolve_form(config.weights, platform=platform, kernels=kernels),
        attention=choose_form(
            model, config, mesh=mesh, slots=slots, kv_heads=kv_heads, dtype=dtype, cpu_kernels=kernels
        ),
    )


def load_weights(files: ModelFiles, placer: Placer, *, quiet: bool = False, seed: int = 0) -> Weights:
    """The weights on the devices, with the tables of rotations that the model needs."""
    specs = param_specs(placer.model)

    def held(name: str, array: jax.Array) -> Param:
        if not placer.is_quantized(name, specs[name]):
            return array
        shardings = jax.tree.map(lambda leaf: leaf.sharding, placer.param(name, specs[name]))
        return jax.device_put(quantized(name, array, specs[name], placer.form), shardings)

    params = load_params(
        files,
        specs,
        dtype=placer.dtype,
        sharding_of=lambda name: placer.full_param(specs[name]).sharding,
        hold=held,
        progress=not quiet,
        seed=seed,
    )
    config = placer.model
    kinds = {config.layer_kind(layer): config.layer_rope(layer) for layer in range(config.num_layers)}
    rope = {kind: rope_table(rope, config.head_dim) for kind, rope in sorted(kinds.items())}
    return Weights(params=params, rope=jax.device_put(rope, placer.replicated))


def enable_compile_cache() -> None:
    """Keep compiled executables between starts, unless the user has said where or whether."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _warm_up(placer: Placer, weights: Weights, steps: CompiledSteps) -> CompiledSteps:
    """Run prompts of each length and one step, so that the first request finds memory in place.

    Returns the steps that requests shall use.
    """
    # Steps below 0 are rehearsal: the token queue begins at step 0, so what they call is dropped.
    rehearsal = jax.device_put(np.int32(-1), placer.replicated)
    state = dataclasses.replace(steps.initial_state(), step=rehearsal)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), placer.admission())
    zero = zeros.slot
    prefix = steps.initial_prefix()
    for bucket in placer.engine.buckets:
        prefix, _ = steps.prefill[bucket, 0](weights, prefix, jnp.zeros(bucket, jnp.int32), zero)
    if steps.score is not None:
        chunk = jnp.zeros(placer.engine.chunk, jnp.int32)
        prefix, _ = steps.score(weights, prefix, chunk, chunk, zero, zero)
    prefix = steps.restore(prefix, steps.save(prefix, zero))
    state = steps.set_active(steps.insert(prefix, zero, state, zeros), zero, zero, zero)
    state = steps.retune(state, zero, zero, zero, zeros.sampling)
    jax.block_until_ready(steps.decode(weights, state, np.int32(1)))
    return keep_exact(placer.engine, weights, steps, vocab_size=placer.model.vocab_size)


@contextlib.contextmanager
def compile_progress(*, quiet: bool) -> Iterator[Progress]:
    """A progress bar on stderr, below that of loading, that speaks the compiler's (name, done, total)."""
    interval = 0.2 if sys.stderr.isatty() else 10.0  # a log file gets a line now and then
    with contextlib.ExitStack() as opened:

        @functools.cache
        def bar(total: int) -> tqdm:
            shown = tqdm(
                desc="compile", total=total, unit="step", disable=quiet, mininterval=interval, position=1
            )
            return opened.enter_context(shown)

        def report(name: str, done: int, total: int) -> None:
            bar(total).set_postfix_str(name, refresh=False)
            bar(total).update(done - bar(total).n)

        yield report
