"""A pytest plugin: the few names that SGLang's server test imports from SGLang, for a server that runs.

Nothing is launched: the "launched" server is the one of the environment (TPUSTREAM_URL without /v1,
TPUSTREAM_MODEL), and its /tokenize is the tokenizer. SGLang writes `reasoning_content: null` into every
delta and the test reads it unasked; OpenAI's client has no such field, so here it is None.
"""

import json
import os
import sys
import types
import unittest
import urllib.request

from openai.types.chat.chat_completion_chunk import ChoiceDelta


class ServedTokenizer:
    """The server's tokenizer, asked over HTTP."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids."""
        return ask("/tokenize", {"prompt": text, "add_special_tokens": add_special_tokens})["tokens"]

    def decode(self, tokens: list[int]) -> str:
        """Text."""
        return ask("/detokenize", {"tokens": tokens})["prompt"]


class CustomLogitProcessor:
    """Code of the client's that would run in the server; only its name arrives."""

    def to_str(self) -> str:
        """What is sent."""
        return type(self).__name__


def ask(path: str, body: dict) -> dict:
    """The answer to a POST."""
    request = urllib.request.Request(
        os.environ["TPUSTREAM_URL"] + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def module(name: str, **attributes: object) -> None:
    """Put a module, and the packages above it, where imports look."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    vars(sys.modules[name]).update(attributes)


def pytest_configure() -> None:
    """Called by pytest before the test is imported."""
    ChoiceDelta.reasoning_content = None
    nothing = types.SimpleNamespace(pid=None)
    module("sglang.srt.utils", kill_process_tree=lambda _: None)
    module("sglang.srt.utils.hf_transformers_utils", get_tokenizer=lambda _: ServedTokenizer())
    module("sglang.srt.sampling.custom_logit_processor", CustomLogitProcessor=CustomLogitProcessor)
    ignored = {"register_cuda_ci": lambda **_: None, "register_amd_ci": lambda **_: None}
    module("sglang.test.ci.ci_register", **ignored)
    module("sglang.test.runners", TEST_RERANK_QUERY_DOCS=[{"query": "a", "documents": ["b"]}] * 2)
    module(
        "sglang.test.test_utils",
        DEFAULT_SMALL_CROSS_ENCODER_MODEL_NAME_FOR_TEST=os.environ["TPUSTREAM_MODEL"],
        DEFAULT_SMALL_MODEL_NAME_FOR_TEST=os.environ["TPUSTREAM_MODEL"],
        DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH=0,
        DEFAULT_URL_FOR_TEST=os.environ["TPUSTREAM_URL"],
        CustomTestCase=unittest.TestCase,
        popen_launch_server=lambda *_, **__: nothing,
    )
