"""The last step of every generating route: requests go to the engine, an answer comes back."""

import dataclasses
import secrets
from collections.abc import Sequence

from fastapi import Request as HttpRequest
from pydantic_core import to_json
from starlette.responses import Response

from tpustream.core.errors import InvalidRequest, context_exceeded
from tpustream.core.request import Request, SamplingParams
from tpustream.serve.body import MAX_BODY_BYTES, Schema, read_body
from tpustream.serve.exchange import exchange_of
from tpustream.serve.refused import IGNORABLE
from tpustream.serve.replies import Dialect, Heading, stream_reply, whole_reply
from tpustream.serve.sampling import for_choice
from tpustream.serve.schema import GenerationRequest
from tpustream.serve.service import ServedEngine, Service
from tpustream.serve.slow_readers import SLOW_READERS, ReaderPolicy
from tpustream.serve.tokens import Generation
from tpustream.serve.transport import EventStream, unary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves over time.

    Attributes:
      keep_alive: seconds of silence after which a stream gets a comment.
      max_body_bytes: of a request.
      gap_threshold: seconds without a token from which on the gap is counted with its cause.
      memory_bandwidth: bytes a second of all devices together; None where it is not known.
      max_unread_tokens: a choice, that wait for a client that reads slowly.
      slow_readers: "pause" or "end" the streams of a client that has left as many unread.
      slow_reader_seconds: that a paused stream waits for its client to read on before it ends.
      request_timeout: seconds that an answer may take in all; None is no bound.
      stored_responses, stored_bytes: answers of /v1/responses that are kept for later requests.
      ignored_fields: names of IGNORABLE that are dropped from requests.

    Raises ValueError for a field that cannot be ignored, and for another word for slow readers.
    """

    keep_alive: float = 5.0
    max_body_bytes: int = MAX_BODY_BYTES
    gap_threshold: float = 0.2
    memory_bandwidth: float | None = None
    max_unread_tokens: int = 4096
    slow_readers: str = "pause"
    slow_reader_seconds: float = 60.0
    request_timeout: float | None = None
    stored_responses: int = 1000
    stored_bytes: int = 64 * 1024 * 1024
    ignored_fields: tuple[str, ...] = ()

    def __post_init__(self):
        for field in self.ignored_fields:
            if field not in IGNORABLE:
                raise ValueError(f"ignored_fields: wanted one of {', '.join(IGNORABLE)}, got {field!r}")

        if self.slow_readers not in SLOW_READERS:
            wanted = " or ".join(map(repr, SLOW_READERS))
            raise ValueError(f"slow_readers: wanted {wanted}, got {self.slow_readers!r}")

    @property
    def readers(self) -> ReaderPolicy:
        """What slow readers may expect."""
        return ReaderPolicy(
            max_unread=self.max_unread_tokens,
            beyond=self.slow_readers,
            patience=self.slow_reader_seconds,
        )

    async def read(self, http: HttpRequest, schema: type[Schema]) -> Schema:
        """The body of a request; see `body.read_body`."""
        return await read_body(http, schema, self.max_body_bytes, self.ignored_fields)


async def answer(
    http: HttpRequest,
    service: Service,
    settings: Settings,
    body: GenerationRequest,
    *,
    prompts: Sequence[Sequence[int]],
    param: str,
    sampling: SamplingParams,
    dialect: Dialect,
    id_prefix: str,
    candidates: int | None = None,
) -> Response:
    """Generate `body.n` choices for each prompt, streamed or at once as `body` says.

    Choices are numbered prompt by prompt. `prompts` have passed `check_prompt`; `param` is the field
    that they come from; of `candidates` for each prompt, where there are more than choices, the
    likeliest are taken, which a stream cannot do. Raises InvalidRequest, ApiError, QueueFull or
    EngineStopped; after a stream began, errors are part of it.
    """
    runtime = service.ready()
    choices = body.n or 1
    candidates = candidates or choices
    if candidates > choices and sampling.logprobs is None:
        sampling = dataclasses.replace(sampling, logprobs=0)
    identifier = id_prefix + secrets.token_hex(12)
    exchange = exchange_of(http.scope)
    options = body.stream_options
    progress = bool(body.stream and options and options.include_prefill_progress)
    requests = []
    for prompt in prompts:
        room = runtime.engine.max_prompt - len(prompt)
        for choice in range(candidates):
            requests.append(
                Request(
                    id=f"{identifier}-{len(requests)}",
                    prompt=tuple(prompt),
                    sampling=for_choice(sampling, choice, room),
                    key=exchange.client.name,
                    priority=body.priority or 0,
                    deadline=None if body.deadline_ms is None else body.deadline_ms / 1e3,
                    progress=progress and choice == 0,  # the others' prompt is the same
                )
            )
    service.check_room(len(requests), "n" if len(prompts) == 1 else param)
    heading = Heading(
        id=identifier,
        model=service.check_model(body.model),
        fingerprint=service.fingerprint,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        obfuscation=bool(options and options.include_obfuscation),
    )
    generation = Generation(
        service,
        runtime,
        requests,
        prompt_tokens=sum(map(len, prompts)),
        choices=candidates,
        exchange=exchange,
        timeout=settings.request_timeout,
        readers=settings.readers,
    )
    if body.stream:
        events = stream_reply(generation, dialect, heading, settings.keep_alive)
        return EventStream(events, generation.close)

    async def whole() -> bytes:
        return to_json(await whole_reply(generation, dialect, heading, choices, candidates))

    return await unary(generation, whole(), http.receive)


def check_prompt(engine: ServedEngine, prompt: Sequence[int], param: str) -> None:
    """Raise InvalidRequest, naming `param`, for token ids that the engine cannot take."""
    if not prompt:
        raise InvalidRequest(f"{param}: wanted at least one token, got an empty prompt", param=param)
    if len(prompt) > engine.max_prompt:
        raise context_exceeded(engine.max_prompt, len(prompt), param)
    check_ids(engine, prompt, param)


def check_ids(engine: ServedEngine, tokens: Sequence[int], param: str) -> None:
    """Raise InvalidRequest, naming `param`, for token ids outside the vocabulary."""
    low, high = min(tokens, default=0), max(tokens, default=0)
    if low < 0 or high >= engine.vocab_size:
        wrong = low if low < 0 else high
        last = engine.vocab_size - 1
        raise InvalidRequest(f"{param}: wanted token ids in 0..{last}, got {wrong}", param=param)
