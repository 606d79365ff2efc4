"""GET routes: which model is served, whether the process lives, can answer, and how busy it is."""

import time
from typing import Any

from fastapi import APIRouter

from tpustream.serve.service import Service


def model_routes(service: Service) -> APIRouter:
    """/v1/models, /health, /ready and /load of `service`."""
    router = APIRouter()
    created = int(time.time())

    def describe(name: str) -> dict[str, Any]:
        context = service.ready().engine.max_prompt
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "tpustream",
            "root": service.names[0],
            "max_model_len": context,
        }

    @router.get("/v1/models", summary="The served model, under all its names")
    async def models() -> dict[str, Any]:
        service.ready()
        return {"object": "list", "data": [describe(name) for name in service.names]}

    @router.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        service.ready()
        return describe(service.check_model(name))

    @router.get("/health", summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="Requests are answered; 503 with the reason while they are not")
    async def ready() -> dict[str, str]:
        return {"status": "ready", "model": service.ready().name}

    @router.get("/load", summary="Streams in flight, in all, with a slot and without")
    async def load() -> dict[str, int]:
        # Answered in every state of the server: who drains it watches the streams that are left.
        engine = service.runtime and service.runtime.engine
        running, waiting = (engine.running, engine.waiting) if engine else (0, 0)
        return {"server_load": running + waiting, "running": running, "waiting": waiting}

    return router
