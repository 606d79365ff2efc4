"""Who gets a slot, and when: host only, no jax, no threads, no clock (time is an argument).

The engine's loop calls it between dispatches. A lower priority value always goes first; among equals
the keys share fairly (`fairness`); within a key requests keep the order in which they came. A request
whose deadline passes while it waits is handed back and never gets a slot.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Iterator

from tpustream.core.plan import Placement, Plan
from tpustream.core.request import Request
from tpustream.engine.fairness import FairQueue


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Expired:
    """A request whose deadline passed after `waited` seconds without a slot."""

    request: Request
    waited: float

    @property
    def message(self) -> str:
        """Why it ended, for its client."""
        wanted = self.request.deadline
        return f"deadline: wanted a slot within {wanted:g} s of arrival, got none in {self.waited:.3f} s"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    request: Request
    arrived: float

    @property
    def due(self) -> float:
        return math.inf if self.request.deadline is None else self.arrived + self.request.deadline


class Scheduler:
    """Priorities, fair shares and deadlines over a fixed number of slots. How much waits is bounded
    elsewhere (`waiting_room`), before requests come here.
    """

    def __init__(self, slots: int):
        self._free = deque(range(slots))
        self._waiting: dict[str, _Waiting] = {}
        self._queues: dict[int, FairQueue] = {}  # by priority; none of them empty
        self._running: dict[str, Placement] = {}  # by id, the newest of an id
        self._slots: list[Placement | None] = [None] * slots
        self._releases: list[tuple[int, int]] = []
        self._epochs = [0] * slots
        self._next_due = math.inf  # no waiting request is due earlier

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return len(self._slots) - len(self._free)

    @property
    def next_due(self) -> float:
        """No waiting request's deadline comes earlier, by the clock of `add`; infinity where none waits."""
        return self._next_due

    def add(self, request: Request, arrived: float) -> None:
        """Queue a request that came at `arrived`, in seconds of any clock that never goes back."""
        waiting = _Waiting(request=request, arrived=arrived)
        self._waiting[request.id] = waiting
        self._queues.setdefault(request.priority, FairQueue()).add(request)
        self._next_due = min(self._next_due, waiting.due)

    def remove(self, request_id: str) -> None:
        """Take a request out before its end, waiting or running. An unknown id is ignored."""
        if request_id in self._waiting:
            self._leave_queue(request_id)
        elif request_id in self._running:
            placement = self._running[request_id]
            self._releases.append((placement.slot, placement.epoch))
            self._vacate(placement)

    def finished(self, slot: int, epoch: int) -> None:
        """The device ended this occupant. Ignored when the slot is empty or has a newer one."""
        placement = self._slots[slot]
        if placement is not None and placement.epoch == epoch:
            self._vacate(placement)

    def expire(self, now: float) -> list[Expired]:
        """Take out the waiting requests whose deadline has come. To be called before `plan`."""
        if now < self._next_due:
            return []
        late = [waiting for waiting in self._waiting.values() if waiting.due <= now]
        for waiting in late:
            self._leave_queue(waiting.request.id)
        self._next_due = min((waiting.due for waiting in self._waiting.values()), default=math.inf)
        return [Expired(request=waiting.request, waited=now - waiting.arrived) for waiting in late]

    def plan(self) -> Plan:
        """What to do now. Releases are handed out once."""
        admit = []
        while self._free and self._queues:
            request = self._pop()
            slot = self._free.popleft()
            self._epochs[slot] += 1
            placement = Placement(request=request, slot=slot, epoch=self._epochs[slot])
            self._running[request.id] = self._slots[slot] = placement
            admit.append(placement)
        if admit:
            for priority, queue in self._queues.items():
                queue.forget_idle({r.key for r in self._running_requests() if r.priority == priority})
        releases, self._releases = tuple(self._releases), []
        return Plan(release=releases, admit=tuple(admit))

    def decoded(self, steps: int) -> None:
        """So many steps were dispatched for all running requests: their keys are charged a token each.

        A slot is charged while it is held, also in the steps between a stream's end on the device and
        the news of it: a slot that is held is what others wait for.
        """
        for request in self._running_requests():
            queue = self._queues.get(request.priority)
            if queue is not None:
                queue.charge(request.key, steps)

    def _pop(self) -> Request:
        priority = min(self._queues)
        request = self._queues[priority].pop()
        self._left_queue(request)
        return request

    def _leave_queue(self, request_id: str) -> None:
        request = self._waiting[request_id].request
        self._queues[request.priority].remove(request)
        self._left_queue(request)

    def _left_queue(self, request: Request) -> None:
        del self._waiting[request.id]
        if not self._queues[request.priority]:
            del self._queues[request.priority]

    def _vacate(self, placement: Placement) -> None:
        # An id may be used again before the news of its first stream's end is here.
        if self._running.get(placement.request.id) is placement:
            del self._running[placement.request.id]
        self._slots[placement.slot] = None
        self._free.append(placement.slot)

    def _running_requests(self) -> Iterator[Request]:
        return (placement.request for placement in self._slots if placement is not None)
