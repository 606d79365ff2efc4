"""The engine's own steps through the TPU compiler: its text and its memory figures, without a weight."""

import dataclasses
import re
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import jax

from tpustream.config import EngineConfig
from tpustream.engine.compile import COMPILERS, Progress, lower_steps, prefill_name
from tpustream.engine.placer import Placer
from tpustream.plan.hlo import Module, parse

_TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED: (.*)")


class DoesNotFit(ValueError):
    """The compiler found no room for a step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one executable on each device, as the compiler counts them.

    Attributes:
      arguments: what it takes; `aliased` of them are updated in place.
      outputs: what it gives, `aliased` included.
      temporaries: beside both, while it runs.
      code: of the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def working(self) -> int:
        """What it needs beside its arguments and its code."""
        return self.temporaries + self.outputs - self.aliased


@dataclasses.dataclass(frozen=True, kw_only=True)
class Executable:
    """One compiled step.

    Attributes:
      text: the scheduled HLO; `module` is the same, read.
      seconds: that the compiler took.
    """

    name: str
    memory: Memory
    module: Module
    text: str
    seconds: float


def planned_steps(engine: EngineConfig) -> list[str]:
    """Executables that a plan compiles: decode, insert, every bucket alone, a chunk after every past."""
    prefills = [(bucket, 0) for bucket in engine.buckets] + [(engine.chunk, past) for past in engine.pasts]
    return ["decode", "insert", *dict.fromkeys(prefill_name(*prefill) for prefill in prefills)]


def all_steps(placer: Placer) -> list[str]:
    """Names of everything that an engine compiles."""
    return [name for name, _ in lower_steps(placer, None)]


def compile_for_topology(
    placer: Placer, names: Collection[str], progress: Progress | None = None
) -> dict[str, Executable]:
    """Compile these steps for the placer's mesh, with the emitter that transfers arrays.

    Raises DoesNotFit where the compiler finds no room.
    """
    todo = {name: lower for name, lower in lower_steps(placer, None) if name in names}
    report = progress or (lambda name, done, total: None)
    report("tracing", 0, len(todo))
    with ThreadPoolExecutor(COMPILERS) as pool:
        running = {name: pool.submit(_compile, name, lower()) for name, lower in todo.items()}
        results: dict[str, Executable] = {}
        for name, future in running.items():
            results[name] = future.result()
            report(name, len(results), len(todo))
    return results


def _compile(name: str, lowered: jax.stages.Lowered) -> Executable:
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if found := _TOO_LARGE.search(str(error)):
            raise DoesNotFit(f"{name}: {found[1]}") from None
        raise
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Executable(
        name=name,
        memory=Memory(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            aliased=memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
        ),
        module=parse(text),
        text=text,
        seconds=seconds,
    )
