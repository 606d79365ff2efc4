"""Plan: what the scheduler tells the engine to do in one iteration. Host only."""

import dataclasses

from tpustream.core.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A request and the slot it gets; `epoch` tells its tokens from those of earlier occupants."""

    request: Request
    slot: int
    epoch: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One iteration: first idle `release`, then prefill `admit`.

    Attributes:
      release: (slot, epoch) whose request ended on the host while the device still decodes it.
      admit: requests that enter a slot now.
    """

    release: tuple[tuple[int, int], ...] = ()
    admit: tuple[Placement, ...] = ()
