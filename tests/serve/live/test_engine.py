"""Live streams on a real engine: what happens to a stream on its way changes none of its tokens."""

import dataclasses

import pytest

from tests.tiny import SMALL_ENGINE, TINY, tiny_engine, tiny_files
from tpustream.engine.compile_guard import CompileGuard
from tpustream.serve.answer import Settings

from ..scripted import ScriptedRuntime, serve, wait_until
from .client import live

PROMPT = "a lone golden magic"
SAMPLED = {"max_tokens": 30, "temperature": 1.2, "seed": 11, "frequency_penalty": 0.5, "ignore_eos": True}


@pytest.fixture(scope="module")
def real():
    """A server of a tiny model, on which streams without credits are parked at once, and its `guard`."""
    engine = tiny_engine(SMALL_ENGINE, files=tiny_files(dataclasses.replace(TINY, num_layers=1)))
    with (
        CompileGuard().watching() as guard,
        serve(ScriptedRuntime(engine=engine), settings=Settings(park_seconds=0.05)) as served,
    ):
        served.guard = guard
        yield served
    engine.stop()


def whole(served, **fields):
    """The text of a stream that nothing happens to."""
    with live(served) as client:
        client.send("start", **(SAMPLED | {"prompt": PROMPT} | fields))
        client.until("ended")
        return client.text()


@pytest.mark.parametrize("park", [False, True])
def test_pauses_change_no_token(real, park):
    """Held in the slot or parked outside of it, sampled with penalties: the text of the same seed."""
    wanted = whole(real)
    assert len(set(wanted)) > 5
    with live(real) as client:
        client.send("start", **SAMPLED, prompt=PROMPT, credits=0)
        for _ in range(6):
            client.until("paused")
            if park:
                assert client.until("paused")["reason"] == "parked"
            client.send("grant", tokens=5)
        ended = client.until("ended")
        assert client.text() == wanted
    assert ended["usage"]["prompt_tokens"] == len(PROMPT)
    assert ended["usage"]["cached_tokens"] <= len(PROMPT)
    wait_until(lambda: real.engine.running == real.engine.waiting == 0)
    assert real.guard.count == 0


def test_a_steered_stream_is_that_of_the_whole_context(real):
    """The model goes on as if prompt, answer and text had been its prompt."""
    greedy = {"temperature": 0.0, "frequency_penalty": 0.0}
    with live(real) as client:
        client.send("start", **SAMPLED | greedy, prompt=PROMPT, credits=7)
        client.until("paused")
        before = client.text()
        client.send("steer", text="; and a ")
        client.until("steered")
        client.send("grant", tokens=30)
        client.until("ended")
    after = client.text().removeprefix(before + "; and a ")
    context = list(f"{PROMPT}{before}; and a ".encode())
    assert len(after) == 23
    assert after == whole(real, **greedy, prompt=None, prompt_tokens=context, max_tokens=23)


def test_retuned_in_the_middle(real):
    """From the cursor on the greedy tokens of the same context."""
    with live(real) as client:
        client.send("start", **SAMPLED, prompt=PROMPT, credits=6)
        client.until("paused")
        before = client.text()
        client.send("retune", temperature=0.0, frequency_penalty=0.0)
        client.until("paused")
        client.send("grant", tokens=99)
        client.until("ended")
    context = list(f"{PROMPT}{before}".encode())
    greedy = {"temperature": 0.0, "frequency_penalty": 0.0, "max_tokens": 24}
    assert client.text().removeprefix(before) == whole(real, **greedy, prompt=None, prompt_tokens=context)


def test_streams_together(real):
    """More than there are slots, with credits and without: each has the text that it has alone."""
    seeds = range(5)
    alone = [whole(real, seed=seed) for seed in seeds]
    with live(real) as client:
        for seed in seeds:
            credits = {"credits": 10} if seed % 2 else {}
            client.send("start", str(seed), **(SAMPLED | {"seed": seed}), prompt=PROMPT, **credits)
        open_streams = {str(seed) for seed in seeds}
        while open_streams:
            message = client.receive()
            if message["type"] == "paused" and message["reason"] == "credits":
                client.send("grant", message["stream"], tokens=10)
            if message["type"] == "ended":
                open_streams.discard(message["stream"])
        assert [client.text(str(seed)) for seed in seeds] == alone
