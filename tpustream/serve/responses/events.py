"""From a Generation of one stream to the events of a response, in OpenAI's order."""

import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import to_json

from tpustream.core.request import GOOD_ENDS, Delta, FinishReason
from tpustream.serve.logprobs import chat_logprobs
from tpustream.serve.replies import failure, merge, padding
from tpustream.serve.responses.record import ResponseRecord
from tpustream.serve.tokens import Generation
from tpustream.text.vocabulary import Tokenizer

DONE = b"data: [DONE]\n\n"


def encoded(event: dict[str, Any]) -> bytes:
    """One server-sent event; its id is its sequence number."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (
        event["sequence_number"],
        event["type"].encode(),
        to_json(event),
    )


async def response_events(
    generation: Generation,
    record: ResponseRecord,
    tokenizer: Tokenizer,
    *,
    keep_alive: float,
    obfuscation: bool = False,
) -> AsyncIterator[dict[str, Any] | None]:
    """Events of `generation`, which fills `record`; None after `keep_alive` seconds of silence.

    The last event says how it ended: completed, incomplete or failed. One that was ended by `record.end`
    ends as incomplete, with the status cancelled.
    """
    numbers = itertools.count()
    place = {"item_id": record.message_id, "output_index": 0, "content_index": 0}

    def event(kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}

    def begin() -> list[dict[str, Any]]:
        record.started = True
        return [
            event("output_item.added", output_index=0, item=record.item("in_progress")),
            event("content_part.added", **place, part=record.part("")),
        ]

    yield event("created", response=record.object())
    record.status = "in_progress"
    yield event("in_progress", response=record.object())
    waiting: list[Delta] = []
    due = time.monotonic() + keep_alive
    finish = None
    while generation.open:
        for _, delta in await generation.next(max(0.0, due - time.monotonic())):
            finish = delta.finish
            if finish is not None and finish not in GOOD_ENDS:
                if record.status == "cancelled":
                    record.finish("cancelled", usage=usage(generation))
                    yield event("incomplete", response=record.object())
                else:
                    record.finish("failed", usage=usage(generation), error=failure(generation, delta))
                    yield event("failed", response=record.object())
                return
            waiting.append(delta)
            if not delta.text:
                continue
            ready = merge(waiting)
            waiting.clear()
            if not record.started:
                for opening in begin():
                    yield opening
            entries = _logprobs(record, ready, tokenizer)
            record.text += ready.text
            grown = event("output_text.delta", **place, delta=ready.text, logprobs=entries)
            yield grown | {"obfuscation": padding(grown)} if obfuscation else grown
            due = time.monotonic() + keep_alive
        if time.monotonic() >= due:
            due = time.monotonic() + keep_alive
            yield None
    if not record.started:
        for opening in begin():
            yield opening
    if waiting:  # tokens without text, as a part of a character that never came
        _logprobs(record, merge(waiting), tokenizer)
    record.finish("completed" if finish == FinishReason.STOP else "incomplete", usage=usage(generation))
    yield event("output_text.done", **place, text=record.text, logprobs=record.logprobs or [])
    yield event("content_part.done", **place, part=record.part())
    item = record.item("completed" if record.status == "completed" else "incomplete")
    yield event("output_item.done", output_index=0, item=item)
    yield event(record.status, response=record.object())


def usage(generation: Generation) -> dict[str, Any]:
    """The usage object of responses."""
    return {
        "input_tokens": generation.prompt_tokens,
        "input_tokens_details": {"cached_tokens": generation.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": generation.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
    }


def _logprobs(record: ResponseRecord, delta: Delta, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Entries for the tokens of `delta`, which join the record's; none where nobody asked."""
    if record.logprobs is None:
        return []
    entries = chat_logprobs(delta.tokens, tokenizer)["content"]
    record.logprobs += entries
    return entries
