"""Commands: what is said to the engine about a request in flight, through the same inbox as requests.

A command that names an unknown id, or a request that has ended, is ignored: it may have crossed the news
of the end.
"""

import dataclasses

from tpustream.core.request import FinishReason, SamplingParams


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """End it now.

    Attributes:
      finish: what the stream ends with: CANCELLED for a client that left, STOP for a host-side stop.
    """

    request_id: str
    finish: FinishReason = FinishReason.CANCELLED


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Keep its slot and its cache, and decode no more of it from the next dispatch on."""

    request_id: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """Go on where it was paused."""

    request_id: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Retune:
    """Choose its tokens by other parameters from the next dispatch on.

    Attributes:
      sampling: all of them; a seed of None keeps the one there is.
    """

    request_id: str
    sampling: SamplingParams


Command = Cancel | Pause | Resume | Retune
