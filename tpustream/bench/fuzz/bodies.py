"""JSON bodies of every route: valid ones, and what can be done to them."""

import copy
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

# A valid body of each route, of which the mutations start. Answers are short.
CHAT = {"messages": [{"role": "user", "content": "Hello, wörld"}], "max_tokens": 4, "temperature": 0}
TEXT = {"prompt": "Once upon a time", "max_tokens": 4, "n": 1}
SEEDS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "/v1/chat/completions": (
        CHAT,
        {
            **CHAT,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 2,
        },
        {
            **CHAT,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "stop": ["a", "b"],
        },
    ),
    "/v1/completions": (
        TEXT,
        {**TEXT, "stream": True, "n": 2, "seed": 1, "logit_bias": {"5": -100}, "echo": True, "logprobs": 1},
        {
            **TEXT,
            "prompt": [[1, 2, 3], [4]],
            "best_of": 2,
            "frequency_penalty": 0.5,
            "min_p": 0.1,
            "top_k": 5,
        },
    ),
    "/v1/embeddings": (
        {"input": ["a", "b"], "encoding_format": "base64"},
        {"input": [1, 2], "dimensions": 3},
    ),
    "/v1/responses": (
        {"input": "Hello", "max_output_tokens": 4},
        {
            "input": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "max_output_tokens": 4,
            "store": False,
        },
        {"input": "Hi", "background": True, "max_output_tokens": 4, "metadata": {"a": "b"}},
    ),
    "/tokenize": (
        {"prompt": "Hello"},
        {"messages": [{"role": "user", "content": "Hi"}], "return_token_strs": True},
    ),
    "/detokenize": ({"tokens": [1, 2, 3]},),
}
# Names that clients of other servers send.
FOREIGN = ("tools", "tool_choice", "response_format", "guided_json", "grammar", "min_tokens", "suffix", "x")

ODD: Sequence[Any] = (
    None, True, False, -1, 0, 1, 2, 1.5, -0.0, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**400, "", "x", "0",
    "\x00", "\ufeff", "\u202e", "🙂" * 50, "a" * 3000, "\ud800", [], [[]], [None], [0] * 300, {}, {"": None},
    {"type": "text"}, {"type": "json_object"}, [{"role": "user", "content": "x"}], float("nan"), float("inf"),
)  # fmt: skip
DEPTHS = (50, 500, 20_000)


def fields_of(described: Mapping[str, Any]) -> dict[str, list[str]]:
    """Route -> names of the fields of its body, from the server's OpenAPI description."""
    schemas = described["components"]["schemas"]
    out = {}
    for path, methods in described["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        reference = content.get("application/json", {}).get("schema", {}).get("$ref")
        if reference is not None:
            out[path] = sorted(schemas[reference.rpartition("/")[2]]["properties"])
    return out


def draw_body(source: random.Random, path: str, fields: Sequence[str]) -> bytes:
    """A body for this route: valid, with one to four things wrong in its JSON, or broken as text."""
    body = copy.deepcopy(dict(source.choice(SEEDS[path])))
    for _ in range(source.choice((0, 1, 1, 2, 4))):
        mutate(source, body, fields)
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    return broken(source, text) if source.random() < 0.25 else text


def mutate(source: random.Random, body: dict[str, Any], fields: Sequence[str]) -> None:
    """Give a field an odd value, take one away, or change something inside one."""
    name = source.choice((*fields, *FOREIGN, *body))
    kind = source.random()
    if kind < 0.15:
        body.pop(name, None)
    elif kind < 0.35 and isinstance(body.get(name), list | dict):
        inner = body[name]
        where = source.choice([*(inner if isinstance(inner, dict) else range(len(inner))), None])
        if where is None and isinstance(inner, list):
            inner.append(odd(source))
        else:
            inner["x" if where is None else where] = odd(source)
    elif kind < 0.4:
        deep: Any = []
        for _ in range(source.choice(DEPTHS[:2])):
            deep = [deep]
        body[name] = deep
    else:
        body[name] = odd(source)


def odd(source: random.Random) -> Any:
    """One of ODD, a copy: the next change may be inside it."""
    return copy.deepcopy(source.choice(ODD))


def broken(source: random.Random, text: bytes) -> bytes:
    """The same bytes cut, changed, doubled, or nested without end."""
    at = source.randrange(len(text) + 1)
    return source.choice(
        (
            text[:at],
            text[:at] + source.randbytes(3) + text[at:],
            text[:at] + bytes([source.randrange(256)]) + text[at + 1 :],
            text + text,
            b"\xff\xfe" + text,
            b'{"a":' * source.choice(DEPTHS),
            b"[" * source.choice(DEPTHS),
            source.randbytes(source.randrange(200)),
        )
    )
