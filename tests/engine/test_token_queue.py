"""Every token reaches its owner once, in order, and nobody else."""

import queue
import threading
import time

import numpy as np
import pytest

from tests.tiny import request
from tpustream.core.plan import Placement
from tpustream.core.request import FinishReason
from tpustream.core.token_batch import StepFinish
from tpustream.engine.emitters import TokenQueue
from tpustream.engine.packing import pack, unpack
from tpustream.engine.routing import Router
from tpustream.engine.step_meter import StepBytes, StepMeter
from tpustream.engine.waiting_room import WaitingRoom


def _packed(step: int, *, epochs=(1, 1), finish=(0, 0), emitted=(True, True)) -> np.ndarray:
    """Tokens 100 + step and 200 + step."""
    return np.asarray(
        pack(
            token=np.array([100 + step, 200 + step], np.int32),
            epoch=np.array(epochs, np.int32),
            step=np.int32(step),
            finish=np.array(finish, np.int32),
            emitted=np.array(emitted),
            wanted=np.array([-1, 1], np.int32),
            logprob=np.array([-0.5, -1.5], np.float32),
            top_ids=np.array([[7], [8]], np.int32),
            top_logprobs=np.array([[-0.25], [-0.75]], np.float32),
        )
    )


class _Result:
    """Stands for the device array of a dispatch, ready when told; its last two rows are not used."""

    def __init__(self, steps):
        rows = [_packed(step) for step in steps]
        self._steps, self.ready = np.stack([*rows, *2 * [np.zeros_like(rows[0])]]), threading.Event()
        self.count = len(rows)

    def copy_to_host_async(self):
        pass

    def __array__(self, *_, **__):
        self.ready.wait(60)
        return self._steps


def test_packing_is_undone_by_unpacking():
    """Every field survives, floats to the bit."""
    batch = unpack(_packed(3, epochs=(4, 5), finish=(0, StepFinish.LENGTH), emitted=(False, True)))
    assert batch.step == 3
    assert batch.token.tolist() == [103, 203] and batch.epoch.tolist() == [4, 5]
    assert batch.emitted.tolist() == [False, True] and batch.finish.tolist() == [0, StepFinish.LENGTH]
    assert batch.wanted.tolist() == [-1, 1]
    assert batch.logprob.tolist() == [-0.5, -1.5]
    assert batch.top_ids.tolist() == [[7], [8]] and batch.top_logprobs.tolist() == [[-0.25], [-0.75]]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2), (3, 2, 1, 0), (0, 0, 2, 2, 1), ()])
def test_steps_arrive_once_and_in_order_however_callbacks_come(order):
    """Late, early, doubled or lost callbacks: the dispatch's result fills what is missing."""
    tokens, got = TokenQueue("callback"), queue.SimpleQueue()
    tokens.start(lambda batch: got.put(batch.step), got.put, lambda: None)
    result = _Result(range(4))
    tokens.reserve()
    tokens.dispatched(result, result.count)
    for step in order:
        tokens._called(_packed(step))
    result.ready.set()
    tokens.stop()
    assert [got.get(timeout=60) for _ in range(4)] == [0, 1, 2, 3] and got.empty()


def test_a_token_leaves_before_its_dispatch_ends():
    """With callbacks the first token is delivered while the device still runs the others."""
    tokens, got = TokenQueue("callback"), queue.SimpleQueue()
    tokens.start(lambda batch: got.put(batch.step), got.put, lambda: None)
    result = _Result(range(4))
    tokens.dispatched(result, result.count)
    tokens._called(_packed(0))
    assert got.get(timeout=60) == 0
    result.ready.set()
    tokens.stop()


def test_only_two_dispatches_are_in_flight():
    """The third waits until one is read, so that a cancelled slot is free soon."""
    tokens = TokenQueue("transfer")
    tokens.start(lambda batch: None, lambda error: None, lambda: None)
    results = [_Result([step]) for step in range(3)]
    reserved = threading.Semaphore(0)

    def dispatch():
        for result in results:
            tokens.reserve()
            reserved.release()
            tokens.dispatched(result, result.count)

    thread = threading.Thread(target=dispatch)
    thread.start()
    assert reserved.acquire(timeout=60) and reserved.acquire(timeout=60)
    assert not reserved.acquire(timeout=0.2)
    results[0].ready.set()
    assert reserved.acquire(timeout=60)
    for result in results:
        result.ready.set()
    thread.join(60)
    tokens.stop()


def test_rows_beyond_the_depth_of_a_dispatch_are_not_read():
    """Dispatches of different depths through one array: every step once, and no row that was not run."""
    tokens, got, ended = TokenQueue("transfer"), queue.SimpleQueue(), []
    tokens.start(lambda batch: got.put(batch), got.put, lambda: ended.append(got.qsize()))
    for steps in ([0], [1, 2, 3], [4, 5]):
        result = _Result(steps)
        result.ready.set()
        tokens.reserve()
        tokens.reserve()  # it is reserved already
        tokens.dispatched(result, result.count)
    tokens.stop()
    batches = [got.get(timeout=60) for _ in range(6)]
    assert [batch.step for batch in batches] == list(range(6)) and got.empty()
    assert [batch.token[0] for batch in batches] == [100 + step for step in range(6)]
    assert len(ended) == 3


def test_an_unknown_emitter_is_refused():
    """Wanted and got."""
    with pytest.raises(ValueError, match="wanted 'callback' or 'transfer', got 'pigeon'"):
        TokenQueue("pigeon")


def test_a_token_of_an_old_epoch_reaches_nobody():
    """A slot's late token is dropped after a new request took the slot."""
    finished, got = [], {"a": [], "b": []}
    room = WaitingRoom(slots=2, max_waiting=0, max_waiting_tokens=0)
    step_bytes = StepBytes(weights=1, positions={8: 1})
    meter = StepMeter(slots=2, step_bytes=step_bytes, clock=time.monotonic)
    meter.dispatched(3, after_prefill=False)
    router = Router(2, lambda slot, epoch: finished.append((slot, epoch)), room, meter)
    first, second = request((1,), request_id="a"), request((1,), request_id="b")
    router.open(first, got["a"].append)
    router.open(second, got["b"].append)
    router.place(Placement(request=first, slot=0, epoch=1))
    router.deliver(unpack(_packed(0, epochs=(1, 9), finish=(StepFinish.STOP, 0))))
    router.place(Placement(request=second, slot=0, epoch=2))
    router.deliver(unpack(_packed(1, epochs=(1, 9))))
    router.deliver(unpack(_packed(2, epochs=(2, 9))))
    assert [event.token for event in got["a"]] == [100] and got["a"][0].finish == FinishReason.STOP
    assert [event.token for event in got["b"]] == [102]
    assert finished == [(0, 1)]
