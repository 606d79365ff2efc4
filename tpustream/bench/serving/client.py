"""Sends requests when they are due and stamps what comes back.

While it runs it does no more than that, because it may share the machine with the server: about 20
microseconds a chunk with 8 busy streams on aiohttp and uvloop (on httpx more than twice that), more when it
sleeps in between. Every run reports its own client CPU time.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp

from tpustream.bench.serving.dataset import SampleRequest
from tpustream.bench.serving.records import RequestRecord
from tpustream.bench.serving.stream import StreamReader, error_message

# Below what servers keep an idle connection for (5 s is common), so that no request meets one that is
# being closed.
IDLE_SECONDS = 2.0
SHOWN = 200  # characters of an error's text

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The server under load.

    Attributes:
      base_url: without a path, as http://127.0.0.1:8000.
      endpoint: path of the generating route.
      headers: sent with every request, beside the content type.
      timeout: seconds of silence after which a request has failed.
    """

    base_url: str
    endpoint: str
    headers: Mapping[str, str]
    timeout: float

    def __post_init__(self):
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url: wanted http://HOST:PORT, got {self.base_url!r}")
        if self.base_url.rstrip("/").endswith("/v1") and self.endpoint.startswith("/v1/"):
            raise ValueError(f"base_url: wanted an address without /v1, got {self.base_url!r}")
        if not self.timeout > 0:
            raise ValueError(f"timeout: wanted more than 0, got {self.timeout:g}")

    def url(self, path: str) -> str:
        """The address of a path."""
        return self.base_url.rstrip("/") + path


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadRun:
    """A finished run.

    Attributes:
      records: one a request, in the order of the dataset.
      duration: seconds from the start to the end of the last request.
      client_cpu_seconds: CPU time that this process spent meanwhile.
    """

    records: Sequence[RequestRecord]
    duration: float
    client_cpu_seconds: float


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on the fastest event loop of the platform (uvloop has no Windows build)."""
    factory = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


async def served_models(target: Target) -> list[str]:
    """Names of the models that the server lists; () of a server that answers but has no such list.

    Raises ConnectionError when nobody answers, ValueError when the server says that it is not ready.
    """
    url = target.url("/v1/models")
    try:
        async with _session(target) as session, session.get(url) as response:
            if response.status >= 500:
                raise ValueError(f"{url}: wanted a list of models, got {await _refusal(response)}")
            listed = await response.json(content_type=None) if response.status == 200 else {"data": []}
        return [model["id"] for model in listed["data"]]
    except (aiohttp.ClientError, OSError) as error:
        raise ConnectionError(f"cannot reach {target.base_url}: {_reason(error, target)}") from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{url}: wanted a list of models, got something else") from error


async def run_load(
    target: Target,
    requests: Sequence[SampleRequest],
    bodies: Sequence[bytes],
    due: Sequence[float],
    *,
    max_concurrency: int | None = None,
    finished: Callable[[RequestRecord], None] = lambda record: None,
) -> LoadRun:
    """Send every request at its time; failures become records too.

    Args:
      bodies: the encoded request of each.
      due: seconds after the start at which each is sent, ascending.
      max_concurrency: requests in flight at most; more wait, and their waiting is not in their
        latencies. None for no limit.
      finished: called with each record as its request ends.
    """
    if max_concurrency is not None and max_concurrency < 1:
        raise ValueError(f"max_concurrency: wanted at least 1, got {max_concurrency}")
    gate = contextlib.nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    zero, spent = time.perf_counter(), time.process_time()

    async def one(session: aiohttp.ClientSession, place: int) -> RequestRecord:
        await asyncio.sleep(max(0.0, due[place] - (time.perf_counter() - zero)))
        async with gate:
            record = await _send(session, target, requests[place], bodies[place], float(due[place]), zero)
        finished(record)
        return record

    async with _session(target) as session, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(session, place)) for place in range(len(requests))]
    records = tuple(task.result() for task in running)
    return LoadRun(
        records=records,
        duration=max((record.end for record in records), default=0.0),
        client_cpu_seconds=time.process_time() - spent,
    )


def _session(target: Target) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=target.timeout, sock_read=target.timeout),
        headers={"Content-Type": "application/json", **target.headers},
    )


async def _send(
    session: aiohttp.ClientSession,
    target: Target,
    request: SampleRequest,
    body: bytes,
    due: float,
    zero: float,
) -> RequestRecord:
    """One request from its sending to its end."""
    reader = StreamReader()
    start = time.perf_counter() - zero
    try:
        async with session.post(target.url(target.endpoint), data=body) as response:
            if response.status != 200:
                failure = await _refusal(response)
            elif response.content_type != "text/event-stream":
                failure = f"wanted text/event-stream, got {response.content_type}"
            else:
                async for block in response.content.iter_any():
                    reader.feed(block, time.perf_counter() - zero)
                failure = reader.failure()
    except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError too
        failure = reader.error or _reason(error, target)
    end = reader.last if failure is None else time.perf_counter() - zero
    usage = reader.usage or {"prompt_tokens": None, "completion_tokens": None}
    return RequestRecord(
        index=request.index,
        input_len=request.input_len,
        output_len=request.output_len,
        due=due,
        start=start,
        first=reader.first,
        text_times=tuple(reader.text_times),
        end=end,
        finish_reason=reader.finish_reason,
        error=failure,
        **usage,
    )


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """Status and message of an answer that is an error."""
    text = (await response.read()).decode("utf-8", "replace")
    try:
        text = error_message(json.loads(text))
    except json.JSONDecodeError:
        text = " ".join(text.split())
    return f"HTTP {response.status}: {text[:SHOWN] or response.reason}"


def _reason(error: Exception, target: Target) -> str:
    """Why no answer came, the same words for the same cause, so that failures can be counted."""
    if isinstance(error, TimeoutError):
        return f"no byte for {target.timeout:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        return os.strerror(number) if number > 0 else str(error.os_error)  # below 0: of name look-ups
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | ConnectionError):
        return "the server closed the connection"
    return str(error) or type(error).__name__
