"""Text completions given at once: forms of the prompt, echo, choices."""

import pytest

from .scripted import say

PATH = "/v1/completions"


def shown(answer):
    """Texts of all choices."""
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return [choice["text"] for choice in answer["choices"]]


def test_object_has_openais_form(served, http):
    """Clients parse every one of these fields."""
    answer = http.post(PATH, json={"prompt": "hey"}).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    choice = {"index": 0, "text": "ok", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    assert answer["choices"] == [choice]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert served.engine.requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [(97, 98)]),
        (["a", "b"], [(97,), (98,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_every_form_of_prompt(served, http, prompt, ids):
    """Text, texts, ids, lists of ids."""
    answer = http.post(PATH, json={"prompt": prompt}).json()
    assert shown(answer) == ["ok"] * len(ids)
    assert sorted(request.prompt for request in served.engine.requests) == ids
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_prompts_times_choices_are_numbered_prompt_by_prompt(served, http):
    """OpenAI's order; the same prompt gets the same seeds wherever it stands."""
    served.engine.script = lambda request: say(bytes(request.prompt) + b"%d" % request.sampling.seed)
    answer = http.post(PATH, json={"prompt": ["a", "b"], "n": 2, "seed": 3}).json()
    assert shown(answer) == ["a3", "a4", "b3", "b4"]


def test_echo(served, http):
    """The prompt comes first, for text and for ids, and also when nothing is generated."""
    assert shown(http.post(PATH, json={"prompt": ["é", "b"], "echo": True, "n": 2}).json()) == [
        "éok", "éok", "bok", "bok",
    ]  # fmt: skip
    assert shown(http.post(PATH, json={"prompt": [104, 105], "echo": True}).json()) == ["hiok"]
    assert shown(http.post(PATH, json={"prompt": "hi", "echo": True, "max_tokens": 0}).json()) == ["hi"]


def test_best_of_equal_to_n_passes(http):
    """It asks for nothing more than n does."""
    assert http.post(PATH, json={"prompt": "a", "best_of": 2, "n": 2}).status_code == 200


def test_a_prompt_may_fill_the_ring_and_go_on(served, http):
    """The cache is a ring: max_tokens beyond it is no error."""
    response = http.post(PATH, json={"prompt": "x" * served.engine.max_prompt, "max_tokens": 10_000})
    assert response.status_code == 200
    assert served.engine.requests[0].sampling.max_tokens == 10_000
