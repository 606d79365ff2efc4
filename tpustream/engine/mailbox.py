"""What the engine's inbox holds beside commands: its own threads tell it of news in the same queue."""

import dataclasses

from tpustream.core.request import Request
from tpustream.engine.scoring import ScoreJob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A request that was let in, at `arrived` seconds."""

    request: Request
    arrived: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SlotFinished:
    """The device ended this occupant of the slot."""

    slot: int
    epoch: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A prompt to score."""

    job: ScoreJob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DispatchEnded:
    """The oldest dispatch that was out is over, at `at` seconds."""

    at: float


class Stop:
    """The last message."""
