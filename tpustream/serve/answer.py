"""What the generating routes share: how a checked request becomes an answer that the engine works on.

How the answer reaches its client, and what happens when the connection breaks, is for `resume`.
"""

import dataclasses
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from pydantic_core import to_json

from tpustream.core.errors import InvalidRequest, context_exceeded
from tpustream.core.request import Request, SamplingParams
from tpustream.serve.body import MAX_BODY_BYTES, Schema, read_body
from tpustream.serve.events import Event
from tpustream.serve.exchange import Exchange
from tpustream.serve.refused import IGNORABLE
from tpustream.serve.replies import Dialect, Heading, stream_reply, whole_reply
from tpustream.serve.sampling import for_choice
from tpustream.serve.schema import GenerationRequest, QueuedFields
from tpustream.serve.service import ServedEngine, Service
from tpustream.serve.slow_readers import SLOW_READERS, ReaderPolicy
from tpustream.serve.tokens import Generation


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
      resume_window: seconds that a kept answer waits for a client to come back; 0 keeps none.
      kept_answers, kept_bytes: bounds of what is kept for clients that come back.
      stored_responses, stored_bytes: answers of /v1/responses that are kept for later requests.
      park_seconds: that a live stream without credits keeps its slot.
      live_streams: at the same time on a live connection.
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
    resume_window: float = 60.0
    kept_answers: int = 1000
    kept_bytes: int = 64 * 1024 * 1024
    stored_responses: int = 1000
    stored_bytes: int = 64 * 1024 * 1024
    park_seconds: float = 30.0
    live_streams: int = 64
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """What a checked request wants of the engine.

    Attributes:
      prompts: token ids that have passed `check_prompt`. Choices are numbered prompt by prompt.
      param: the field that they come from.
      sampling: of every choice, but for its seed.
      dialect: how this answer is written.
      candidates: for each prompt; where there are more than choices, the likeliest are taken, which a
        stream cannot do. None is as many as choices.
    """

    prompts: Sequence[Sequence[int]]
    param: str
    sampling: SamplingParams
    dialect: Dialect
    candidates: int | None = None

    def fingerprint(self) -> str:
        """A hash of the prompts and the sampling: of all that decides the tokens beside the model."""
        decides = to_json([self.prompts, dataclasses.asdict(self.sampling)])
        return hashlib.sha256(decides).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """A route that generates.

    Attributes:
      path: where it is.
      schema: of its body.
      id_prefix: of its answers' ids.
      prepare: checks a body and encodes its prompts; the same body gives the same Ask. Raises InvalidRequest
        or ApiError.
    """

    path: str
    schema: type[GenerationRequest]
    id_prefix: str
    prepare: Callable[[Any, Exchange], Awaitable[Ask]]

    def new_id(self) -> str:
        """An id that nobody can guess."""
        return self.id_prefix + secrets.token_hex(12)


class Answer:
    """One answer that the engine works on. Either `events` or `whole` is taken, once.

    Args:
      id: of the answer, in every object of it.
      created: when it was first asked for, in seconds since 1970; None for now.

    Raises InvalidRequest, ApiError, QueueFull or EngineStopped where the engine or the client's bounds
    refuse it.

    Attributes:
      choices: of all prompts.
    """

    def __init__(
        self,
        service: Service,
        settings: Settings,
        body: GenerationRequest,
        ask: Ask,
        exchange: Exchange,
        *,
        id: str,
        created: int | None = None,
    ):
        runtime = service.ready()
        self._wanted = body.n or 1
        self._candidates = ask.candidates or self._wanted
        self.choices = self._wanted * len(ask.prompts)
        requests = engine_requests(runtime.engine, body, ask, exchange, id, self._candidates)
        service.check_room(len(requests), "n" if len(ask.prompts) == 1 else ask.param)
        options = body.stream_options
        self.heading = Heading(
            id=id,
            model=service.check_model(body.model),
            fingerprint=service.fingerprint,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            obfuscation=bool(options and options.include_obfuscation),
            created=int(time.time()) if created is None else created,
        )
        self._dialect = ask.dialect
        self._keep_alive = settings.keep_alive
        self.generation = Generation(
            service,
            runtime,
            requests,
            prompt_tokens=sum(map(len, ask.prompts)),
            choices=self._candidates,
            exchange=exchange,
            timeout=settings.request_timeout,
            readers=settings.readers,
        )

    def events(self) -> AsyncIterator[list[Event]]:
        """See `stream_reply`; after a stream began, errors are part of it."""
        return stream_reply(self.generation, self._dialect, self.heading, self._keep_alive)

    async def whole(self) -> dict[str, Any]:
        """See `whole_reply`."""
        return await whole_reply(self.generation, self._dialect, self.heading, self._wanted, self._candidates)


def engine_requests(
    engine: ServedEngine, body: GenerationRequest, ask: Ask, exchange: Exchange, id: str, candidates: int
) -> list[Request]:
    """The engine's requests for each candidate of each prompt."""
    sampling = ask.sampling
    if candidates > (body.n or 1) and sampling.logprobs is None:
        sampling = dataclasses.replace(sampling, logprobs=0)
    options = body.stream_options
    progress = bool(body.stream and options and options.include_prefill_progress)
    requests = []
    for prompt in ask.prompts:
        for candidate in range(candidates):
            requests.append(
                engine_request(
                    engine,
                    body,
                    exchange,
                    id=f"{id}-{len(requests)}",
                    prompt=prompt,
                    sampling=sampling,
                    choice=candidate,
                    progress=progress and candidate == 0,  # the others' prompt is the same
                )
            )
    return requests


def engine_request(
    engine: ServedEngine,
    body: QueuedFields,
    exchange: Exchange,
    *,
    id: str,
    prompt: Sequence[int],
    sampling: SamplingParams,
    choice: int = 0,
    progress: bool = False,
) -> Request:
    """What the engine is asked for one choice of one prompt; it queues as `body` says, for the client.

    Args:
      sampling: of every choice; see `for_choice`.
      progress: see Request.
    """
    return Request(
        id=id,
        prompt=tuple(prompt),
        sampling=for_choice(sampling, choice, engine.max_prompt - len(prompt)),
        key=exchange.client.name,
        priority=body.priority or 0,
        deadline=None if body.deadline_ms is None else body.deadline_ms / 1e3,
        progress=progress,
    )


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
