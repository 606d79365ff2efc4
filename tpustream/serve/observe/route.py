"""GET /metrics."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from tpustream.serve.observe.metrics import Metrics


def metric_routes(metrics: Metrics) -> APIRouter:
    """The route that Prometheus asks."""
    router = APIRouter()

    @router.get("/metrics", summary="Metrics in Prometheus's text format")
    async def read() -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
