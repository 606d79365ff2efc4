"""What the benchmark's client makes of the bytes of a stream."""

import json

import pytest

from tpustream.bench.serving.events import Event, EventParser
from tpustream.bench.serving.stream import StreamReader

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def data(value) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"data: {text}\n\n".encode()


def text_chunk(text, reason=None) -> bytes:
    return data({"choices": [{"index": 0, "text": text, "finish_reason": reason}], "usage": None})


def chat_chunk(reason=None, **delta) -> bytes:
    return data({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def read(*blocks: bytes) -> StreamReader:
    """A reader after blocks that came at 0, 1, 2, …"""
    reader = StreamReader()
    for now, block in enumerate(blocks):
        reader.feed(block, float(now))
    return reader


WHOLE = (
    b": keep-alive\n\n" + b"id: 0\n" + text_chunk("a é") + b": keep-alive\r\n\r\nid: 1\r\ndata: two\r\n"
    b"data: lines\r\n\r\nevent: error\ndata:tight\n\nid: 2\n\n" + data("[DONE]")
)
EVENTS = [
    Event("", text_chunk("a é").strip().removeprefix(b"data: "), "0"),
    Event("", b"two\nlines", "1"),
    Event("error", b"tight"),
    Event("", b"[DONE]"),
]


def test_events_do_not_depend_on_where_the_network_cuts():
    """Inside a line, a character, or a CRLF: the events are the same, comments are none."""
    for size in range(1, len(WHOLE) + 1):
        parser = EventParser()
        blocks = (WHOLE[at : at + size] for at in range(0, len(WHOLE), size))
        assert [event for block in blocks for event in parser.feed(block)] == EVENTS, size


def test_a_completion():
    """Comments and chunks without text give no TTFT; usage and [DONE] after the end do not move it."""
    reader = read(
        b": keep-alive\n\n",
        text_chunk(""),
        text_chunk("a"),
        text_chunk("b") + text_chunk("c"),
        text_chunk("", "length"),
        data({"choices": [], "usage": USAGE}),
        data("[DONE]"),
    )
    assert reader.failure() is None
    assert (reader.first, reader.text_times, reader.last) == (2.0, [2.0, 3.0, 3.0], 4.0)
    assert reader.finish_reason == "length"
    assert reader.usage == {"prompt_tokens": 3, "completion_tokens": 5}


def test_a_chat_answer():
    """A role alone is no token; thoughts are."""
    reader = read(
        chat_chunk(role="assistant", content=""),
        chat_chunk(reasoning_content="hm"),
        chat_chunk(content="a"),
        chat_chunk("stop"),
        data({"choices": [], "usage": USAGE}) + data("[DONE]"),
    )
    assert reader.failure() is None
    assert (reader.first, reader.text_times, reader.last) == (1.0, [1.0, 2.0], 3.0)


def test_an_answer_without_text():
    """Its first token is its end, so TTFT exists and is not flattered."""
    reader = read(
        text_chunk(""), text_chunk("", "stop"), data({"choices": [], "usage": USAGE}), data("[DONE]")
    )
    assert reader.failure() is None
    assert (reader.first, reader.text_times, reader.last) == (1.0, [], 1.0)


@pytest.mark.parametrize(
    ("blocks", "failure"),
    [
        ([text_chunk("a"), text_chunk("", "stop")], "without [DONE]"),
        ([text_chunk("a", "stop"), data("[DONE]")], "no usage"),
        ([data({"choices": [], "usage": USAGE}), data("[DONE]")], "no choices"),
        (
            [data({"error": {"message": "NaN in logits"}}), data("[DONE]")],
            "error in the stream: NaN in logits",
        ),
        ([b"event: error\n" + data({"message": "gone"})], "error in the stream: gone"),
        ([data({"error": "plain"}), data({"error": "second"})], "error in the stream: plain"),
        ([data("{half")], "wanted a chunk of a completion, got '{half'"),
        ([data("[1]")], "wanted a chunk"),
        ([data({"choices": [{}]})], "wanted a chunk"),
        ([data({"choices": [], "usage": {}})], "wanted a chunk"),
    ],
)
def test_broken_streams_fail_with_a_reason(blocks, failure):
    """No answer that is cut, wrong or without counts passes as a completed request."""
    assert failure in read(*blocks).failure()
