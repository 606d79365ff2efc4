"""One client of the chaos: asks, loses its connection as its case says, and comes back.

A server that is away, loading or full is asked again until it answers. What a client gets is written
down by its Witness.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from tpustream.bench.chaos.cases import Case, Mishap, Trouble, Way
from tpustream.bench.chaos.witness import Connection, Witness
from tpustream.bench.serving.events import EventParser

PATIENCE = 180.0  # seconds without a byte, or without a server, after which an answer is lost
AGAIN = (408, 429, 503)  # not now
RETRY = 0.2  # seconds
MOST_CONNECTIONS = 2000  # with those that nobody answered
INTERRUPTED = (
    "shutting_down",
    "engine_stopped",
)  # ends of a stream that a later life of the server continues


class ChaosClient:
    """Runs one case.

    Args:
      url: tells where the server is now.

    Attributes:
      witness: what it has seen.
      connections: that it has had.
    """

    def __init__(self, case: Case, session: aiohttp.ClientSession, url: Callable[[], str]):
        self.case = case
        self.witness = Witness()
        self.connections = 0
        self._session = session
        self._url = url
        self._deadline = 0.0

    async def run(self) -> None:
        """From the first request to the end of the answer, or to an error that cannot be mended."""
        way = Way.HEADER if self.case.key is None else Way.KEY  # after a break that no case foresaw
        for trouble in self.case.troubles:
            await self._until_answered(way, trouble)
            if self._over or self.case.leaves:
                return
            await asyncio.sleep(trouble.wait)
            way = trouble.way
        while not self._over:
            await self._until_answered(way, None)
            if self.connections > MOST_CONNECTIONS:
                self.witness.faults.append(f"no end after {MOST_CONNECTIONS} connections")
            if not self._over:
                await asyncio.sleep(RETRY)

    @property
    def _over(self) -> bool:
        return self.witness.done or self.witness.error is not None or bool(self.witness.faults)

    async def _until_answered(self, way: Way, trouble: Trouble | None) -> None:
        """One connection that the server has taken, and what came over it."""
        self._deadline = time.monotonic() + PATIENCE
        while not await self._connection(way, trouble):
            if time.monotonic() > self._deadline:
                self.witness.faults.append(f"no answer for {PATIENCE:g} s")
                return
            await asyncio.sleep(RETRY)

    async def _connection(self, way: Way, trouble: Trouble | None) -> bool:
        """Whether the server took it."""
        try:
            return await self._exchange(way, trouble)
        except aiohttp.ClientConnectorError:
            return False
        except (aiohttp.ClientError, ConnectionError):
            return True  # it broke on the way: the server was killed
        except TimeoutError:
            self.witness.faults.append(f"no byte for {PATIENCE:g} s")
            return True

    async def _exchange(self, way: Way, trouble: Trouble | None) -> bool:
        mishap = trouble and trouble.mishap
        self.connections += 1
        if mishap is Mishap.UNREAD:
            await self._leave_unread()
            return True
        async with contextlib.AsyncExitStack() as opened:
            if mishap is Mishap.DOUBLED and self.case.key is not None:
                await opened.enter_async_context(self._request(Way.KEY))
            # Who has seen nothing asks as if for the first time.
            way = way if self.witness.position else Way.KEY
            position = None if way is Way.KEY else self.witness.position
            response = await opened.enter_async_context(self._request(way))
            if response.status in AGAIN:
                return False
            if response.status == 204:
                if not self.witness.done:
                    self.witness.faults.append("told that there is nothing more, before the end")
            elif response.status != 200:
                self.witness.error = (await response.json())["error"]["code"] or str(response.status)
            elif not self.case.streamed:
                self.witness.give(await response.json())
            else:
                await self._read(response, self.witness.connection(position), trouble)
            return True

    async def _read(
        self, response: aiohttp.ClientResponse, connection: Connection, trouble: Trouble | None
    ) -> None:
        """Events, until the end or the mishap."""
        parser, events = EventParser(), 0
        transport = response.connection and response.connection.transport
        async for block in response.content.iter_any():
            for event in parser.feed(block):
                connection.take(event)
                if self.witness.error in INTERRUPTED:
                    self.witness.error = None
                    return
                if self._over:
                    return
                events += 1
                if trouble is None:
                    continue
                if trouble.mishap is Mishap.SLOW:
                    await asyncio.sleep(trouble.pause)
                if events == trouble.after:
                    if trouble.mishap is Mishap.HALF_CLOSED and transport is not None:
                        transport.write_eof()
                    elif trouble.mishap is Mishap.CLOSED:
                        return
                    elif transport is not None:
                        transport.abort()
                        return

    async def _leave_unread(self) -> None:
        """Send the request, and go."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02), self._request(Way.KEY):
                pass

    def _request(self, way: Way) -> Any:
        """A request in this way; by key it is the first one again, whether there is a key or not."""
        base, case, witness = self._url(), self.case, self.witness
        last = f"{witness.stream}:{'.'.join(map(str, witness.position))}"
        if way in (Way.HEADER, Way.QUERY):
            url = f"{base}/v1/streams/{witness.stream}"
            if way is Way.HEADER:
                return self._session.get(url, headers={"Last-Event-ID": last})
            return self._session.get(url, params={"from": last.rpartition(":")[2]})
        headers = {} if case.key is None else {"Idempotency-Key": case.key}
        if way is Way.POST:
            headers["Last-Event-ID"] = last
        return self._session.post(base + case.path, json=case.body, headers=headers)
