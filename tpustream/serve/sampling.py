"""From a checked request to SamplingParams, one for each choice. Knows no HTTP."""

import dataclasses
import random

from tpustream.core.errors import InvalidRequest
from tpustream.core.request import SamplingParams
from tpustream.serve.schema import ChatRequest, CompletionRequest, SampledRequest, SamplingFields

MOST_TOKENS = 2**31 - 1  # no stream is that long: a larger max_tokens says nothing more
SEED_RANGE = 2**64
COPIED = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
COMPLETION_MAX_TOKENS = 16  # OpenAI's default


def chat_sampling(request: ChatRequest, vocab_size: int) -> SamplingParams:
    """Sampling of a chat. `max_tokens` stays None when absent. Raises InvalidRequest."""
    check_stream_options(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs: wanted logprobs to be true as well", param="top_logprobs")
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is not None and newer < 0:
        field = "max_completion_tokens"
        raise InvalidRequest(f"{field}: wanted >= 0, got {newer}", param=field)
    return sampling_of(
        request,
        vocab_size,
        max_tokens=older if newer is None else newer,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def completion_sampling(request: CompletionRequest, vocab_size: int) -> SamplingParams:
    """Sampling of a text completion. Raises InvalidRequest."""
    check_stream_options(request)
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return sampling_of(request, vocab_size, max_tokens=max_tokens, logprobs=request.logprobs)


def candidates(request: CompletionRequest) -> int:
    """Continuations to generate for each prompt, at least n. Raises InvalidRequest."""
    choices = request.n or 1
    wanted = request.best_of or choices
    if wanted < choices:
        raise InvalidRequest(f"best_of: wanted >= n ({choices}), got {wanted}", param="best_of")
    if wanted > choices and request.stream:
        raise InvalidRequest("best_of: wanted no more than n in a stream", param="best_of")
    return wanted


def for_choice(sampling: SamplingParams, choice: int, room: int) -> SamplingParams:
    """Sampling of choice number `choice` of a prompt: its own seed, and an end.

    Seeds count up from the request's, so a choice can be had again alone. `room` is the number of
    tokens that an answer without max_tokens may take; an answer has at least one.
    """
    seed = sampling.seed + choice
    if seed >= SEED_RANGE:
        seed -= SEED_RANGE
    max_tokens = max(1, room) if sampling.max_tokens is None else sampling.max_tokens
    return dataclasses.replace(sampling, seed=seed, max_tokens=max_tokens)


def check_stream_options(request: SampledRequest) -> None:
    """Raise InvalidRequest for options of a stream that is none."""
    # Who says `stream: false` has decided; who leaves it out has probably forgotten it.
    if request.stream_options is not None and request.stream is None:
        raise InvalidRequest("stream_options: wanted stream to be true as well", param="stream_options")


def sampling_of(
    request: SamplingFields, vocab_size: int, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """Sampling by the fields that all routes share. Raises InvalidRequest."""
    given = {field: getattr(request, field) for field in COPIED if getattr(request, field) is not None}
    top_k = 0 if request.top_k in (None, -1) else request.top_k  # -1 is vLLM's word for all
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    sampling = SamplingParams(
        **given,
        max_tokens=None if max_tokens is None else min(max_tokens, MOST_TOKENS),
        top_k=min(top_k, vocab_size),
        logit_bias=_logit_bias(request.logit_bias or {}, vocab_size),
        seed=random.getrandbits(63) if request.seed is None else request.seed,
        stop=stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
    )
    sampling.validate()
    for token in sampling.stop_token_ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"stop_token_ids: wanted ids in 0..{vocab_size - 1}, got {token}", param="stop_token_ids"
            )
    return sampling


def _logit_bias(entries: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    for key, value in entries.items():
        if value == 0:
            continue  # changes nothing, whatever it is meant for
        # int() alone would take "1_000", " 7" and other scripts' digits.
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocab_size):
            raise InvalidRequest(
                f"logit_bias: wanted token ids in 0..{vocab_size - 1} as keys, got {key[:40]!r}",
                param="logit_bias",
            )
        bias[int(key)] = value
    return bias
