"""`python -m tpustream.serve`: the server as a process. Flags, loading, banner, exit code."""

import json
import os
import signal
import sys
import threading
import traceback

from absl import flags

from tpustream.config import EngineConfig
from tpustream.core.errors import EngineStopped
from tpustream.flags import define_engine_flags, define_model_flag, engine_config_from_flags, run_command
from tpustream.runtime import load_runtime
from tpustream.serve.answer import Settings
from tpustream.serve.app import create_app
from tpustream.serve.server import Server, bind, is_loopback, url_of
from tpustream.serve.service import Service

EXPECTED = (ValueError, OSError, ImportError, EngineStopped)

define_model_flag()
define_engine_flags()
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
PORT = flags.DEFINE_integer(
    "port", 8000, "Port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
NAMES = flags.DEFINE_list(
    "served_model_name", [], "Names that clients may use for the model; its own when empty."
)
IGNORED = flags.DEFINE_list(
    "ignored_fields", [], "Fields of requests that are dropped instead of refused, as suffix,tools."
)


def load(server: Server, service: Service, config: EngineConfig, url: str) -> None:
    """Load the model and open the service, or record why not and stop the server."""
    try:
        runtime = load_runtime(flags.FLAGS.model, config)
        service.attach(runtime)
    except Exception as error:  # whatever it is, the process must end with it
        if not isinstance(error, EXPECTED):
            traceback.print_exc()
        service.fail(str(error) or type(error).__name__)
        server.stop()
    else:
        print(banner(url, service.names[0], runtime.tokenizer.chat_template is not None), flush=True)


def banner(url: str, name: str, chat: bool) -> str:
    """What to show when requests are answered: where, what, and a line to try it."""
    if chat:
        path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]}
    else:
        path, body = "/v1/completions", {"prompt": "Once upon a time"}
    data = json.dumps({"model": name, **body, "stream": True})
    return (
        f"\n  tpustream serves {name}\n"
        f"  at {url}/v1  (Ctrl-C stops)\n\n"
        f"  curl -N {url}{path} -H 'Content-Type: application/json' -d '{data}'\n"
    )


def main(argv: list[str]) -> int:
    """Serve until a signal; 0 after a clean stop, 1 when it could not start."""
    if len(argv) > 1:
        return report(f"wanted flags only, got {argv[1]!r}")
    try:
        config = engine_config_from_flags()
        settings = Settings(ignored_fields=tuple(IGNORED.value))
        bound = bind(HOST.value, PORT.value)
    except (ValueError, OSError) as error:
        return report(str(error))
    if not is_loopback(bound):
        print(
            f"warning: {HOST.value} can be reached from other machines, and this server asks for no key",
            file=sys.stderr,
        )
    application = create_app(names=tuple(NAMES.value), settings=settings)
    service: Service = application.state.service
    server = Server(application)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    loading = threading.Thread(
        target=load, args=(server, service, config, url_of(bound)), name="load", daemon=True
    )
    loading.start()
    server.run(sockets=[bound])
    if service.failure is not None:
        return report(service.failure)
    if service.runtime is None:
        # A compilation cannot be interrupted, and an interpreter that is taken down under it crashes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    service.runtime.stop()
    return 0


def report(message: str) -> int:
    """Say why nothing is served; the exit code of that."""
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_command(main)
