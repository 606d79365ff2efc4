"""One response: what was asked, what came, and the object that OpenAI's clients read. Knows no engine."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from tpustream.core.request import SamplingParams
from tpustream.serve.errors import ApiError
from tpustream.serve.responses.schema import ResponsesRequest

RUNNING = ("queued", "in_progress")


@dataclasses.dataclass(kw_only=True)
class ResponseRecord:
    """State of one response.

    Attributes:
      owner: name of the client that made it; no other may see it.
      echo: the fields of the object that repeat the request.
      input_items: in the form in which they are listed.
      context: messages of the conversation before this answer, without instructions.
      status: OpenAI's word.
      text: of the answer, so far.
      logprobs: entries for the tokens of `text`; None where nobody asked.
      usage: OpenAI's object, once the answer has ended.
      error: why it failed, as a request for it would be told.
      events: what a background stream has sent; None where it is not kept.
      closed: nothing joins `events` any more.
      changed: set, and replaced, when an event joins or none will any more.
      end: ends a running response early, with this error.
    """

    owner: str
    echo: dict[str, Any]
    input_items: list[dict[str, Any]]
    context: tuple[dict[str, str], ...]
    logprobs: list[dict[str, Any]] | None
    events: list[dict[str, Any]] | None
    id: str = dataclasses.field(default_factory=lambda: "resp_" + secrets.token_hex(24))
    message_id: str = dataclasses.field(default_factory=lambda: "msg_" + secrets.token_hex(24))
    created_at: int = dataclasses.field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    status: str = "in_progress"
    started: bool = False
    text: str = ""
    usage: dict[str, Any] | None = None
    error: ApiError | None = None
    closed: bool = False
    changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    end: Callable[[ApiError], None] = lambda _: None

    @property
    def running(self) -> bool:
        """Whether more of it will come."""
        return self.status in RUNNING

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The conversation with this answer."""
        return (*self.context, {"role": "assistant", "content": self.text})

    def part(self, text: str | None = None) -> dict[str, Any]:
        """The one content part of the answer, with all of its text or with `text`."""
        logprobs = (self.logprobs or []) if text is None else []
        text = self.text if text is None else text
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def item(self, status: str) -> dict[str, Any]:
        """The one output item; without content while it has just begun."""
        content = [] if status == "in_progress" else [self.part()]
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def object(self) -> dict[str, Any]:
        """The response as it stands."""
        done = "completed" if self.status == "completed" else "incomplete"
        incomplete = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        failed = {"code": "server_error", "message": self.error.message} if self.error else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": self.completed_at,
            "status": self.status,
            "error": failed,
            "incomplete_details": incomplete,
            "output": [self.item(done)] if self.started and not self.running else [],
            "usage": self.usage,
            **self.echo,
        }

    def finish(
        self, status: str, *, usage: dict[str, Any] | None = None, error: ApiError | None = None
    ) -> None:
        """The response has ended."""
        self.status, self.usage, self.error = status, usage, error
        self.completed_at = int(time.time()) if status == "completed" else None

    def announce(self) -> None:
        """Wake whoever waits for `changed`."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def size(self) -> int:
        """Bytes that it takes as JSON, about what it takes in memory."""
        kept = (self.object(), self.input_items, self.context, self.events)
        return sum(len(to_json(part)) for part in kept)


def echo(body: ResponsesRequest, model: str, sampling: SamplingParams) -> dict[str, Any]:
    """The fields of a response object that repeat its request, defaults filled in."""
    text = body.text
    return {
        "model": model,
        "background": bool(body.background),
        "frequency_penalty": sampling.frequency_penalty,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": sampling.presence_penalty,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}, "verbosity": (text and text.verbosity) or "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        **({"user": body.user} if body.user is not None else {}),  # the description has no null here
    }
