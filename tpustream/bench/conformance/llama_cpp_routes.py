"""A pytest plugin for llama.cpp's server tests: its routes of OpenAI's API are asked for under /v1.

llama.cpp serves them with and without that prefix; OpenAI, and this server, with it only.
"""

import os

ROUTES = ("/chat/completions", "/completions", "/embeddings", "/models", "/responses")


def pytest_configure() -> None:
    """Called by pytest once the tests' folder can be imported from."""
    import utils  # of llama.cpp's tests

    def make_url(server, path: str, host: str | None = None) -> str:
        prefix = "/v1" if path.partition("?")[0] in ROUTES else ""
        return f"http://{host or os.environ['TPUSTREAM_HOST']}:{server.server_port}{prefix}{path}"

    utils.ServerProcess.make_url = make_url
