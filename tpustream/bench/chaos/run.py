"""A whole run of chaos against one server: all clients, the kills, the comparison, and what is left."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tpustream.bench.chaos.cases import Case
from tpustream.bench.chaos.client import AGAIN, PATIENCE, RETRY, ChaosClient
from tpustream.bench.chaos.server import MortalServer
from tpustream.bench.chaos.witness import joined
from tpustream.bench.soak.checks import Check, at_least, at_most, none_of

FIXED = ("slots", "memory_bandwidth_bytes_per_second", "_created")  # gauges that say what is or was
RESUMES = "tpustream:stream_resumes"
SPARE = 5.0  # seconds that the server may take beyond the window
CLEAN = "stream_not_found"  # what a client is told whose stream was lost, and may be


class Chaos:
    """One run.

    Args:
      at_once: clients.
      kills: of the server, at random moments.
      seed: of those moments.

    Attributes:
      clients: those that have come to their end.
      resumes: what clients found that came back, as the server counted in all its lives.
    """

    def __init__(
        self, server: MortalServer, cases: Sequence[Case], *, at_once: int, kills: int = 0, seed: int = 0
    ):
        self.clients: list[ChaosClient] = []
        self.resumes: Counter[str] = Counter()
        self._server = server
        self._cases = cases
        self._at_once = at_once
        moments = random.Random(seed).sample(range(1, len(cases)), min(kills, len(cases) - 1))
        self._kill_at = sorted(moments, reverse=True)

    async def run(self, ended: Callable[[], object] = lambda: None) -> None:
        """All clients, so many at a time; the server is killed on the way."""
        left = iter(self._cases)

        async def some(session: aiohttp.ClientSession) -> None:
            for case in left:
                client = ChaosClient(case, session, lambda: self._server.url)
                await client.run()
                self.clients.append(client)
                ended()

        async with _session() as session, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._kill(session))
            for _ in range(self._at_once):
                tasks.create_task(some(session))

    async def compare(self, compared: Callable[[], object] = lambda: None) -> list[str]:
        """Ask for every whole answer once more, undisturbed; how the first texts differ from it."""
        faults: list[str] = []
        left = iter([client for client in self.clients if client.witness.done])

        async def some(session: aiohttp.ClientSession) -> None:
            for client in left:
                first, alone = client.witness.texts(), await self._alone(session, client.case)
                if first != alone:
                    faults.append(f"{_name(client)}: {first}, undisturbed {alone}")
                compared()

        async with _session() as session, asyncio.TaskGroup() as tasks:
            for _ in range(self._at_once):
                tasks.create_task(some(session))
        return faults

    async def settle(self, window: float) -> list[str]:
        """Gauges that do not come back to 0 once nobody asks and the window is over."""
        until = time.monotonic() + window + SPARE
        async with _session() as session:
            await self._count_resumes(session)
            while (held := await self._held(session)) and time.monotonic() < until:
                await asyncio.sleep(RETRY)
        return held

    def checks(self, differing: list[str], held: list[str], most_failed: float) -> list[Check]:
        """What must be true; `differing` is what `compare` found, `held` what `settle` did."""
        faults = [f"{_name(one)}: {fault}" for one in self.clients for fault in one.witness.faults]
        missing = [f"{_name(one)}: {gaps}" for one in self.clients if (gaps := one.witness.missing())]
        twice = [_name(one) for one in self.clients if _ends(one) is False]
        dirty = [f"{_name(one)}: {one.witness.error}" for one in self.clients if self._failed_otherwise(one)]
        lost = [one for one in self.clients if one.witness.error == CLEAN]
        ended = len(self._cases) - len(self.clients)
        share = len(lost) / len(self._cases)
        return [
            at_most("clients without an end", ended, 0),
            none_of("doubled, out of order, or changed on the way", faults),
            none_of("events missing", missing),
            none_of("choices without exactly one end", twice),
            none_of("texts other than the undisturbed ones", differing),
            none_of("failed otherwise than by a lost stream", dirty),
            at_most("streams lost, and said so", share, most_failed),
            none_of("gauges not back to 0", held),
            at_least("connections beyond the first", sum(one.connections - 1 for one in self.clients), 1),
            at_most("kills that were left out", len(self._kill_at), 0),
        ]

    def outcomes(self) -> dict[str, int]:
        """How many clients ended how."""
        return dict(Counter(_outcome(client) for client in self.clients))

    @staticmethod
    def _failed_otherwise(client: ChaosClient) -> bool:
        return client.witness.error not in (None, CLEAN)

    async def _kill(self, session: aiohttp.ClientSession) -> None:
        """Kill the server whenever so many clients have ended."""
        while self._kill_at and len(self.clients) < len(self._cases):
            if len(self.clients) >= self._kill_at[-1]:
                self._kill_at.pop()
                await self._count_resumes(session)
                await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(RETRY / 10)

    async def _alone(self, session: aiohttp.ClientSession, case: Case) -> dict[int, tuple[str, str | None]]:
        body = {name: value for name, value in case.body.items() if name != "stream_options"}
        until = time.monotonic() + PATIENCE
        while True:
            async with session.post(self._server.url + case.path, json=body | {"stream": False}) as response:
                if response.status == 200:
                    return joined((await response.json())["choices"])
                if response.status not in AGAIN or time.monotonic() > until:
                    raise ValueError(f"{case.path}: wanted 200, got {response.status}")
            await asyncio.sleep(RETRY)

    async def _metrics(self, session: aiohttp.ClientSession) -> Iterable:
        async with session.get(f"{self._server.url}/metrics") as response:
            return list(text_string_to_metric_families(await response.text()))

    async def _count_resumes(self, session: aiohttp.ClientSession) -> None:
        for family in await self._metrics(session):
            for sample in family.samples if family.name == RESUMES else ():
                if sample.name == f"{RESUMES}_total":
                    self.resumes[sample.labels["outcome"]] += int(sample.value)

    async def _held(self, session: aiohttp.ClientSession) -> list[str]:
        return [
            f"{sample.name}{sample.labels or ''} = {sample.value:g}"
            for family in await self._metrics(session)
            if family.type == "gauge" and not family.name.endswith(FIXED)
            for sample in family.samples
            if sample.value
        ]


def _session() -> aiohttp.ClientSession:
    # A connection of its own for every request: what happens to one must not happen to another.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=PATIENCE),
        trust_env=False,
    )


def _ends(client: ChaosClient) -> bool | None:
    """Whether each choice of a whole answer has its end; None for an answer that is not whole."""
    if not client.witness.done:
        return None
    texts = client.witness.texts()
    return len(texts) == client.case.body["n"] and all(finish for _, finish in texts.values())


def _outcome(client: ChaosClient) -> str:
    witness = client.witness
    if witness.faults:
        return "fault"
    if witness.done:
        return "whole"
    return witness.error or "left"


def _name(client: ChaosClient) -> str:
    return f"client {client.case.index} ({', '.join(one.mishap for one in client.case.troubles) or 'none'})"
