"""POST /v1/completions: plain prompts, and the text completion dialect."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tpustream.core.errors import InvalidRequest
from tpustream.core.request import Delta
from tpustream.serve import refused
from tpustream.serve.answer import Settings, answer, check_prompt
from tpustream.serve.logprobs import CompletionLogprobs
from tpustream.serve.refused import refuse
from tpustream.serve.sampling import candidates, completion_sampling
from tpustream.serve.schema import CompletionRequest
from tpustream.serve.service import ServedRuntime, Service
from tpustream.text.vocabulary import Tokenizer


def completion_routes(service: Service, settings: Settings) -> APIRouter:
    """The text completion route of `service`."""
    router = APIRouter()

    @router.post("/v1/completions", summary="Continue a text")
    async def complete(http: Request) -> Response:
        runtime = service.ready()
        body = await settings.read(http, CompletionRequest)
        service.check_model(body.model)
        refuse(body, refused.COMPLETION)
        if body.echo and body.logprobs is not None:
            raise InvalidRequest(
                "logprobs: this server does not support logprobs together with echo",
                param="logprobs",
                code="unsupported_parameter",
            )
        sampling = completion_sampling(body, runtime.engine.vocab_size)
        wanted = candidates(body)
        prompts = split_prompts(body.prompt)
        service.check_room(len(prompts) * wanted, "n" if len(prompts) == 1 else "prompt")
        # Encoding a long text takes long enough to hold up every stream.
        ids, texts = await asyncio.to_thread(encode_prompts, runtime, prompts, bool(body.echo))
        return await answer(
            http,
            service,
            settings,
            body,
            prompts=ids,
            param="prompt",
            sampling=sampling,
            candidates=wanted,
            dialect=CompletionDialect(
                runtime.tokenizer,
                echoes=[text for text in texts for _ in range(body.n or 1)],
                logprobs=sampling.logprobs is not None,
            ),
            id_prefix="cmpl-",
        )

    return router


def split_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """The prompts of a request, each a text or token ids. Raises InvalidRequest for none at all."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt: wanted at least one prompt, got an empty list", param="prompt")
    return prompt


def encode_prompts(
    runtime: ServedRuntime, prompts: Sequence[str | list[int]], echo: bool
) -> tuple[list[list[int]], list[str]]:
    """Token ids of each prompt, and the text that goes before its answer ("" without `echo`).

    Raises InvalidRequest for a prompt that the engine cannot take.
    """
    tokenizer = runtime.tokenizer
    ids = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    for tokens in ids:
        check_prompt(runtime.engine, tokens, "prompt")
    if not echo:
        return ids, [""] * len(prompts)
    return ids, [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]


class CompletionDialect:
    """Choices of text completions; see `replies.Dialect`. `echoes` has one text a choice."""

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer, *, echoes: Sequence[str], logprobs: bool):
        self._echoes = echoes
        self._logprobs = [CompletionLogprobs(tokenizer) for _ in echoes] if logprobs else None

    def whole_choice(self, index: int, answer: Delta) -> dict[str, Any]:
        """A choice with its text."""
        return self.chunk_choice(index, answer, True) | {"stop_reason": answer.stop_reason}

    def chunk_choice(self, index: int, delta: Delta, first: bool) -> dict[str, Any]:
        """A choice with more of its text; the first one begins with the echo."""
        choice = {
            "index": index,
            "text": self._echoes[index] + delta.text if first else delta.text,
            "logprobs": self._logprobs[index].part(delta.tokens) if self._logprobs else None,
            "finish_reason": delta.finish,
        }
        if delta.finish is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice
