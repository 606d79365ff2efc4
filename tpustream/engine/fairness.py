"""Whose request is next, among requests of one priority: fair shares between keys, turns within a key.

The virtual token counter of Sheng et al. 2024 ("Fairness in Serving Large Language Models", algorithm
2), which is start-time fair queueing (Goyal, Vin, Cheng 1996, after Demers, Keshav, Shenker 1989) by
tokens of service. Every key has a counter of the tokens that it was served: its prompts when they get
a slot, and its generated tokens as they are decoded. The key with the lowest counter is next. A key
that comes to wait is lifted to the lowest counter of the keys that wait, so nobody saves up a right to
a later burst. It follows that a newcomer waits for at most one request of every other key.

Service is shared only while somebody waits: an empty queue is thrown away, counters and all, and a key
that used slots that nobody wanted owes nothing for them.

Host only: no jax, no threads, no clock.
"""

from collections import OrderedDict
from collections.abc import Container

from tpustream.core.request import Request


class FairQueue:
    """Waiting requests of one priority, for as long as there are any; false when there are none.

    With one key it is first come, first served.
    """

    def __init__(self):
        # Per key its requests by id with the number of their arrival. An OrderedDict, because taking the
        # first out of a plain dict again and again is quadratic.
        self._lines: dict[str, OrderedDict[str, tuple[int, Request]]] = {}
        self._served: dict[str, int] = {}
        self._arrivals = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, request: Request) -> None:
        """Queue a request behind those of its key."""
        if request.key not in self._lines:
            self._served[request.key] = max(self._served.get(request.key, 0), self._level())
            self._lines[request.key] = OrderedDict()
        self._lines[request.key][request.id] = (self._arrivals, request)
        self._arrivals += 1

    def remove(self, request: Request) -> None:
        """Take out a request that waits here; its key is charged nothing."""
        line = self._lines[request.key]
        del line[request.id]
        if not line:
            del self._lines[request.key]

    def pop(self) -> Request:
        """Take out the next request and charge its prompt to its key. Not to be called when empty."""
        key = min(self._lines, key=lambda key: (self._served[key], self._first(key)[0]))
        request = self._first(key)[1]
        self.charge(key, len(request.prompt))
        self.remove(request)
        return request

    def charge(self, key: str, tokens: int) -> None:
        """This key was served so many tokens while somebody waited."""
        self._served[key] = self._served.get(key, 0) + tokens

    def forget_idle(self, running: Container[str]) -> None:
        """Drop the counters of keys that neither wait nor run and that coming back would lift anyway."""
        level = self._level()
        for key, served in tuple(self._served.items()):
            if served <= level and key not in self._lines and key not in running:
                del self._served[key]

    def _first(self, key: str) -> tuple[int, Request]:
        return next(iter(self._lines[key].values()))

    def _level(self) -> int:
        """The lowest counter among the keys that wait; it never falls while somebody waits."""
        return min((self._served[key] for key in self._lines), default=0)
