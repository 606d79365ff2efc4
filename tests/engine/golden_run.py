"""Runs recorded greedy streams (tests/goldens/streams.py) through an engine, all at once, and compares."""

from collections.abc import Mapping, Sequence

from tests.goldens.streams import Stream
from tests.tiny import collect, request, submit
from tpustream.control import TextStream
from tpustream.core.request import FinishReason, TokenEvent
from tpustream.engine.engine import Engine
from tpustream.text import Tokenizer

CLOSE = 0.02  # top-two margin in logits below which float32 in another order may choose otherwise
LOGPROB_TOLERANCE = 2e-3  # natural log
BEYOND = 9  # tokens a stream that ends by itself would have had left


def run_streams(engine: Engine, goldens: Mapping[str, Stream]) -> dict[str, list[TokenEvent]]:
    """The events of every golden's prompt, by name; streams share the engine's slots."""
    running = {}
    for name, golden in goldens.items():
        room = BEYOND if golden.finish == "stop" else 0
        wanted = request(golden.prompt_ids, name, max_tokens=len(golden.generated_ids) + room, logprobs=0)
        running[name] = submit(engine, wanted)
    return {name: collect(events)[0] for name, events in running.items()}


def agreed(events: Sequence[TokenEvent], golden: Stream) -> int:
    """How many tokens equal the golden's before the first that differs, with their log-probabilities.

    Raises AssertionError for a difference where the golden's choice was clear.
    """
    assert len({event.logprobs is None for event in events}) == 1, "some tokens came without logprobs"
    steps = zip(golden.generated_ids, golden.logprobs, golden.margins, strict=True)
    for index, (token, logprob, margin) in enumerate(steps):
        assert index < len(events), f"token {index}: wanted {token}, got the end of the stream"
        event = events[index]
        if event.token != token:
            assert margin < CLOSE, f"token {index}: wanted {token} (margin {margin}), got {event.token}"
            return index
        error = abs(event.logprobs.chosen - logprob)
        assert error < LOGPROB_TOLERANCE, f"token {index}: wanted {logprob}, got {event.logprobs.chosen}"
    return len(golden.generated_ids)


def text_of(events: Sequence[TokenEvent], golden: Stream, tokenizer: Tokenizer) -> tuple[str, FinishReason]:
    """What a client would read, and how the stream ended."""
    stream = TextStream(tokenizer, request(golden.prompt_ids).sampling)
    deltas = [stream.push(event) for event in events]
    return "".join(delta.text for delta in deltas), deltas[-1].finish
