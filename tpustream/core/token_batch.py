"""TokenBatch: what one decode step says of every slot, as plain numpy on the host."""

import dataclasses
import enum

import numpy as np


class StepFinish(enum.IntEnum):
    """What the device decided of a row. Codes cross from device to host, so they are numbers."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    NOT_FINITE = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """One step of all B slots.

    Attributes:
      step: number of the step since the engine started.
      token: i32[B].
      epoch: i32[B], which occupant of the slot the token belongs to.
      emitted: bool[B], whether the row was active and its token counts.
      finish: i32[B], StepFinish codes.
      wanted: i32[B], log-probabilities that the row asked for in this step: -1 for none, else how many
        alternatives beside the chosen token's.
      logprob: f32[B], of the chosen token; only meaningful where the row asked.
      top_ids, top_logprobs: i32[B, n], f32[B, n], best first; likewise.
    """

    step: int
    token: np.ndarray
    epoch: np.ndarray
    emitted: np.ndarray
    finish: np.ndarray
    wanted: np.ndarray
    logprob: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
