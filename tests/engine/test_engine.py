"""The engine's loop: turns, cancellation, seeds, failure. Nobody hangs and nothing is lost."""

import dataclasses
import math
import time

import jax.numpy as jnp
import pytest

from tests.tiny import TINY, collect, generate, request, submit, tiny_engine, tiny_files, wait_for
from tpustream.core.errors import EngineStopped, InvalidRequest, QueueFull
from tpustream.core.request import FinishReason

ENDLESS = 10**6


@pytest.fixture(scope="module")
def engine():
    """Two slots of 64 columns."""
    built = tiny_engine()
    yield built
    built.stop()


def test_more_requests_than_slots_wait_their_turn(engine):
    """Nine requests on two slots all end, each with the tokens that it gets alone."""
    prompts = [tuple(range(1, 2 + n)) for n in range(9)]
    alone = [generate(engine, request(prompt)) for prompt in prompts]
    streams = [submit(engine, request(prompt, request_id=str(n))) for n, prompt in enumerate(prompts)]
    assert [[event.token for event in collect(events)[0]] for events in streams] == alone


def test_a_seed_gives_the_same_tokens_in_any_company(engine):
    """Alone, beside another stream, and on another slot; another seed differs."""
    sampled = {"temperature": 1.5, "max_tokens": 30}
    alone = generate(engine, request((1, 2, 3), seed=7, **sampled))
    other = submit(engine, request((9, 9), request_id="other", max_tokens=ENDLESS))
    assert generate(engine, request((1, 2, 3), seed=7, **sampled)) == alone
    engine.cancel("other")
    collect(other)
    assert generate(engine, request((1, 2, 3), seed=8, **sampled)) != alone


def test_max_tokens_and_stop_tokens_end_a_stream(engine):
    """LENGTH after exactly max_tokens; STOP at a stop token, which is the last event."""
    events, finish = collect(submit(engine, request((4, 5), max_tokens=6)))
    assert finish == FinishReason.LENGTH and len(events) == 6
    stop = events[3].token
    first = next(n for n, event in enumerate(events) if event.token == stop)
    events, finish = collect(submit(engine, request((4, 5), max_tokens=6, stop_token_ids=(stop,))))
    assert finish == FinishReason.STOP and len(events) == first + 1


@pytest.mark.parametrize("cancelled", ["running", "waiting"])
def test_a_cancelled_request_ends_once_and_frees_its_place(engine, cancelled):
    """Its last event says CANCELLED, and the next request gets the slot."""
    streams = [submit(engine, request((n + 1,), request_id=f"c{n}", max_tokens=ENDLESS)) for n in range(3)]
    for events in streams[:2]:
        events.get(timeout=60)
    victim = 0 if cancelled == "running" else 2
    engine.cancel(f"c{victim}")
    assert collect(streams[victim])[1] == FinishReason.CANCELLED
    if cancelled == "running":
        streams[2].get(timeout=60)
    for number in range(3):
        engine.cancel(f"c{number}")  # the victim's second cancel is ignored
    for number in {0, 1, 2} - {victim}:
        assert collect(streams[number])[1] == FinishReason.CANCELLED
    assert len(generate(engine, request((1,)))) == 8
    assert all(events.empty() for events in streams)


def test_a_host_side_stop_is_a_stop(engine):
    """The reason that comes with a command is the reason of the last event."""
    events = submit(engine, request((1,), max_tokens=ENDLESS))
    events.get(timeout=60)
    engine.cancel("r", FinishReason.STOP)
    assert collect(events)[1] == FinishReason.STOP


BAD = [
    ({"prompt": ()}, "prompt"),
    ({"prompt": (TINY.vocab_size,)}, "prompt"),
    ({"prompt": (1,) * 65}, "messages"),
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias"),
    ({"logit_bias": {1: 101.0}}, "logit_bias"),
    ({"stop_token_ids": tuple(range(50))}, "stop_token_ids"),
    ({"logprobs": 21}, "logprobs"),
    ({"seed": None}, "seed"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=str)
def test_what_cannot_be_honoured_is_refused_by_name(engine, fields, param):
    """The error names the field, says wanted and got, and the next request works."""
    prompt = fields.get("prompt", (1,))
    sampling = {name: value for name, value in fields.items() if name != "prompt"}
    with pytest.raises(InvalidRequest) as error:
        submit(engine, request(prompt, **sampling))
    assert error.value.param == param
    assert len(generate(engine, request((1,)))) == 8


def test_an_id_in_flight_is_refused(engine):
    """Two streams cannot share an id."""
    events = submit(engine, request((1,), max_tokens=ENDLESS))
    with pytest.raises(InvalidRequest, match="in flight"):
        submit(engine, request((1,)))
    engine.cancel("r")
    collect(events)


@pytest.fixture
def holders(engine):
    """Two endless streams hold both slots; `holders()` lets them go."""
    streams = [submit(engine, request((1,), request_id=f"h{n}", max_tokens=ENDLESS)) for n in range(2)]
    for events in streams:
        events.get(timeout=60)

    def release():
        for n, events in enumerate(streams):
            engine.cancel(f"h{n}")  # ignored for one that a test has cancelled
            collect(events)
        streams.clear()

    yield release
    release()


def test_a_request_whose_deadline_passes_ends_with_a_reason(engine, holders, monkeypatch):
    """By the clock that the engine was given; the streams that run are untouched, its id is free again."""
    now = [100.0]
    monkeypatch.setattr(engine, "_clock", lambda: now[0])
    late = submit(engine, dataclasses.replace(request((1,)), deadline=5.0))
    patient = submit(engine, dataclasses.replace(request((1,), request_id="patient"), deadline=60.0))
    now[0] = 105.5
    events, finish = collect(late)
    assert finish == FinishReason.EXPIRED and len(events) == 1
    assert events[0].error == "deadline: wanted a slot within 5 s of arrival, got none in 5.500 s"
    holders()
    assert collect(patient)[1] == FinishReason.LENGTH
    assert len(generate(engine, request((1,)))) == 8


def test_a_full_queue_says_so_at_once(engine, holders, monkeypatch):
    """By requests and by prompt tokens; a refusal leaves nothing behind."""
    monkeypatch.setattr(engine._room, "_max_waiting", 2)
    monkeypatch.setattr(engine._room, "_max_waiting_tokens", 7)
    waiting = [submit(engine, request((1,) * 5, request_id="w0"))]
    with pytest.raises(QueueFull, match="wanted at most 7 prompt tokens waiting, got 8"):
        submit(engine, request((1,) * 3))
    waiting.append(submit(engine, request((1,) * 2, request_id="w1")))
    with pytest.raises(QueueFull, match="wanted at most 2 requests waiting, got 3"):
        submit(engine, request((1,)))
    with pytest.raises(QueueFull):
        engine.check_room(1)
    holders()
    assert [collect(events)[1] for events in waiting] == [FinishReason.LENGTH] * 2
    assert (engine._room.in_flight, engine._room.waiting_tokens) == (0, 0)
    assert len(generate(engine, request((1,)))) == 8


def test_priorities_and_keys_decide_who_is_next(engine, holders):
    """The urgent one first, then a single request of another key before the rest of a burst."""
    ended = []

    def start(name: str, **fields):
        wanted = dataclasses.replace(request((1, 2, 3), request_id=name, max_tokens=20), **fields)
        engine.submit(wanted, lambda event: ended.append(name) if event.finish is not None else None)

    for n in range(8):
        start(f"burst{n}", key="burst")
    start("single", key="single")
    start("urgent", key="burst", priority=-1)
    engine.cancel("h0")  # all pass through one slot
    wait_for(lambda: len(ended) == 10)
    assert ended == ["urgent", "burst0", "single", *(f"burst{n}" for n in range(1, 8))]


def test_stop_ends_streams_and_refuses_new_ones():
    """Running and waiting streams get their last event; submit says why it refuses."""
    engine = tiny_engine()
    streams = [submit(engine, request((1,), request_id=str(n), max_tokens=ENDLESS)) for n in range(4)]
    streams[0].get(timeout=60)
    engine.stop()
    assert [collect(events)[1] for events in streams] == [FinishReason.CANCELLED] * 4
    with pytest.raises(EngineStopped, match="stopped"):
        submit(engine, request((1,)))
    engine.stop()


def test_logits_that_are_not_finite_end_one_request():
    """The stream that met them ends with an error; its neighbour and its successor are untouched."""
    engine = tiny_engine()
    wanted = generate(engine, request((1, 2), max_tokens=30))
    params = dict(engine._weights.params)
    params["embed.table"] = params["embed.table"].at[5].set(jnp.nan)
    params["head.kernel"] = engine._weights.params["embed.table"]
    engine.stop()

    engine = tiny_engine(files=tiny_files(dataclasses.replace(TINY, tie_embeddings=False)), params=params)
    neighbour = submit(engine, request((1, 2), request_id="n", max_tokens=30))
    for prompt in [(3, 5, 7), (3, 5, 7) * 10, (3, 5, 7) * 10]:  # whole chunks of it are cached, too
        events, finish = collect(submit(engine, request(prompt)))
        assert finish == FinishReason.ERROR and "not finite" in events[-1].error
    assert [event.token for event in collect(neighbour)[0]] == wanted
    assert generate(engine, request((1, 2), max_tokens=30)) == wanted
    engine.stop()


def test_a_failing_step_ends_every_stream_with_its_reason():
    """An error of the engine reaches every client, and later requests are refused."""
    engine = tiny_engine()

    def broken(*_):
        raise RuntimeError("the device is gone")

    engine._steps = dataclasses.replace(engine._steps, decode=broken)
    streams = [submit(engine, request((1,), request_id=str(n))) for n in range(3)]
    for events in streams:
        last = collect(events)[0][-1]
        assert last.finish == FinishReason.ERROR and "the device is gone" in last.error
    with pytest.raises(EngineStopped, match="the device is gone"):
        submit(engine, request((1,)))
    engine.stop()


def test_the_engine_tells_of_itself(engine):
    """Waits for a slot and neighbours' prompts come with the tokens; counts of steps fit the tokens."""
    before = engine.stats()
    assert (before.slots, before.running, before.waiting, before.cache_usage) == (2, 0, 0, 0.0)
    first = submit(engine, request((1, 2), request_id="first", max_tokens=ENDLESS))
    second = submit(engine, request((1, 2), request_id="second", max_tokens=ENDLESS))
    third = submit(engine, request((1, 2, 3), request_id="third", max_tokens=2))
    came = time.monotonic()
    wait_for(lambda: engine.stats().decode_rows > before.decode_rows + 40)
    busy = engine.stats()
    assert (busy.running, busy.waiting) == (2, 1)
    assert 0.0 < busy.cache_usage <= 1.0
    assert busy.timed_seconds > before.timed_seconds
    assert busy.timed_bytes > before.timed_bytes
    freed = time.monotonic()
    engine.cancel("first")
    events, _ = collect(third)
    engine.cancel("second")
    others = [*collect(first)[0], *collect(second)[0]]
    assert others[0].queued >= 0
    assert events[0].queued >= freed - came
    assert events[1].queued is None
    assert any(event.after_prefill for event in others)
    wait_for(lambda: engine.stats().running == 0)
    rows = engine.stats().decode_rows - before.decode_rows
    assert rows >= sum(event.token is not None for event in [*others, *events])
