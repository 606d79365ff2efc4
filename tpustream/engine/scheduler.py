"""Who gets a slot, and when: host only, no jax, no threads, no clock.

The engine's loop calls it between dispatches. Requests wait in the order they came.
"""

from collections import deque

from tpustream.core.plan import Placement, Plan
from tpustream.core.request import Request


class Scheduler:
    """First come, first served over a fixed number of slots."""

    def __init__(self, slots: int):
        self._free = deque(range(slots))
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Placement] = {}
        self._releases: list[tuple[int, int]] = []
        self._epochs = [0] * slots

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def remove(self, request_id: str) -> None:
        """Take a request out before its end, waiting or running. An unknown id is ignored."""
        placement = self._running.pop(request_id, None)
        if placement is None:
            self._waiting = deque(r for r in self._waiting if r.id != request_id)
            return
        self._releases.append((placement.slot, placement.epoch))
        self._free.append(placement.slot)

    def finished(self, slot: int, epoch: int) -> None:
        """The device ended this occupant. Ignored when the slot has a newer one."""
        for request_id, placement in self._running.items():
            if (placement.slot, placement.epoch) == (slot, epoch):
                del self._running[request_id]
                self._free.append(slot)
                return

    def plan(self) -> Plan:
        """What to do now. Releases are handed out once."""
        admit = []
        while self._free and self._waiting:
            request, slot = self._waiting.popleft(), self._free.popleft()
            self._epochs[slot] += 1
            placement = Placement(request=request, slot=slot, epoch=self._epochs[slot])
            self._running[request.id] = placement
            admit.append(placement)
        releases, self._releases = tuple(self._releases), []
        return Plan(release=releases, admit=tuple(admit), decode=bool(self._running))
