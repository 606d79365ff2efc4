"""From a Request to the arrays that the compiled steps take, after checking that it fits.

Numpy only: nothing here may compile.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from tpustream.config import EngineConfig, ModelConfig
from tpustream.core.errors import InvalidRequest, context_exceeded
from tpustream.core.plan import Placement
from tpustream.core.request import Request, SamplingParams
from tpustream.engine.state import Admission, SlotSampling

UNLIMITED = 2**31 - 1  # tokens: an int32 of the device


def check(request: Request, model: ModelConfig, engine: EngineConfig, eos_ids: Iterable[int]) -> None:
    """Raise InvalidRequest, naming the field, for a request that the engine cannot honour."""
    _check_prompt(request.prompt, model, engine)
    check_sampling(request.sampling, model, engine, eos_ids)
    if request.sampling.seed is None:
        raise InvalidRequest("seed: wanted an integer, got None", param="seed")


def check_sampling(
    sampling: SamplingParams, model: ModelConfig, engine: EngineConfig, eos_ids: Iterable[int]
) -> None:
    """Raise InvalidRequest, naming the field, for parameters that the engine cannot honour."""
    sampling.validate()
    _check_ids("logit_bias", sampling.logit_bias, model.vocab_size)
    _check_ids("stop_token_ids", sampling.stop_token_ids, model.vocab_size)
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens: wanted >= 1, got {sampling.max_tokens}", param="max_tokens")
    if len(sampling.logit_bias) > engine.bias_ids:
        raise InvalidRequest(
            f"logit_bias: wanted at most {engine.bias_ids} entries, got {len(sampling.logit_bias)}",
            param="logit_bias",
        )
    stops = stop_ids(sampling, eos_ids)
    if len(stops) > engine.stop_ids:
        raise InvalidRequest(
            f"stop_token_ids: wanted at most {engine.stop_ids} with the model's own, got {len(stops)}",
            param="stop_token_ids",
        )
    _check_logprobs(sampling.logprobs, engine)


def check_scored(
    prompt: Sequence[int], logprobs: int | None, model: ModelConfig, engine: EngineConfig
) -> None:
    """Raise InvalidRequest for a prompt that the engine cannot score."""
    if not engine.prompt_scores:
        raise InvalidRequest("this server was started with --prompt_scores=false", code="unsupported")
    _check_prompt(prompt, model, engine)
    _check_logprobs(logprobs, engine)


def _check_prompt(prompt: Sequence[int], model: ModelConfig, engine: EngineConfig) -> None:
    if not prompt:
        raise InvalidRequest("prompt: wanted at least one token, got an empty prompt", param="prompt")
    if len(prompt) > engine.ring_length:
        raise context_exceeded(engine.ring_length, len(prompt))
    _check_ids("prompt", prompt, model.vocab_size)


def _check_logprobs(logprobs: int | None, engine: EngineConfig) -> None:
    if (logprobs or 0) > engine.top_logprobs:
        raise InvalidRequest(
            f"logprobs: wanted at most {engine.top_logprobs}, got {logprobs}", param="logprobs"
        )


def stop_ids(sampling: SamplingParams, eos_ids: Iterable[int]) -> list[int]:
    """Tokens that end this request on the device."""
    own = () if sampling.ignore_eos else eos_ids
    return sorted({*own, *sampling.stop_token_ids})


def limit(sampling: SamplingParams) -> int:
    """Tokens that a stream may get in all."""
    return UNLIMITED if sampling.max_tokens is None else min(sampling.max_tokens, UNLIMITED)


def admission(
    placement: Placement, model: ModelConfig, engine: EngineConfig, eos_ids: Iterable[int]
) -> Admission:
    """What `insert` writes for this request."""
    request = placement.request
    prompt = np.full(engine.ring_length, model.vocab_size, np.int32)
    prompt[: len(request.prompt)] = request.prompt
    return Admission(
        slot=np.int32(placement.slot),
        epoch=np.int32(placement.epoch),
        token=np.int32(request.prompt[-1]),
        remaining=np.int32(limit(request.sampling)),
        prompt=prompt,
        output_from=np.int32(len(request.prompt) - request.generated),
        sampling=slot_sampling(request.sampling, model, engine, eos_ids),
    )


def slot_sampling(
    sampling: SamplingParams, model: ModelConfig, engine: EngineConfig, eos_ids: Iterable[int]
) -> SlotSampling:
    """The rows of SlotSampling that mean these parameters; their seed is set."""
    stops = np.full(engine.stop_ids, -1, np.int32)
    ids = stop_ids(sampling, eos_ids)
    stops[: len(ids)] = ids
    bias_ids = np.full(engine.bias_ids, model.vocab_size, np.int32)
    bias_values = np.zeros(engine.bias_ids, np.float32)
    bias_ids[: len(sampling.logit_bias)] = list(sampling.logit_bias.keys())
    bias_values[: len(sampling.logit_bias)] = list(sampling.logit_bias.values())
    seed = sampling.seed % 2**64
    return SlotSampling(
        temperature=np.float32(sampling.temperature),
        top_k=np.int32(min(sampling.top_k, model.vocab_size)),
        top_p=np.float32(sampling.top_p),
        min_p=np.float32(sampling.min_p),
        repetition=np.float32(sampling.repetition_penalty),
        frequency=np.float32(sampling.frequency_penalty),
        presence=np.float32(sampling.presence_penalty),
        seed=np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        stop_ids=stops,
        bias_ids=bias_ids,
        bias_values=bias_values,
        logprobs=np.int32(-1 if sampling.logprobs is None else sampling.logprobs),
    )


def _check_ids(field: str, ids: Iterable[int], vocab: int) -> None:
    for token in ids:
        if not 0 <= token < vocab:
            raise InvalidRequest(f"{field}: wanted token ids in 0..{vocab - 1}, got {token}", param=field)
