"""What the bytes of one streamed answer mean: first text, gaps, usage, end, failure. Does no input.

Both dialects are read alike. Counts come from the server's usage: a chunk may carry several tokens,
and a token may carry no text.
"""

import json
from typing import Any

from tpustream.bench.serving.events import Event, EventParser

DONE = b"[DONE]"
TEXT_FIELDS = ("content", "reasoning_content", "reasoning")  # of a chat delta; the last two of thinkers


class StreamReader:
    """Reads one answer block by block.

    Attributes:
      first: when the first text came, or the end of an answer without text; None before that.
      text_times: when each chunk with text came.
      last: when the last chunk of the answer itself came (usage and [DONE] come after it); None before.
      usage: the server's usage object; None before it came.
      finish_reason: the server's; None before it came.
      error: what the server said went wrong; None when nothing did.
      done: whether [DONE] came.
    """

    def __init__(self):
        self.first: float | None = None
        self.text_times: list[float] = []
        self.last: float | None = None
        self.usage: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.done = False
        self._parser = EventParser()

    def feed(self, block: bytes, now: float) -> None:
        """Bytes that came at `now`; a failure ends up in `error`, the first one counts."""
        for event in self._parser.feed(block):
            if self.error is not None:
                return
            if event.data == DONE:
                self.done = True
            else:
                self._read(event, now)

    def failure(self) -> str | None:
        """Why the answer, whose bytes have all come, is none; None when it is whole."""
        if self.error is not None:
            return self.error
        if not self.done:
            return "the stream ended without [DONE]"
        if self.last is None:
            return "the stream had no choices"
        if self.usage is None:
            return "the stream had no usage: the server does not honour stream_options.include_usage"
        return None

    def _read(self, event: Event, now: float) -> None:
        try:
            chunk = json.loads(event.data)
            failed = event.name == "error" or chunk.get("error") is not None
            if failed:
                self.error = f"error in the stream: {error_message(chunk)}"
                return
            usage, choices = chunk.get("usage"), chunk.get("choices")
            self.usage = usage_tokens(usage) if usage is not None else self.usage
            if choices:
                self._read_choice(choices[0], now)
        except (ValueError, TypeError, AttributeError, KeyError):
            shown = event.data[:80].decode("utf-8", "replace")
            self.error = f"wanted a chunk of a completion, got {shown!r}"

    def _read_choice(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta")
        text = choice["text"] if delta is None else any(delta.get(field) for field in TEXT_FIELDS)
        reason = choice.get("finish_reason")
        self.last = now
        if text:
            self.text_times.append(now)
        if reason is not None:
            self.finish_reason = reason
        if self.first is None and (text or reason is not None):
            self.first = now


def usage_tokens(usage: dict[str, Any]) -> dict[str, int]:
    """prompt_tokens and completion_tokens. Raises KeyError or ValueError when they are no numbers."""
    return {name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens")}


def error_message(body: Any) -> str:
    """The message of a decoded error answer: OpenAI's envelope, or the forms that others send."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or json.dumps(error)
    return str(error)
