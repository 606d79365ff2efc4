"""Log-probabilities in both dialects: raw bytes, alternatives, offsets; streamed and not."""

import math

import pytest

from .scripted import say
from .wire import chat_body, stream, text_of

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SAID = "a€👋"


@pytest.mark.parametrize("streamed", [False, True])
def test_chat_bytes_joined_are_the_text(served, http, streamed):
    """Half characters too, and no token is lost between chunks."""
    served.engine.script = lambda _: say(SAID)
    body = chat_body(logprobs=True, top_logprobs=2)
    if streamed:
        chunks, _ = stream(http, CHAT, body)
        content = [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"]["content"]]
    else:
        content = http.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    assert bytes(value for entry in content for value in entry["bytes"]).decode() == SAID
    assert all(entry["logprob"] == -0.5 for entry in content)
    assert content[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -9999.0, "bytes": [98]},  # JSON has no infinity
        ],
    }


def test_chat_without_alternatives(served, http):
    """logprobs alone: the chosen tokens, no others; without logprobs: null."""
    content = http.post(CHAT, json=chat_body(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["o", "k"]
    assert all(entry["top_logprobs"] == [] for entry in content)
    chunks, _ = stream(http, CHAT, chat_body(logprobs=False))
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


@pytest.mark.parametrize("streamed", [False, True])
def test_completion_offsets_count_characters(served, http, streamed):
    """Tokens that share a character share its offset; the parts of broken ones are named by bytes."""
    served.engine.script = lambda _: say(SAID)
    body = {"prompt": ["x", "y"], "logprobs": 2}
    for index in range(2):
        if streamed:
            chunks, _ = stream(http, TEXT, body)
            parts = [c["logprobs"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            logprobs = {name: [entry for part in parts for entry in part[name]] for name in parts[0]}
        else:
            logprobs = http.post(TEXT, json=body).json()["choices"][index]["logprobs"]
        assert logprobs["tokens"][:2] == ["a", "bytes:\\xe2"]
        assert logprobs["text_offset"] == [0, 1, 1, 1, 2, 2, 2, 2]
        assert logprobs["token_logprobs"] == [-0.5] * 8
        assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -9999.0}


def test_completion_always_lists_the_chosen_token(served, http):
    """OpenAI: up to logprobs + 1 elements; 0 is not the same as none."""
    logprobs = http.post(TEXT, json={"prompt": "x", "logprobs": 0}).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"o": -0.5}, {"k": -0.5}]
    assert not any(map(math.isinf, logprobs["token_logprobs"]))


@pytest.mark.parametrize("streamed", [False, True])
def test_echo_with_logprobs_begins_with_the_prompts(served, http, streamed):
    """Nothing comes before the first token, so it is taken as given; offsets go on into the answer."""
    served.engine.script = lambda _: say("!\u00e9")
    body = {"prompt": ["h\u00e9", "x"], "echo": True, "logprobs": 1, "n": 2}
    if streamed:
        chunks, _ = stream(http, TEXT, body)
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["index"] == 1]
        found = {field: [entry for part in parts for entry in part[field]] for field in parts[0]}
        assert text_of(chunks, 1) == "h\u00e9!\u00e9"
    else:
        choice = http.post(TEXT, json=body).json()["choices"][1]
        found = choice["logprobs"]
        assert choice["text"] == "h\u00e9!\u00e9"
    odd = ["bytes:\\xc3", "bytes:\\xa9"]
    assert found["tokens"] == ["h", *odd, "!", *odd]
    assert found["token_logprobs"] == [0, *[-0.5] * 5]
    assert found["top_logprobs"] == [{}, *({token: -0.5} for token in found["tokens"][1:])]
    assert found["text_offset"] == [0, 1, 1, 2, 3, 3]


def test_a_prompt_can_be_scored_without_an_answer(served, http):
    """What evaluation harnesses ask for: echo, logprobs, and not one token more."""
    body = {"prompt": [97, 98], "echo": True, "logprobs": 0, "max_tokens": 0}
    choice = http.post(TEXT, json=body).json()["choices"][0]
    assert (choice["text"], choice["logprobs"]["token_logprobs"]) == ("ab", [0, -0.5])
    assert served.engine.requests == []
