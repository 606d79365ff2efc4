"""Random requests, and the bodies that ask for them."""

import json

import pytest

from tpustream.bench.serving.bodies import is_chat, parse_extra_body, request_body
from tpustream.bench.serving.dataset import SampleRequest, random_requests

SETTINGS = {
    "input_len": 20,
    "output_len": 10,
    "range_ratio": 0.0,
    "vocabulary": 320,
    "chat": False,
    "seed": 1,
}


def test_prompts_have_their_exact_length():
    """Without a range every prompt and answer is as long as asked."""
    for request in random_requests(5, **SETTINGS):
        assert (len(request.prompt), request.input_len, request.output_len) == (20, 20, 10)


def test_ids_lie_in_the_vocabulary_above_its_control_tokens():
    """No id is outside of the model's table, and none of the first 1/32, where EOS and its like are."""
    ids = {token for request in random_requests(100, **SETTINGS) for token in request.prompt}
    assert min(ids) == 10
    assert max(ids) == 319


def test_lengths_spread_over_the_whole_range():
    """range_ratio 0.25 of 10 is 7 to 13, as vllm rounds it, both ends included; nothing falls below 1."""
    requests = random_requests(300, **SETTINGS | {"range_ratio": 0.25})
    assert {request.output_len for request in requests} == set(range(7, 14))
    assert {request.input_len for request in requests} == set(range(15, 26))
    assert all(len(request.prompt) == request.input_len for request in requests)
    shortest = random_requests(50, **SETTINGS | {"output_len": 1, "range_ratio": 0.9})
    assert {request.output_len for request in shortest} == {1, 2}


def test_chat_prompts_are_words():
    """A chat prompt is text of as many words."""
    request = random_requests(1, **SETTINGS | {"chat": True})[0]
    assert len(request.prompt.split(" ")) == 20


def test_a_seed_repeats():
    """The same seed gives the same load; another gives another."""
    same = random_requests(3, **SETTINGS)
    assert random_requests(3, **SETTINGS) == same != random_requests(3, **SETTINGS | {"seed": 2})


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("input_len", 0, "random_input_len"),
        ("output_len", -1, "random_output_len"),
        ("range_ratio", 1.0, "random_range_ratio"),
        ("vocabulary", 0, "vocab_size"),
    ],
)
def test_impossible_requests_are_refused(field, value, flag):
    """The message names the flag."""
    with pytest.raises(ValueError, match=f"{flag}: wanted"):
        random_requests(1, **SETTINGS | {field: value})


def test_bodies_ask_for_a_stream_with_usage():
    """Both dialects stream with usage; ignore_eos is sent only when wanted, extra fields win."""
    options = {"model": "m", "temperature": 0.5, "ignore_eos": False, "extra": {}}
    request = SampleRequest(index=0, prompt=(5, 6), input_len=2, output_len=7)
    assert json.loads(request_body(request, chat=False, **options)) == {
        "model": "m",
        "prompt": [5, 6],
        "max_tokens": 7,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    words = SampleRequest(index=0, prompt="old map", input_len=2, output_len=7)
    options |= {"ignore_eos": True, "extra": {"temperature": 0, "top_k": 1}}
    body = json.loads(request_body(words, chat=True, **options))
    assert body["messages"] == [{"role": "user", "content": "old map"}]
    assert (body["ignore_eos"], body["temperature"], body["top_k"]) == (True, 0, 1)


def test_endpoints_and_extra_bodies_are_checked():
    """An endpoint that generates nothing, or an extra body that is no object, is refused by name."""
    assert is_chat("/v1/chat/completions") and not is_chat("/v1/completions")
    with pytest.raises(ValueError, match=r"endpoint: wanted .*, got '/v1/embeddings'"):
        is_chat("/v1/embeddings")
    assert parse_extra_body("") == {}
    for text in ("[1]", "{"):
        with pytest.raises(ValueError, match="extra_body: wanted a JSON object"):
            parse_extra_body(text)
