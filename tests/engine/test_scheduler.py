"""Who gets a slot: nothing is lost or doubled, order, fair shares, deadlines and the bounds of waiting."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import request
from tpustream.config import EngineConfig
from tpustream.core.errors import InvalidRequest, QueueFull
from tpustream.core.request import Request, SamplingParams
from tpustream.engine.scheduler import Scheduler
from tpustream.engine.waiting_room import WaitingRoom


def asked(name: object, tokens: int = 1, **fields) -> Request:
    """A request with a prompt of so many tokens."""
    return Request(id=str(name), prompt=(0,) * tokens, sampling=SamplingParams(seed=0), **fields)


def admitted(scheduler: Scheduler) -> list[Request]:
    """What gets a slot now."""
    return [placement.request for placement in scheduler.plan().admit]


def served_in_order(scheduler: Scheduler, steps: int = 0) -> list[str]:
    """Ids in the order in which they get a slot, each slot freed as soon as all were looked at."""
    out = []
    while placements := scheduler.plan().admit:
        out += [placement.request.id for placement in placements]
        scheduler.decoded(steps)
        for placement in placements:
            scheduler.finished(placement.slot, placement.epoch)
    return out


REQUESTS = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 9),
        "key": st.sampled_from("abc"),
        "priority": st.integers(-1, 1),
        "deadline": st.none() | st.integers(1, 6).map(float),
    }
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), REQUESTS),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.integers(0, 3)),
        st.tuples(st.just("turn"), st.integers(0, 3)),
    ),
    max_size=60,
)


@given(slots=st.integers(1, 3), actions=ACTIONS)
def test_whatever_happens_every_request_is_somewhere_once(slots, actions):
    """Waiting, in a slot, or out in exactly one way; slots have one owner, epochs grow, order holds."""
    scheduler, now, number = Scheduler(slots), 0.0, itertools.count()
    waiting: dict[str, tuple[Request, float]] = {}
    running: dict[int, tuple[str, int]] = {}
    epochs, released = Counter(), []
    for action, value in actions:
        if action == "add":
            new = asked(next(number), **value)
            scheduler.add(new, now)
            waiting[new.id] = (new, now)
        elif action == "remove":
            held = [slot for slot, (name, _) in running.items() if name == str(value)]
            released += [(slot, running.pop(slot)[1]) for slot in held]
            waiting.pop(str(value), None)
            scheduler.remove(str(value))
        elif action == "finish":
            slot, (_, epoch) = value % slots, running.pop(value % slots, ("", 0))
            scheduler.finished(slot, epoch)
            scheduler.finished(slot, epoch)  # late news of an empty slot changes nothing
            for slot, (_, epoch) in running.items():
                scheduler.finished(slot, epoch - 1)  # nor of an earlier occupant
        else:
            now += value
            late = {e.request.id for e in scheduler.expire(now)}
            due = {i for i, (r, came) in waiting.items() if r.deadline and came + r.deadline <= now}
            assert late == due
            waiting = {i: kept for i, kept in waiting.items() if i not in late}
            plan = scheduler.plan()
            assert list(plan.release) == released
            released = []
            for placement in plan.admit:
                mine = waiting.pop(placement.request.id)[0]
                ahead = [r for r, _ in waiting.values() if r.priority <= mine.priority]
                assert all(r.priority == mine.priority for r in ahead)
                assert all(int(r.id) > int(mine.id) for r in ahead if r.key == mine.key)
                assert placement.slot in range(slots) and placement.slot not in running
                epochs[placement.slot] += 1
                assert placement.epoch == epochs[placement.slot]
                running[placement.slot] = (mine.id, placement.epoch)
            assert not waiting or len(running) == slots
            scheduler.decoded(2)
        assert (scheduler.waiting, scheduler.running) == (len(waiting), len(running))


def test_an_id_may_come_again_before_the_news_of_its_end():
    """A client that saw its last token reuses the id at once: both slots come back."""
    scheduler = Scheduler(2)
    scheduler.add(asked("same"), 0.0)
    (first,) = scheduler.plan().admit
    scheduler.add(asked("same"), 0.0)
    (second,) = scheduler.plan().admit
    scheduler.finished(first.slot, first.epoch)
    assert scheduler.running == 1
    scheduler.remove("same")
    assert scheduler.running == 0
    assert scheduler.plan().release == ((second.slot, second.epoch),)


@given(
    tokens=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    slots=st.integers(1, 3),
    gone=st.sets(st.integers(0, 19)),
)
def test_one_key_is_first_come_first_served(tokens, slots, gone):
    """Whatever the lengths, and whoever leaves the queue."""
    scheduler = Scheduler(slots)
    for name, count in enumerate(tokens):
        scheduler.add(asked(name, count), 0.0)
    for name in gone:
        scheduler.remove(str(name))
    left = [str(name) for name in range(len(tokens)) if name not in gone]
    assert served_in_order(scheduler, steps=7) == left


def test_a_lower_priority_value_goes_first():
    """vLLM's convention; equals keep their order."""
    scheduler = Scheduler(1)
    for name, priority in enumerate((0, 5, -3, 0, 5, -3)):
        scheduler.add(asked(name, priority=priority), 0.0)
    assert served_in_order(scheduler) == ["2", "5", "0", "3", "1", "4"]


@given(
    burst=st.integers(1, 12),
    before=st.integers(0, 12),
    others=st.integers(1, 4),
    slots=st.integers(1, 3),
    steps=st.integers(0, 20),
    tokens=st.lists(st.integers(1, 40), min_size=48, max_size=48),
)
def test_a_newcomer_waits_for_at_most_one_request_of_each_other_key(
    burst, before, others, slots, steps, tokens
):
    """However long the bursts of the others are, and however long they have been at it."""
    scheduler, lengths = Scheduler(slots), iter(tokens)
    for name in range(burst):
        for key in range(others):
            scheduler.add(asked(f"{key}.{name}", next(lengths), key=str(key)), 0.0)
    running = list(scheduler.plan().admit)
    for _ in range(before):
        scheduler.decoded(steps)
        if running:
            scheduler.finished(running[0].slot, running[0].epoch)
        running = running[1:] + list(scheduler.plan().admit)
    scheduler.add(asked("new", 30, key="new"), 0.0)
    earlier = Counter()
    while (new := next((p for p in running if p.request.id == "new"), None)) is None:
        scheduler.decoded(steps)
        if running:
            scheduler.finished(running[0].slot, running[0].epoch)
        entered = list(scheduler.plan().admit)
        earlier.update(placement.request.key for placement in entered)
        running = running[1:] + entered
    assert new.request.key == "new"
    assert earlier.pop("new") == 1
    assert all(count <= 1 for count in earlier.values())


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=40, max_size=40),
    generated=st.lists(st.integers(0, 30), min_size=80, max_size=80),
)
def test_keys_that_always_wait_are_served_alike(lengths, generated):
    """Their tokens never differ by more than the dearest request of each (VTC, theorem 4.4, one slot)."""
    scheduler, served = Scheduler(1), Counter()
    for name, pair in enumerate(lengths):
        for key, tokens in zip("ab", pair, strict=True):
            scheduler.add(asked(f"{key}{name}", tokens, key=key), 0.0)
    left = Counter(a=40, b=40)
    for steps in generated:
        placement = scheduler.plan().admit[0]
        key = placement.request.key
        left[key] -= 1
        if not left[key]:
            break
        scheduler.decoded(steps)
        served[key] += len(placement.request.prompt) + steps
        scheduler.finished(placement.slot, placement.epoch)
        assert abs(served["a"] - served["b"]) <= 60


def test_a_key_that_was_away_saves_nothing_up():
    """After a long absence it shares from now on; it does not get the time that it missed."""
    scheduler = Scheduler(1)
    for name in range(20):
        scheduler.add(asked(f"a{name}", 10, key="a"), 0.0)
    for _ in range(10):
        placement = scheduler.plan().admit[0]
        scheduler.finished(placement.slot, placement.epoch)
    for name in range(10):
        scheduler.add(asked(f"b{name}", 10, key="b"), 0.0)
    keys = [name[0] for name in served_in_order(scheduler)]
    assert "".join(keys) == "ab" * 10


def test_slots_that_nobody_else_wanted_are_not_held_against_a_key():
    """Service is counted only while somebody waits."""
    scheduler = Scheduler(1)
    scheduler.add(asked("long", 10, key="a"), 0.0)
    (placement,) = scheduler.plan().admit
    scheduler.decoded(100_000)
    scheduler.add(asked("a", key="a"), 0.0)
    scheduler.add(asked("b", key="b"), 0.0)
    scheduler.finished(placement.slot, placement.epoch)
    assert served_in_order(scheduler) == ["a", "b"]


def test_keys_that_are_gone_are_forgotten():
    """A thousand keys that came once beside one that always waits leave nothing behind."""
    scheduler = Scheduler(1)
    for name in range(1100):
        scheduler.add(asked(f"always{name}", 5, key="always"), 0.0)
    for name in range(1000):
        scheduler.add(asked(name, 3, key=str(name)), 0.0)
        while (placement := scheduler.plan().admit[0]).request.key == "always":
            scheduler.finished(placement.slot, placement.epoch)
        scheduler.finished(placement.slot, placement.epoch)
    (queue,) = scheduler._queues.values()
    assert len(queue._served) <= 3
    served_in_order(scheduler)
    assert scheduler._queues == {}


def test_an_expired_request_says_why_and_never_runs():
    """Handed out once, at its time and not before, even when a slot is free in the same turn."""
    scheduler = Scheduler(1)
    scheduler.add(asked("first"), 10.0)
    (placement,) = scheduler.plan().admit
    scheduler.add(asked("late", deadline=2.0), 10.5)
    scheduler.add(asked("patient", deadline=9.0), 10.5)
    assert scheduler.expire(12.4) == []
    scheduler.finished(placement.slot, placement.epoch)
    (expired,) = scheduler.expire(12.5)
    assert expired.request.id == "late"
    assert expired.message == "deadline: wanted a slot within 2 s of arrival, got none in 2.000 s"
    assert [r.id for r in admitted(scheduler)] == ["patient"]
    assert scheduler.expire(1e9) == []  # it runs; its deadline is over


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan")])
def test_a_deadline_that_nothing_can_meet_is_refused(deadline):
    """Wanted and got, and the field's name."""
    with pytest.raises(InvalidRequest, match="deadline: wanted > 0 seconds, got") as error:
        asked("r", deadline=deadline)
    assert error.value.param == "deadline"


@given(
    slots=st.integers(1, 3),
    max_waiting=st.integers(0, 4),
    max_tokens=st.integers(0, 40),
    arrivals=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=40),
)
def test_the_room_never_holds_more_than_its_bounds(slots, max_waiting, max_tokens, arrivals):
    """Refused exactly when it would: free slots always take one, and one may always wait alone."""
    room = WaitingRoom(slots=slots, max_waiting=max_waiting, max_waiting_tokens=max_tokens)
    seated, waiting = 0, []
    for leaves, tokens in arrivals:
        if leaves and seated:
            room.leave()
            seated -= 1
        while waiting and seated < slots:
            room.seat(waiting.pop(0))
            seated += 1
        fits = not waiting or sum(waiting) + tokens <= max_tokens
        if seated + len(waiting) < slots or (len(waiting) < max_waiting and fits):
            room.enter(tokens)
            waiting.append(tokens)
        else:
            with pytest.raises(QueueFull, match="wanted at most") as error:
                room.enter(tokens)
            assert error.value.retry_after > 0
        assert (room.in_flight, room.waiting_tokens) == (seated + len(waiting), sum(waiting))


def test_a_burst_into_free_slots_is_not_refused():
    """Requests that will have a slot in a moment do not count as waiting."""
    room = WaitingRoom(slots=2, max_waiting=0, max_waiting_tokens=1)
    room.enter(5)
    room.enter(5)
    with pytest.raises(QueueFull):
        room.enter(1)


def test_a_refusal_says_which_bound():
    """Requests or tokens, with the figures."""
    room = WaitingRoom(slots=1, max_waiting=2, max_waiting_tokens=10)
    room.enter(3)
    room.enter(4)
    with pytest.raises(QueueFull, match="wanted at most 10 prompt tokens waiting, got 11"):
        room.enter(4)
    with pytest.raises(QueueFull, match="wanted at most 2 requests waiting, got 4"):
        room.check(3)


@pytest.mark.parametrize("field", ["max_waiting", "max_waiting_tokens"])
def test_a_negative_bound_is_refused(field):
    """Wanted and got."""
    with pytest.raises(ValueError, match=f"{field}: wanted >= 0, got -1"):
        EngineConfig(**{field: -1})


def test_a_plain_request_has_no_wishes():
    """Nobody's key, the middle priority, no deadline."""
    plain = request((1,))
    assert (plain.key, plain.priority, plain.deadline) == ("", 0, None)
