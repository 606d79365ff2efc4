"""The JSON that asks for one request, in the dialect of an endpoint.

Encoded before the run, so that the client spends nothing on it while it measures.
"""

import json
from collections.abc import Mapping
from typing import Any

from tpustream.bench.serving.dataset import SampleRequest

CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"


def is_chat(endpoint: str) -> bool:
    """Whether an endpoint speaks the chat dialect. Raises ValueError for one that speaks neither."""
    if endpoint.endswith(CHAT_PATH):
        return True
    if endpoint.startswith("/") and endpoint.endswith(COMPLETION_PATH):
        return False
    raise ValueError(f"endpoint: wanted /v1/completions or /v1/chat/completions, got {endpoint!r}")


def request_body(
    request: SampleRequest,
    *,
    model: str,
    chat: bool,
    temperature: float,
    ignore_eos: bool,
    extra: Mapping[str, Any],
) -> bytes:
    """The encoded body of a streamed request that reports its usage; `extra` fields come last."""
    body: dict[str, Any] = {"model": model}
    if chat:
        body["messages"] = [{"role": "user", "content": request.prompt}]
    else:
        body["prompt"] = request.prompt
    body |= {
        "max_tokens": request.output_len,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ignore_eos:  # an extension: servers that do not know it never see it unasked
        body["ignore_eos"] = True
    return json.dumps(body | dict(extra)).encode()


def parse_extra_body(text: str) -> dict[str, Any]:
    """The fields of a JSON object; "" has none. Raises ValueError for anything else."""
    if not text:
        return {}
    try:
        extra = json.loads(text)
    except json.JSONDecodeError:
        extra = None
    if not isinstance(extra, dict):
        raise ValueError(f"extra_body: wanted a JSON object, got {text!r}")
    return extra
