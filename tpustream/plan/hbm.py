"""What lies in the memory of each device, by part: from shapes before compiling, and from the compiler."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tpustream.engine.placer import Placer
from tpustream.plan.chips import GIB
from tpustream.plan.compiler import Executable

TEMPORARIES = 0.05  # of HBM: set aside for temporaries and code while nothing is compiled yet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resident:
    """Bytes on each device that stay there while the engine runs, from shapes alone.

    Attributes:
      weights: parameters and tables of rotations; `read` of them are read by every step.
      cache: keys and values of all slots.
      slots: the rest of the slots' state: penalties, sampling.
      prefix: the workspace of prefill.
      prefix_cache: blocks of earlier prompts, as far as --prefix_cache_mb lets them grow.
    """

    weights: int
    read: int
    cache: int
    slots: int
    prefix: int
    prefix_cache: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.slots + self.prefix + self.prefix_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """HBM of one device with the engine running.

    Attributes:
      parts: name -> bytes, in the order of a table.
      available: what the compiler lets a program have.
    """

    parts: dict[str, int]
    available: int

    @property
    def used(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def left(self) -> int:
        """Negative where it does not fit."""
        return self.available - self.used


def device_bytes(tree: Any) -> int:
    """Bytes of arrays on one device; leaves are ShapeDtypeStructs with a sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def resident(placer: Placer) -> Resident:
    """What stays in memory for this model, engine and mesh."""
    weights, state = placer.weights(), placer.state()
    cache = device_bytes((state.cache.k, state.cache.v))
    looked_up = 0 if placer.model.tie_embeddings else device_bytes(weights.params["embed.table"])
    block = placer.block()
    whole = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(block))
    blocks = (placer.engine.prefix_cache_mb << 20) // max(whole, 1)
    return Resident(
        weights=device_bytes(weights),
        read=device_bytes(weights.params) - looked_up,
        cache=cache,
        slots=device_bytes(state) - cache,
        prefix=device_bytes(placer.prefix()),
        prefix_cache=blocks * device_bytes(block),
    )


def budget(
    held: Resident, executables: Mapping[str, Executable], *, engine_steps: int, available: int
) -> Budget:
    """HBM by part with the compiler's own figures.

    Args:
      executables: those that were compiled, "decode" among them.
      engine_steps: executables that the engine has; those not compiled are taken to be as large as the
        largest prefill.
    """
    memory = {name: executable.memory for name, executable in executables.items()}
    fills = [part.code for name, part in memory.items() if name.startswith("prefill")]
    others = (engine_steps - len(memory)) * max(fills, default=0)
    return Budget(
        parts={
            "weights": held.weights,
            "cache": held.cache,
            "slots": memory["decode"].arguments - held.weights - held.cache,
            "prefix": held.prefix + held.prefix_cache,
            "temporaries": max(part.working for part in memory.values()),
            "code": sum(part.code for part in memory.values()),
            "code not compiled here": others,
        },
        available=available,
    )


def largest(parts: Mapping[str, int], *, available: int, slots: int, ring: int) -> tuple[int, int]:
    """(slots at this ring, ring at these slots) that fit, other things as they are.

    What grows with slots is the cache, their state and, as a bound, the temporaries; with the ring, the cache
    and the prefix. The ring is rounded down to 128 columns.
    """
    grows = parts["cache"] + parts["slots"] + parts["temporaries"]
    fixed = sum(parts.values()) - grows
    most_slots = max(0, (available - fixed) * slots // max(grows, 1))
    grows = parts["cache"] + parts["prefix"]
    fixed = sum(parts.values()) - grows
    most_ring = max(0, (available - fixed) * ring // max(grows, 1))
    return most_slots, most_ring // 128 * 128


def gib(size: float) -> str:
    """Bytes as text: GiB, or MiB where that says more."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.2f} MiB"
