"""POST /v1/embeddings: pooled hidden states of the served model.

A vector is the mean over a text's tokens of the hidden states after the final norm, as a unit vector.
A language model is no trained encoder: it serves to try things out, and ranks worse than one.
"""

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from tpustream.core.errors import InvalidRequest
from tpustream.serve import refused
from tpustream.serve.answer import Settings
from tpustream.serve.completions import encode_prompts, split_prompts
from tpustream.serve.exchange import exchange_of
from tpustream.serve.refused import refuse
from tpustream.serve.schema import EmbeddingRequest
from tpustream.serve.scores import scored
from tpustream.serve.service import Service
from tpustream.serve.transport import CLIENT_CLOSED, until_gone

MOST_INPUTS = 2048  # OpenAI's limit


def embedding_routes(service: Service, settings: Settings) -> APIRouter:
    """The embeddings route of `service`."""
    router = APIRouter()

    @router.post("/v1/embeddings", summary="Mean hidden states of texts, as unit vectors")
    async def embed(http: Request) -> Response:
        runtime = service.ready()
        body = await settings.read(http, EmbeddingRequest)
        model = service.check_model(body.model)
        refuse(body, refused.EMBEDDING)
        size = runtime.engine.embed_dim
        if body.dimensions is not None and body.dimensions > size:
            raise InvalidRequest(
                f"dimensions: wanted at most {size}, got {body.dimensions}", param="dimensions"
            )
        texts = split_prompts(body.input, "input")
        if len(texts) > MOST_INPUTS:
            raise InvalidRequest(f"input: wanted at most {MOST_INPUTS}, got {len(texts)}", param="input")
        # Encoding a long text takes long enough to hold up every stream.
        prompts, _ = await asyncio.to_thread(encode_prompts, runtime, texts, False, "input")
        scoring = scored(
            service, runtime, prompts, exchange=exchange_of(http.scope), timeout=settings.request_timeout
        )
        scores = await until_gone(scoring, http.receive)
        if scores is None:
            return Response(status_code=CLIENT_CLOSED)
        vectors = [unit(score.hidden[: body.dimensions]) for score in scores]
        tokens = sum(map(len, prompts))
        service.metrics.entered(tokens)
        answer = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": written(vector, body.encoding_format)}
                for index, vector in enumerate(vectors)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return Response(to_json(answer), media_type="application/json")

    return router


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1; one of zeros stays."""
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def written(vector: np.ndarray, encoding: str | None) -> Any:
    """A vector as the client wants it."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
