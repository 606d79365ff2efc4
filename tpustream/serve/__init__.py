"""The HTTP server: OpenAI's API over one engine."""

from tpustream.serve.app import create_app

__all__ = ["create_app"]
