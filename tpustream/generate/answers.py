"""One streamed answer on a terminal, and what it cost. Knows no flags and no history."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from tpustream.control.engine_stream import stream_text
from tpustream.core.errors import EngineStopped, InvalidRequest, context_exceeded
from tpustream.core.request import GOOD_ENDS, Request, SamplingParams
from tpustream.serve.service import ServedRuntime
from tpustream.text.chat_template import ChatTemplate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one request.

    Attributes:
      text: as shown.
      tokens: how many were generated.
      first_token: seconds until the first one; None when none came.
      seconds: from the first token to the last.
      interrupted: whether Ctrl-C ended it.
    """

    text: str
    tokens: int
    first_token: float | None
    seconds: float
    interrupted: bool

    def stats(self) -> str:
        """One line: time to first token, tokens, and tokens a second after the first."""
        if self.first_token is None:
            return "no tokens"
        rate = f"{(self.tokens - 1) / self.seconds:.1f}" if self.seconds else "-"
        return f"TTFT {self.first_token * 1000:.0f} ms, {self.tokens} tokens, {rate} tok/s"


def encode_messages(runtime: ServedRuntime, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation. Raises InvalidRequest where the template refuses it."""
    tokenizer = runtime.tokenizer
    text = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens).render(messages)
    return tokenizer.encode(text, add_bos=False)  # the template writes BOS itself


def show_answer(
    runtime: ServedRuntime, prompt: Sequence[int], sampling: SamplingParams, *, id: str, out: TextIO
) -> Answer:
    """Generate from `prompt` and write the text to `out` as it comes, with a line end after it.

    Without `max_tokens` the answer may fill the context that is left. Ctrl-C ends the answer, not the
    caller. Raises InvalidRequest, or EngineStopped when the engine gives up on the way.
    """
    if not prompt:
        raise InvalidRequest("prompt: wanted at least one token, got an empty prompt", param="prompt")
    engine = runtime.engine
    if len(prompt) > engine.max_prompt:
        raise context_exceeded(engine.max_prompt, len(prompt), "prompt")
    if sampling.max_tokens is None:
        sampling = dataclasses.replace(sampling, max_tokens=max(1, engine.max_prompt - len(prompt)))
    pieces: list[str] = []
    tokens, first, last, interrupted = 0, None, 0.0, False
    started = time.monotonic()
    if sampling.max_tokens > 0:
        request = Request(id=id, prompt=tuple(prompt), sampling=sampling)
        try:
            with contextlib.closing(stream_text(engine, runtime.tokenizer, request)) as deltas:
                for delta in deltas:
                    if delta.tokens:
                        last = time.monotonic()
                        first = last if first is None else first
                        tokens += len(delta.tokens)
                    if delta.text:
                        pieces.append(delta.text)
                        out.write(delta.text)
                        out.flush()
                    if delta.finish is not None and delta.finish not in GOOD_ENDS:
                        raise EngineStopped(delta.error or "the stream was cancelled")
        except KeyboardInterrupt:
            interrupted = True
    out.write("\n")
    out.flush()
    return Answer(
        text="".join(pieces),
        tokens=tokens,
        first_token=None if first is None else first - started,
        seconds=0.0 if first is None else last - first,
        interrupted=interrupted,
    )
