"""From pure steps to executables: the only file that says jit, donation and sharding.

Everything is compiled ahead of time, one executable a shape. A compiled executable refuses any other
shape, so nothing can compile behind a request's back.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpustream.config import EngineConfig, ModelConfig
from tpustream.core.params import ParamSpec
from tpustream.engine import steps
from tpustream.engine.state import (
    STATE_AXES,
    Admission,
    DecodeState,
    Prefix,
    SlotSampling,
    Weights,
    empty_state,
)
from tpustream.model.decoder import param_specs
from tpustream.model.sharding import ShardingRules
from tpustream.ops.rope import DIGIT_BITS, DIGITS, Rotation

COMPILERS = 2  # threads: the compiler itself is parallel, tracing is not
Progress = Callable[[str, int, int], None]
"""(what is compiled now, how many are done, how many there are)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledSteps:
    """Executables of one engine.

    Attributes:
      prefill: bucket -> (weights, tokens i32[bucket], length i32[]) -> Prefix.
      insert: bucket -> (prefix, state, admission) -> state; the state is donated.
      decode: (weights, state) -> (state, i32[n, B, C]); the state is donated.
      release: (state, slot, epoch) -> state; the state is donated.
      initial_state: () -> DecodeState with every slot free.
      compile_seconds: wall time of each, by name.
    """

    prefill: dict[int, jax.stages.Compiled]
    insert: dict[int, jax.stages.Compiled]
    decode: jax.stages.Compiled
    release: jax.stages.Compiled
    initial_state: jax.stages.Compiled
    compile_seconds: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placer:
    """Shapes and shardings of everything that crosses a jit, for one model on one mesh."""

    model: ModelConfig
    engine: EngineConfig
    mesh: Mesh
    rules: ShardingRules
    dtype: jnp.dtype

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def param(self, spec: ParamSpec) -> jax.ShapeDtypeStruct:
        """A parameter: its norms and biases stay float32."""
        dtype = jnp.float32 if spec.keep_float32 else self.dtype
        sharding = self.rules.sharding(spec.axes, spec.shape, self.mesh)
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)

    def weights(self) -> Weights:
        table = (DIGITS, 1 << DIGIT_BITS, self.model.head_dim // 2)
        angles = self._whole(jax.ShapeDtypeStruct(table, jnp.float32))
        kinds = sorted({self.model.layer_kind(layer) for layer in range(self.model.num_layers)})
        return Weights(
            params={name: self.param(spec) for name, spec in param_specs(self.model).items()},
            rope={kind: Rotation(cos=angles, sin=angles) for kind in kinds},
        )

    def state(self) -> DecodeState:
        shapes = jax.eval_shape(lambda: empty_state(self.model, self.engine, self.dtype))
        layers = self.model.num_layers
        cache = dataclasses.replace(
            STATE_AXES.cache, k=(STATE_AXES.cache.k,) * layers, v=(STATE_AXES.cache.v,) * layers
        )
        axes = dataclasses.replace(STATE_AXES, cache=cache)
        return jax.tree.map(self._placed, shapes, axes)

    def prefix(self, bucket: int) -> Prefix:
        def layers(*tail: int) -> tuple[jax.ShapeDtypeStruct, ...]:
            shape = jax.ShapeDtypeStruct((self.model.num_kv_heads, *tail), self.dtype)
            return (self._placed(shape, ("kv_heads",)),) * self.model.num_layers

        head_dim = self.model.head_dim
        return Prefix(k=layers(head_dim, bucket), v=layers(bucket, head_dim), length=self._scalar())

    def admission(self) -> Admission:
        sampling: SlotSampling = jax.tree.map(
            lambda x: self._whole(jax.ShapeDtypeStruct(x.shape[1:], x.dtype)), self.state().sampling
        )
        return Admission(
            slot=self._scalar(),
            epoch=self._scalar(),
            token=self._scalar(),
            remaining=self._scalar(),
            prompt=self.tokens(self.engine.ring_length),
            sampling=sampling,
        )

    def tokens(self, length: int) -> jax.ShapeDtypeStruct:
        return self._whole(jax.ShapeDtypeStruct((length,), jnp.int32))

    def _scalar(self) -> jax.ShapeDtypeStruct:
        return self._whole(jax.ShapeDtypeStruct((), jnp.int32))

    def _whole(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.replicated)

    def _placed(self, leaf: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
        axes = (*axes, *(None,) * (len(leaf.shape) - len(axes)))
        sharding = self.rules.sharding(axes, leaf.shape, self.mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def lower_steps(
    placer: Placer, emit: steps.Emit | None
) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
    """(name, how to lower it) of every executable that an engine needs, the decode step first.

    Names: "decode", "release", "state", "prefill BUCKET", "insert BUCKET".
    """
    model, engine = placer.model, placer.engine
    weights, state = placer.weights(), placer.state()
    of_state = jax.tree.map(lambda leaf: leaf.sharding, state)

    def lowered(function, arguments, *, donate=(), out):
        jitted = jax.jit(function, donate_argnums=donate, out_shardings=out)
        return functools.partial(jitted.lower, *arguments)

    def emit_whole(packed):
        emit(jax.lax.with_sharding_constraint(packed, placer.replicated))

    decode = functools.partial(steps.decode, model, engine, emit=emit and emit_whole)
    yield "decode", lowered(decode, (weights, state), donate=1, out=(of_state, placer.replicated))
    scalar = placer.tokens(1)
    scalar = jax.ShapeDtypeStruct((), scalar.dtype, sharding=scalar.sharding)
    yield "release", lowered(steps.release, (state, scalar, scalar), donate=0, out=of_state)
    yield "state", lowered(functools.partial(empty_state, model, engine, placer.dtype), (), out=of_state)
    for bucket in engine.buckets:
        prefix = placer.prefix(bucket)
        of_prefix = jax.tree.map(lambda leaf: leaf.sharding, prefix)
        fill = lambda *arguments: steps.prefill(model, *arguments)[0]  # noqa: E731
        yield f"prefill {bucket}", lowered(fill, (weights, placer.tokens(bucket), scalar), out=of_prefix)
        insert = functools.partial(steps.insert, model, engine)
        arguments = (prefix, state, placer.admission())
        yield f"insert {bucket}", lowered(insert, arguments, donate=1, out=of_state)


def compile_steps(
    placer: Placer, *, emit: steps.Emit | None, progress: Progress | None = None
) -> CompiledSteps:
    """Compile every step for this model, engine and mesh.

    One step is traced here while others are in the compiler's hands.
    """
    todo = list(lower_steps(placer, emit))
    report = progress or (lambda name, done, total: None)
    report("tracing", 0, len(todo))

    def timed(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
        start = time.perf_counter()
        return lowered.compile(), time.perf_counter() - start

    with ThreadPoolExecutor(COMPILERS) as pool:
        running = {name: pool.submit(timed, lower()) for name, lower in todo}
        results = {}
        for name, future in running.items():
            results[name] = future.result()
            report(name, len(results), len(todo))
    compiled = {name: executable for name, (executable, _) in results.items()}
    seconds = {name: elapsed for name, (_, elapsed) in results.items()}
    buckets = placer.engine.buckets
    return CompiledSteps(
        prefill={bucket: compiled[f"prefill {bucket}"] for bucket in buckets},
        insert={bucket: compiled[f"insert {bucket}"] for bucket in buckets},
        decode=compiled["decode"],
        release=compiled["release"],
        initial_state=compiled["state"],
        compile_seconds=seconds,
    )
