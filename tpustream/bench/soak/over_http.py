"""The soak of a server: streams through aiohttp, drops connections, and asks again.

More clients ask than the server takes, so that it says no (429) again and again; who is refused comes
back. A client that leaves closes its connection: in the middle of a stream, before its first byte, or
while it waits for an answer in one piece.
"""

import asyncio
import dataclasses
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from tpustream.bench.serving.events import EventParser
from tpustream.bench.serving.stream import DONE
from tpustream.bench.soak.checks import Check, at_least, at_most, none_of
from tpustream.bench.soak.work import Asked

PATIENCE = 300.0  # seconds without a byte, after which an answer is lost
MORE_CLIENTS = 4  # than the server takes
EXPIRED = "deadline_exceeded"
LEAVES = 0.01  # seconds for each token that a client of a whole answer would have waited for
ENDLESS = 10**6  # tokens
GONE_SECONDS = 5.0  # within which the server notices that its clients have left


@dataclasses.dataclass(kw_only=True)
class Answer:
    """What one client got.

    Attributes:
      finishes: finish reasons, one when nothing is wrong and the client stayed.
      tokens: completion tokens by the server's usage.
      done: whether the answer came to its proper end: [DONE], or a whole body.
      left: whether the client went away before.
      expired: the server said that the deadline had passed.
      fault: anything else that went wrong.
    """

    asked: Asked
    text: str = ""
    finishes: list[str] = dataclasses.field(default_factory=list)
    tokens: int | None = None
    done: bool = False
    left: bool = False
    expired: bool = False
    fault: str | None = None


class HttpSoak:
    """One run against a server.

    Args:
      room: requests that the server takes at a time, running and waiting; `slots` of them run.

    Attributes:
      answers: one a request.
      refusals: how often the server said 429.
      slowest_refusal: seconds of the slowest of them.
      unhelpful: refusals without Retry-After.
    """

    def __init__(self, base_url: str, model: str, *, slots: int, room: int):
        self.answers: list[Answer] = []
        self.refusals = 0
        self.slowest_refusal = 0.0
        self.unhelpful: list[str] = []
        self._url = base_url.rstrip("/") + "/v1/completions"
        self._model = model
        self._slots, self._room = slots, room

    async def run(self, work: Sequence[Asked], ended: Callable[[], object] = lambda: None) -> None:
        """Ask for everything with more clients than the server has room for."""
        left = iter(work)

        async def client(session: aiohttp.ClientSession) -> None:
            for asked in left:
                self.answers.append(await self._ask_until_taken(session, asked))
                ended()

        async with _session() as session, asyncio.TaskGroup() as tasks:
            for _ in range(self._room + MORE_CLIENTS):
                tasks.create_task(client(session))

    async def again(self, sample: int) -> list[str]:
        """Ask for `sample` of the answers once more, alone; how their texts differ from the first time."""
        answers = [one for one in self.answers if one.text and not one.fault]
        faults = []
        async with _session() as session:
            for first in answers[:: max(1, len(answers) // sample)][:sample] if sample else []:
                stays = dataclasses.replace(first.asked, leaves_after=None, deadline=None)
                second = await self._ask_until_taken(session, stays)
                same = second.text.startswith(first.text) if first.left else second.text == first.text
                if not (same and second.done):
                    faults.append(f"request {stays.index}: first {first.text!r}, then {second.text!r}")
        return faults

    async def empty(self) -> list[str]:
        """What is still held when nobody asks: the server must take as many as it has room for, run as
        many as it has slots, and refuse one more.
        """
        until = time.monotonic() + GONE_SECONDS
        while (fault := await self._fill()) and time.monotonic() < until:
            await asyncio.sleep(0.2)
        return [fault] if fault else []

    def checks(
        self, compilations: int | None, repeated: list[str], held: list[str], memory: Check
    ) -> list[Check]:
        """What must be true of this run; `repeated` is what `again` found, `held` what `empty` did."""
        stayed = [one for one in self.answers if not (one.left or one.expired)]
        faults = [f"request {one.asked.index}: {one.fault}" for one in self.answers if one.fault]
        lost = [_name(one) for one in stayed if not (one.fault or (one.done and one.finishes))]
        doubled = [_name(one) for one in self.answers if len(one.finishes) > 1]
        length = [one for one in stayed if one.finishes == ["length"]]
        miscounted = [_name(one) for one in length if one.tokens != one.asked.sampling.max_tokens]
        return [
            at_most("compilations after the start", compilations, 0),
            none_of("lost: answers without an end", lost),
            none_of("failed: answers that are errors", faults),
            none_of("doubled: answers with several ends", doubled),
            none_of("wrong number of tokens", miscounted),
            none_of("another text when asked again", repeated),
            none_of("slots and queue not empty at the end", held),
            at_least("clients that left", sum(one.left for one in self.answers), 1),
            at_least("refused, and taken later", self.refusals, 1),
            none_of("refusals without Retry-After", self.unhelpful),
            memory,
        ]

    def finishes(self) -> dict[str, int]:
        """How many ended how."""
        return dict(Counter(_end(one) for one in self.answers))

    async def _ask_until_taken(self, session: aiohttp.ClientSession, asked: Asked) -> Answer:
        while True:
            began = time.perf_counter()
            answer = await self._ask(session, asked)
            if answer is not None:
                return answer
            self.refusals += 1
            self.slowest_refusal = max(self.slowest_refusal, time.perf_counter() - began)
            # Sooner than Retry-After says, so that the queue stays full.
            await asyncio.sleep(random.uniform(0.02, 0.2))

    async def _ask(self, session: aiohttp.ClientSession, asked: Asked) -> Answer | None:
        """One answer; None when the server was full."""
        answer = Answer(asked=asked)
        leaves_whole = asked.whole and asked.leaves_after is not None
        try:
            async with (
                asyncio.timeout(LEAVES * asked.leaves_after if leaves_whole else None),
                session.post(self._url, json=body_of(asked, self._model)) as response,
            ):
                if response.status == 429:
                    if "Retry-After" not in response.headers:
                        self.unhelpful.append(f"request {asked.index}")
                    return None
                if response.status != 200:
                    self._take_error(answer, await response.json(), f"HTTP {response.status}: ")
                elif asked.whole:
                    _take(answer, await response.json())
                    answer.done = True
                else:
                    await self._read(answer, response)
        except TimeoutError:
            if leaves_whole:
                answer.left = True
            else:
                answer.fault = f"no byte for {PATIENCE:g} s"
        except aiohttp.ClientError as error:
            answer.fault = f"{type(error).__name__}: {error}"
        return answer

    async def _read(self, answer: Answer, response: aiohttp.ClientResponse) -> None:
        """The events of a stream, until its end or until its client leaves."""
        parser, chunks, leaves = EventParser(), 0, answer.asked.leaves_after
        if leaves != 0:
            async for block in response.content.iter_any():
                for event in parser.feed(block):
                    if event.data == DONE:
                        answer.done = True
                        continue
                    chunk = json.loads(event.data)
                    if "error" in chunk:
                        self._take_error(answer, chunk, "in the stream: ")
                        return
                    chunks += _take(answer, chunk)
                if leaves is not None and chunks >= leaves:
                    break
        if leaves is not None and not answer.done:
            answer.left = True
            response.close()

    @staticmethod
    def _take_error(answer: Answer, body: dict[str, Any], where: str) -> None:
        error = body["error"]
        if error.get("code") == EXPIRED and answer.asked.deadline is not None:
            answer.expired = True
        else:
            answer.fault = where + str(error.get("message"))

    async def _fill(self) -> str | None:
        """Fill the server to the brim and leave; what it did otherwise than expected, or None."""
        body = {"model": self._model, "prompt": [1], "max_tokens": ENDLESS, "ignore_eos": True,
                "temperature": 0, "stream": True}  # fmt: skip
        async with _session() as session:
            held = [await session.post(self._url, json=body) for _ in range(self._room)]
            try:
                taken = sum(response.status == 200 for response in held)
                if taken < self._room:
                    return f"wanted {self._room} requests taken, got {taken}"
                async with session.post(self._url, json=body) as more:
                    if more.status != 429:
                        return f"wanted one more refused, got HTTP {more.status}"
                first = [asyncio.create_task(_first_event(response)) for response in held]
                running = await _ended_of(first, self._slots)
                return None if running == self._slots else f"wanted {self._slots} to run, got {running}"
            finally:
                for response in held:
                    response.close()


def body_of(asked: Asked, model: str) -> dict[str, Any]:
    """The request in the dialect of /v1/completions, with this server's extensions."""
    sampling = asked.sampling
    body: dict[str, Any] = {"model": model, "prompt": list(asked.prompt), "priority": asked.priority}
    for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"):
        body[name] = getattr(sampling, name)
    body["frequency_penalty"], body["presence_penalty"] = (
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    body["ignore_eos"] = sampling.ignore_eos
    if asked.deadline is not None:
        body["deadline_ms"] = max(1, round(1e3 * asked.deadline))
    if not asked.whole:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=PATIENCE),
        trust_env=False,
    )


def _take(answer: Answer, chunk: dict[str, Any]) -> int:
    """Add a chunk, or a whole body, to the answer; 1 when it brought text."""
    if chunk.get("usage"):
        answer.tokens = chunk["usage"]["completion_tokens"]
    text = ""
    for choice in chunk["choices"]:
        text += choice["text"]
        if choice.get("finish_reason") is not None:
            answer.finishes.append(choice["finish_reason"])
    answer.text += text
    return int(bool(text))


async def _first_event(response: aiohttp.ClientResponse) -> None:
    """Return when a stream has brought its first event; keep-alive comments are none."""
    parser = EventParser()
    async for block in response.content.iter_any():
        if parser.feed(block):
            return


async def _ended_of(tasks: list[asyncio.Task], wanted: int) -> int:
    """How many of the tasks have ended once `wanted` have, or a long time has passed."""
    until, pending = time.monotonic() + PATIENCE / 10, set(tasks)
    while len(tasks) - len(pending) < wanted and time.monotonic() < until:
        _, pending = await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return len(tasks) - len(pending)


def _end(answer: Answer) -> str:
    if answer.fault:
        return "error"
    if answer.left:
        return "left"
    return "expired" if answer.expired else (answer.finishes or ["no end"])[0]


def _name(answer: Answer) -> str:
    return f"request {answer.asked.index} ({answer.tokens} tokens, {_end(answer)})"
