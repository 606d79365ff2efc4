"""The leader's side of lock-step: every call of a compiled step is told to the followers, then made.

A follower has the same executables and weights, so a call is its name, the arguments that lie on this
host (numbers of the scheduler, tokens), and names for those that lie on the devices. An array on the
devices is named when a step returns it: names are counted on both sides alike and never sent for
results. When the leader's last reference to an array goes, followers are told to let it go too.

Which steps there are, and what they mean, is not known here.
"""

import dataclasses
import functools
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from tpustream.engine.compile import CompiledSteps
from tpustream.engine.state import Weights
from tpustream.hosts.connection import Message

WEIGHTS = "weights"
NAMED = "named"
GIVEN = "given"


def broadcast_steps(steps: CompiledSteps, weights: Weights, send: Callable[[Message], None]) -> CompiledSteps:
    """The same steps, each of which tells the followers what it does.

    Args:
      steps: every field that is compiled, or a table of such, is wrapped; the rest is kept.
      weights: known to followers; passed to steps as this very object.
      send: to every follower, in order.

    The steps must be called from one thread at a time.
    """
    names = _Names()

    def wrapped(step: str, key: Hashable, run: jax.stages.Compiled) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            parts = [part for argument in arguments for part in _described(argument, weights, names)]
            send(["call", step, _plain(key), parts, list(_ranges(names.dropped()))])
            results = run(*arguments)
            for leaf in jax.tree.leaves(results):
                names.give(leaf)
            return results

        return call

    replaced = {}
    for field in dataclasses.fields(steps):
        value = getattr(steps, field.name)
        if isinstance(value, jax.stages.Compiled):
            replaced[field.name] = wrapped(field.name, None, value)
        elif isinstance(value, dict) and all(isinstance(run, jax.stages.Compiled) for run in value.values()):
            replaced[field.name] = {key: wrapped(field.name, key, run) for key, run in value.items()}
    return dataclasses.replace(steps, **replaced)


class _Names:
    """Names of the arrays that steps have returned and that somebody still holds."""

    def __init__(self):
        self._next = itertools.count()
        self._names: dict[int, int] = {}  # id of an array that lives -> its name
        self._watched: dict[int, weakref.ref] = {}
        self._gone: deque[int] = deque()

    def give(self, array: jax.Array) -> None:
        """Name an array, until it is collected."""
        name = next(self._next)
        self._names[id(array)] = name
        self._watched[name] = weakref.ref(array, functools.partial(self._forget, id(array), name))

    def of(self, array: jax.Array) -> int:
        """Its name. Raises ValueError for one that no step returned."""
        try:
            return self._names[id(array)]
        except KeyError:
            raise ValueError(
                f"argument: wanted an array that a step returned or one of this host, got {array.aval} "
                "of the devices, which other hosts do not know"
            ) from None

    def dropped(self) -> list[int]:
        """Names that nobody holds any more, each once."""
        out = []
        while self._gone:
            out.append(self._gone.popleft())
        return out

    def _forget(self, identity: int, name: int, _: weakref.ref) -> None:
        # On whichever thread dropped the array, before another one can get its identity.
        self._names.pop(identity, None)  # it may have had two names
        del self._watched[name]
        self._gone.append(name)


def _described(argument: Any, weights: Weights, names: _Names) -> Iterator[Message]:
    """The leaves of an argument: runs of names, and values of this host."""
    if argument is weights:
        yield [WEIGHTS]
        return
    for on_devices, leaves in itertools.groupby(
        jax.tree.leaves(argument), lambda leaf: isinstance(leaf, jax.Array)
    ):
        if on_devices:
            yield [NAMED, [*itertools.chain.from_iterable(_runs(map(names.of, leaves)))]]
        else:
            for leaf in leaves:
                value = np.asarray(leaf)
                yield [GIVEN, value.dtype.name, list(value.shape), value.tobytes()]


def _ranges(names: list[int]) -> Iterator[int]:
    """first, count, first, count, … of sorted names."""
    return itertools.chain.from_iterable(_runs(sorted(names)))


def _runs(names: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of every run of names that follow one another, in the given order."""
    first, count = 0, 0
    for name in names:
        if count and name == first + count:
            count += 1
        else:
            if count:
                yield first, count
            first, count = name, 1
    if count:
        yield first, count


def _plain(key: Hashable) -> Any:
    return list(key) if isinstance(key, tuple) else key
