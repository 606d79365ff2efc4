"""The HTTP application: routes, errors and ids put together around one Service."""

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from tpustream import __version__
from tpustream.serve.answer import Settings
from tpustream.serve.chat import chat_routes
from tpustream.serve.completions import completion_routes
from tpustream.serve.embeddings import embedding_routes
from tpustream.serve.errors import install_error_handlers
from tpustream.serve.models import model_routes
from tpustream.serve.responses import response_routes
from tpustream.serve.responses.schema import ResponsesRequest
from tpustream.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from tpustream.serve.service import ServedRuntime, Service
from tpustream.serve.tokenizing import tokenizing_routes
from tpustream.serve.transport import RequestIds

REFERENCE = "#/components/schemas/{model}"
BODIES = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def create_app(
    runtime: ServedRuntime | None = None,
    *,
    names: tuple[str, ...] = (),
    settings: Settings | None = None,
) -> FastAPI:
    """The ASGI application that serves `runtime`; its Service is `app.state.service`.

    Without a runtime every generating route answers 503 until `app.state.service.attach(runtime)`.

    Args:
      names: what clients may call the model; () means the runtime's own name.
      settings: keep-alive and body limit; None for the defaults.
    """
    service = Service(names=names)
    if runtime is not None:
        service.attach(runtime)
    settings = settings or Settings()
    app = FastAPI(title="tpustream", version=__version__, redirect_slashes=False)
    app.state.service = service
    app.include_router(chat_routes(service, settings))
    app.include_router(completion_routes(service, settings))
    app.include_router(embedding_routes(service, settings))
    app.include_router(response_routes(service, settings))
    app.include_router(tokenizing_routes(service, settings))
    app.include_router(model_routes(service))
    app.add_middleware(RequestIds)
    install_error_handlers(app)
    app.openapi = lambda: _openapi(app)
    return app


def _openapi(app: FastAPI) -> dict:
    # The routes read their bodies themselves, for the sake of their errors; the description learns of
    # the schemas here.
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        models = [(model, "validation") for model in BODIES.values()]
        _, definitions = models_json_schema(models, ref_template=REFERENCE)
        described.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        for path, model in BODIES.items():
            schema = {"$ref": REFERENCE.format(model=model.__name__)}
            described["paths"][path]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        app.openapi_schema = described
    return app.openapi_schema
