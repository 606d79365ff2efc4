"""How deep dispatches are: alone, under load, within the target, and what the engine makes of it."""

import dataclasses
import queue
import threading

import numpy as np
import pytest

from tests.tiny import SMALL_ENGINE, collect, generate, request, submit, tiny_engine
from tpustream.core.request import FinishReason
from tpustream.core.token_batch import StepFinish
from tpustream.engine.depth import DepthPolicy, Load
from tpustream.engine.packing import unpack

ENDLESS = 10**6


def policy(deepest: int = 8, target: float = 0.0, *, held_back: bool = True, step: float | None = None):
    """A policy that has measured `step`, and has grown as deep as it goes."""
    out = DepthPolicy(deepest=deepest, target=target, held_back=held_back)
    if step is not None:
        out.dispatched(1, now=0.0, alone=True)
        out.completed(step)
    for _ in range(10):
        out.dispatched(1, now=100.0, alone=False)
        out.completed(100.0)
    return out


def depths(chooser: DepthPolicy, count: int, load: Load) -> list[int]:
    """What a few dispatches under this load are."""
    out = []
    for _ in range(count):
        out.append(chooser.choose(load))
        chooser.dispatched(out[-1], now=0.0, alone=False)
    return out


STEADY = Load(remaining=(ENDLESS, ENDLESS))


def test_depth_doubles_under_a_steady_load():
    """From one step to the deepest, which need not be a power of two."""
    assert depths(DepthPolicy(deepest=6, target=0.0, held_back=True), 5, STEADY) == [1, 2, 4, 6, 6]
    assert depths(DepthPolicy(deepest=1, target=0.0, held_back=True), 2, STEADY) == [1, 1]


@pytest.mark.parametrize("change", [{"prefilling": True}, {"disturbed": True}], ids=str)
def test_what_happens_makes_it_shallow_again(change):
    """One step as long as it lasts, and growth from one after it."""
    chooser = policy()
    assert chooser.choose(STEADY) == 8
    assert depths(chooser, 3, dataclasses.replace(STEADY, **change)) == [1, 1, 1]
    assert depths(chooser, 3, STEADY) == [2, 4, 8]


def test_a_change_while_nothing_is_dispatched_is_not_forgotten():
    """Depth 0 for now; the next dispatch is one step all the same."""
    chooser = policy()
    assert chooser.choose(Load(remaining=(), disturbed=True)) == 0
    assert chooser.choose(STEADY) == 1


@pytest.mark.parametrize(
    ("remaining", "waiting", "wanted"),
    [
        ((3, 5), False, 5),  # the row of 3 idles for two steps, and nobody wants its slot
        ((3, 5), True, 3),
        ((0, 5), False, 5),
        ((0, 5), True, 1),  # a slot is about to come free
        ((-2, 1), False, 1),
        ((-2, 0), False, 0),
        ((-2, 0), True, 0),
        ((), True, 0),
        ((ENDLESS, 20), True, 8),
    ],
)
def test_no_deeper_than_rows_need(remaining, waiting, wanted):
    """The last row's end bounds it, and the first one's while somebody waits for a slot."""
    assert policy().choose(Load(remaining=remaining, waiting=waiting)) == wanted


@pytest.mark.parametrize(
    ("held_back", "slot_free", "wanted"),
    [(True, False, 4), (True, True, 4), (False, True, 4), (False, False, 8)],
)
def test_the_target_bounds_who_would_notice(held_back, slot_free, wanted):
    """Tokens that are held back, and a newcomer; callbacks into full slots keep nobody waiting."""
    chooser = policy(target=0.020, held_back=held_back, step=0.0047)
    assert chooser.choose(dataclasses.replace(STEADY, slot_free=slot_free)) == wanted


@pytest.mark.parametrize(
    ("target", "step", "wanted"), [(0.02, 0.5, 1), (0.02, None, 1), (0.02, 0.0, 8), (0.0, 0.5, 8)]
)
def test_the_target_at_its_ends(target, step, wanted):
    """Never less than a step, one step until the first measurement, all without a target."""
    assert policy(target=target, step=step).choose(STEADY) == wanted


def test_a_step_is_measured_from_end_to_end_of_dispatches():
    """With two under way the second begins when the first ends; what shared the device counts for nothing."""
    chooser = DepthPolicy(deepest=8, target=0.0, held_back=True)
    chooser.dispatched(4, now=1.0, alone=True)
    chooser.dispatched(8, now=1.1, alone=True)
    chooser.completed(5.0)
    assert chooser.step_seconds == 1.0
    chooser.completed(21.0)
    assert chooser.step_seconds == pytest.approx(1.0 + 0.2 * (2.0 - 1.0))
    chooser.dispatched(1, now=30.0, alone=False)
    chooser.completed(90.0)
    assert chooser.step_seconds == pytest.approx(1.2)


@pytest.fixture(scope="module")
def engine():
    """Two slots, up to eight steps a dispatch, no target."""
    built = tiny_engine(dataclasses.replace(SMALL_ENGINE, fused_steps=8, itl_target_ms=0))
    yield built
    built.stop()


@pytest.fixture
def log(engine, monkeypatch):
    """What goes out to the device, in order: the depth of a decode, or "release"."""
    generate(engine, request((1,), max_tokens=1))  # behind it nothing is left of the test before
    calls, steps = [], engine._steps

    def decode(weights, state, count):
        calls.append(int(count))
        return steps.decode(weights, state, count)

    def set_active(state, slot, epoch, active):
        assert active == 0  # nothing is paused and resumed here
        calls.append("release")
        return steps.set_active(state, slot, epoch, active)

    watched = dataclasses.replace(steps, decode=decode, set_active=set_active)
    monkeypatch.setattr(engine, "_steps", watched)
    monkeypatch.setattr(engine._slots, "_steps", watched)
    return calls


def test_a_lone_stream_deepens_and_ends_on_its_last_step(engine, log):
    """1, 2, 4, 8 ... and no step beyond max_tokens."""
    assert len(generate(engine, request((1, 2), max_tokens=26))) == 26
    assert log == [1, 2, 4, 8, 8, 3]


def test_rows_that_end_on_the_way_do_not_end_the_dispatch(engine):
    """A row that ends idles, its neighbour runs to the depth, and what was not run is empty."""
    state = dataclasses.replace(
        engine._steps.initial_state(), active=np.array([True, True]), remaining=np.array([2, 9], np.int32)
    )
    state, packed = engine._steps.decode(engine._weights, state, np.int32(5))
    steps = [unpack(step) for step in np.asarray(packed)]
    assert [step.emitted.tolist() for step in steps[:5]] == [[True, True]] * 2 + [[False, True]] * 3
    assert [step.finish[0] for step in steps[:2]] == [StepFinish.RUNNING, StepFinish.LENGTH]
    assert [step.step for step in steps[:5]] == [0, 1, 2, 3, 4]
    assert len(steps) == 8 and not np.asarray(packed[5:]).any()
    assert (state.step, state.active.tolist()) == (5, [False, True])
    assert (state.remaining.tolist(), state.cache.length.tolist()) == ([0, 4], [2, 5])


def test_a_cancel_is_heard_before_the_next_dispatch(engine, log, monkeypatch):
    """It comes while the loop waits for a place: what goes out next is the release of its slot."""
    events = submit(engine, request((1,), max_tokens=ENDLESS))
    other = submit(engine, request((2,), request_id="other", max_tokens=ENDLESS))
    while 8 not in log:
        events.get(timeout=60)
    cancelled, tokens = [], engine._tokens
    reserve = tokens.reserve

    def reserve_and_cancel():
        waits = not tokens._reserved
        reserve()
        if waits and not cancelled:
            engine.cancel("r")
            cancelled.append(len(log))

    monkeypatch.setattr(tokens, "reserve", reserve_and_cancel)
    assert collect(events)[1] == FinishReason.CANCELLED
    engine.cancel("other")
    collect(other)
    assert log[cancelled[0] : cancelled[0] + 2] == ["release", 1]


def test_a_cancelled_slot_is_taken_before_the_next_dispatch(engine, log, monkeypatch):
    """With both slots held, a waiting request is placed in the turn in which one is cancelled."""
    holders = [submit(engine, request((1,), request_id=f"h{n}", max_tokens=ENDLESS)) for n in range(2)]
    for events in holders:
        events.get(timeout=60)
    waiting = submit(engine, request((3,), max_tokens=1))
    placed, prefill = [], engine._prefiller.add

    def add(placement):
        placed.append(len(log))
        prefill(placement)

    monkeypatch.setattr(engine._prefiller, "add", add)
    engine.cancel("h0")
    assert len(collect(waiting)[0]) == 1
    assert placed == [log.index("release") + 1]
    engine.cancel("h1")
    for events in holders:
        collect(events)


def test_the_next_dispatch_goes_out_before_the_last_is_read(engine, monkeypatch):
    """Nobody reads a result until the dispatch behind it is out."""
    steps, out, ahead = engine._steps, [], []

    class Result:
        def __init__(self, packed):
            self.packed, self.followed = packed, threading.Event()

        def copy_to_host_async(self):
            pass

        def __array__(self, *_, **__):
            ahead.append(self.followed.wait(20))
            return np.asarray(self.packed)

    def decode(weights, state, count):
        state, packed = steps.decode(weights, state, count)
        if out:
            out[-1].followed.set()
        out.append(Result(packed))
        if len(out) == 5:
            out[-1].followed.set()
        return state, out[-1]

    monkeypatch.setattr(engine, "_steps", dataclasses.replace(steps, decode=decode))
    assert len(generate(engine, request((1, 2), max_tokens=1 + 2 + 4 + 8 + 3))) == 18
    assert ahead == [True] * 5


@pytest.mark.parametrize(("fused_steps", "emitter"), [(1, "transfer"), (8, "callback")])
def test_tokens_do_not_depend_on_depth_or_emitter(engine, fused_steps, emitter):
    """Greedy and seeded: as with eight steps and transfer, alone or in company."""
    asked = [
        request((1, 2, 3), request_id="greedy", max_tokens=40, logprobs=2),
        request((4, 5), request_id="seeded", max_tokens=33, temperature=1.2, top_k=20, seed=11),
        request((6,), request_id="penalised", max_tokens=21, temperature=0.8, frequency_penalty=0.7, seed=3),
    ]

    def said(events: queue.SimpleQueue) -> list[tuple]:
        return [(event.token, event.logprobs, event.finish) for event in collect(events)[0]]

    wanted = [said(submit(engine, ask)) for ask in asked]
    other = tiny_engine(
        dataclasses.replace(SMALL_ENGINE, fused_steps=fused_steps, itl_target_ms=0, emitter=emitter)
    )
    got = [said(events) for events in [submit(other, ask) for ask in asked]]
    other.stop()
    assert got == wanted
