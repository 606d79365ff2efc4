"""POST /tokenize and /detokenize, in vLLM's form: what the tokenizer makes of a text, and back."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from tpustream.core.errors import InvalidRequest
from tpustream.serve import refused
from tpustream.serve.answer import Settings, check_ids
from tpustream.serve.chat import template_messages, template_variables
from tpustream.serve.refused import refuse
from tpustream.serve.schema import DetokenizeRequest, TokenizeRequest
from tpustream.serve.service import Service


def tokenizing_routes(service: Service, settings: Settings) -> APIRouter:
    """/tokenize and /detokenize of `service`."""
    router = APIRouter()

    @router.post("/tokenize", summary="Token ids of a text or a conversation")
    async def tokenize(http: Request) -> dict[str, Any]:
        runtime = service.ready()
        body = await settings.read(http, TokenizeRequest)
        service.check_model(body.model)
        refuse(body, refused.TOKENIZE)
        tokens = await asyncio.to_thread(encode, service, body)
        texts = list(map(runtime.tokenizer.token_text, tokens)) if body.return_token_strs else None
        return {
            "count": len(tokens),
            "max_model_len": runtime.engine.max_prompt,
            "tokens": tokens,
            "token_strs": texts,
        }

    @router.post("/detokenize", summary="The text of token ids, special tokens by name")
    async def detokenize(http: Request) -> dict[str, str]:
        runtime = service.ready()
        body = await settings.read(http, DetokenizeRequest)
        service.check_model(body.model)
        check_ids(runtime.engine, body.tokens, "tokens")
        return {"prompt": await asyncio.to_thread(runtime.tokenizer.decode, body.tokens, show_special=True)}

    return router


def encode(service: Service, body: TokenizeRequest) -> list[int]:
    """Token ids that `body` asks for. Raises InvalidRequest."""
    tokenizer = service.ready().tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("prompt: wanted either prompt or messages, got both or none", param="prompt")
    if body.prompt is not None:
        return tokenizer.encode(body.prompt, add_bos=body.add_special_tokens is not False)
    text = service.chat_template.render(
        template_messages(body.messages),
        add_generation_prompt=body.add_generation_prompt is not False,
        **template_variables(body.chat_template_kwargs),
    )
    return tokenizer.encode(text, add_bos=bool(body.add_special_tokens))
