"""/v1/responses: OpenAI's newer API, with stored answers, background work and its own events."""

from tpustream.serve.responses.routes import response_routes

__all__ = ["response_routes"]
