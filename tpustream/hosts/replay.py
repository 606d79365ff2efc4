"""A follower's side of lock-step: it makes the calls that the leader tells it, on the arrays they name.

Decides nothing, and reads no token.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tpustream.engine.compile import CompiledSteps
from tpustream.engine.state import Weights
from tpustream.hosts.broadcast import GIVEN, NAMED, WEIGHTS
from tpustream.hosts.connection import Message


class Replay:
    """Arrays by name, and the steps that make them. The counterpart of `broadcast_steps`."""

    def __init__(self, steps: CompiledSteps, weights: Weights):
        self._steps = steps
        self._weights = jax.tree.leaves(weights)
        self._arrays: dict[int, jax.Array] = {}
        self._next = itertools.count()

    @property
    def held(self) -> int:
        """Arrays that have a name."""
        return len(self._arrays)

    def run(self, receive: Callable[[], Message | None]) -> None:
        """Make every call that `receive` returns, until it returns None.

        Raises what a step raises, and ValueError for a call that cannot be made here.
        """
        while (message := receive()) is not None:
            self.call(message)

    def call(self, message: Message) -> None:
        """Make one call."""
        _, step, key, parts, gone = message
        compiled = getattr(self._steps, step)
        if isinstance(compiled, dict):
            compiled = compiled[tuple(key) if isinstance(key, list) else key]
        leaves = [leaf for part in parts for leaf in self._leaves(part)]
        arguments, _ = jax.tree.unflatten(compiled.in_tree, leaves)
        results = compiled(*arguments)
        del arguments, leaves
        for name in names_of(gone):
            del self._arrays[name]
        for leaf in jax.tree.leaves(results):
            self._arrays[next(self._next)] = leaf

    def _leaves(self, part: Message) -> Iterable[Any]:
        match part:
            case [kind] if kind == WEIGHTS:
                return self._weights
            case [kind, names] if kind == NAMED:
                return [self._arrays[name] for name in names_of(names)]
            case [kind, dtype, shape, data] if kind == GIVEN:
                return [np.frombuffer(data, dtype).reshape(shape)]
        raise ValueError(f"argument: wanted one of {WEIGHTS}, {NAMED} and {GIVEN}, got {part!r}")


def names_of(runs: Sequence[int]) -> Iterator[int]:
    """The names of runs first, count, first, count, …"""
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        yield from range(first, first + count)
