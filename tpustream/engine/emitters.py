"""The token queue: two ways for tokens to leave the device, behind one interface.

`transfer`: each dispatch returns one packed array, copied to the host while the next one runs.
`callback`: beside that, the decode loop calls the host once a step, so tokens leave one by one although
one dispatch runs several steps.

Every step carries its number. A step is delivered once and in order, whichever way it came first, so
a callback that is late, early or lost changes nothing but the time of a token. Delivery runs on one
thread of the queue; the device never waits for Python.

An executable with a host callback cannot enter jax's persistent compile cache (0.10.2), so `auto` is
`transfer` on CPU and where every dispatch is one step, and `callback` where it may be several and the
start may take longer. `scripts/bench_decode.py --emitters=transfer,callback` measures both; the README
has figures.
"""

import queue
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import io_callback

from tpustream.config import EngineConfig
from tpustream.core.token_batch import TokenBatch
from tpustream.engine.packing import unpack

Deliver = Callable[[TokenBatch], None]
Fail = Callable[[BaseException], None]
Completed = Callable[[], None]
DISPATCHES_IN_FLIGHT = 2  # one runs, the next is queued behind it


def resolve_emitter(engine: EngineConfig, platform: str, *, transfer_for: str | None = None) -> str:
    """The emitter that "auto" stands for on this platform.

    Args:
      transfer_for: what can only have "transfer": several hosts, because an executable calls one of them
        and does not say which, or a bundle, because a call of this process cannot be written down.

    Raises ValueError where it can not be.
    """
    if transfer_for and engine.emitter == "callback":
        raise ValueError(f"emitter: wanted 'transfer' or 'auto' for {transfer_for}, got 'callback'")
    if engine.emitter != "auto":
        return engine.emitter
    held = transfer_for or engine.fused_steps == 1 or platform == "cpu"
    return "transfer" if held else "callback"


class TokenQueue:
    """Takes packed steps from the device and delivers TokenBatches in order.

    Args:
      kind: "callback" or "transfer".

    Attributes:
      emit: what the decode step calls on the device while it runs; None for "transfer".
    """

    def __init__(self, kind: str):
        if kind not in ("callback", "transfer"):
            raise ValueError(f"emitter: wanted 'callback' or 'transfer', got {kind!r}")
        self.emit = self._emit if kind == "callback" else None
        self._results: queue.SimpleQueue = queue.SimpleQueue()  # (i32[n, B, C] on device, steps that count)
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()  # i32[n, B, C] on the host
        self._in_flight = threading.Semaphore(DISPATCHES_IN_FLIGHT)
        self._reserved = False
        self._threads: list[threading.Thread] = []

    @property
    def held_back(self) -> bool:
        """Whether the tokens of a dispatch leave together, at its end."""
        return self.emit is None

    def start(self, deliver: Deliver, fail: Fail, completed: Completed) -> None:
        """Begin: `deliver` gets every step once; `fail` an error of the device or of `deliver`;
        `completed` is called when a dispatch has ended, on a thread of the queue.
        """
        jobs = {"results": (self._wait, (fail, completed)), "tokens": (self._deliver, (deliver, fail))}
        for name, (run, arguments) in jobs.items():
            thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def reserve(self) -> None:
        """Wait until another dispatch may go out; not again before it has gone."""
        if not self._reserved:
            self._in_flight.acquire()
            self._reserved = True

    def dispatched(self, packed: jax.Array, steps: int) -> None:
        """The reserved dispatch went out and will fill the first `steps` of i32[n, B, C]."""
        self._reserved = False
        packed.copy_to_host_async()
        self._results.put((packed, steps))

    def stop(self) -> None:
        """Deliver what was dispatched, then end the threads."""
        self._results.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _emit(self, packed: jax.Array) -> None:
        io_callback(self._called, None, packed, ordered=False)

    def _called(self, packed) -> None:
        # A copy: the argument is a view of the device's buffer, which the next step writes over.
        self._arrived.put(np.array(packed))

    def _wait(self, fail: Fail, completed: Completed) -> None:
        while (result := self._results.get()) is not None:
            packed, steps = result
            try:
                self._arrived.put(np.asarray(packed)[:steps])
                completed()
            except Exception as error:  # the device failed: requests must hear of it
                fail(error)
            finally:
                self._in_flight.release()
        self._arrived.put(None)

    def _deliver(self, deliver: Deliver, fail: Fail) -> None:
        expected, early = 0, {}
        while (packed := self._arrived.get()) is not None:
            packed = np.asarray(packed)
            for step in packed if packed.ndim == 3 else packed[None]:
                batch = unpack(step)
                if batch.step >= expected:
                    early[batch.step] = batch
            try:
                while expected in early:
                    batch = early.pop(expected)
                    expected += 1
                    deliver(batch)
            except Exception as error:  # a bug of ours must not leave streams hanging
                fail(error)
