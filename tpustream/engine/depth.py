"""How many steps the next dispatch runs. Host only: no jax, no threads, no clock (time is an argument).

A deep dispatch costs the host less for each token; a shallow one sooner lets in what comes meanwhile.
The depth is the least of these:

- 1 while prompts are prefilled and after a request has come or was cancelled; then twice as many with
  every dispatch, up to the deepest, for as long as nothing else happens;
- what the row with the longest way to go still needs (0: all that is needed has been dispatched);
- while requests wait for a slot, what the row that ends first still needs, so that no slot is kept for
  the rest of a dispatch. Only `max_tokens` is known beforehand: a row that meets its EOS on the way
  idles to the end of the dispatch, and the others run on;
- as many steps as take no longer than the target, where somebody would notice: tokens that are held
  back until their dispatch ends, or a newcomer, who goes behind the dispatches that are out.

The time of a step is an exponentially weighted mean over dispatches that had the device to themselves.
Until there is one, a target allows one step.
"""

import dataclasses
from collections import deque
from collections.abc import Collection

NEWEST = 0.2  # weight of the newest dispatch in the mean


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the engine is at when it is about to dispatch.

    Attributes:
      prefilling: a prompt is being prefilled, or was just now.
      disturbed: a request came or was cancelled since the last dispatch.
      waiting: requests wait for a slot.
      slot_free: a request that came now would get a slot at once.
      remaining: of each row that decodes, the steps that are not dispatched yet; 0 or less for a row
        whose last step is on its way.
    """

    prefilling: bool = False
    disturbed: bool = False
    waiting: bool = False
    slot_free: bool = False
    remaining: Collection[int]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Dispatch:
    steps: int
    at: float
    alone: bool


class DepthPolicy:
    """Chooses depths and learns the time of a step from the dispatches that end.

    Args:
      deepest: steps of a dispatch at most, >= 1.
      target: seconds that a dispatch may take where somebody would notice; 0 sets no limit.
      held_back: tokens of a dispatch leave together, at its end.
    """

    def __init__(self, *, deepest: int, target: float, held_back: bool):
        self._deepest = deepest
        self._target = target
        self._held_back = held_back
        self._grown = 1
        self._step: float | None = None
        self._underway: deque[_Dispatch] = deque()
        self._last_end = float("-inf")

    @property
    def step_seconds(self) -> float | None:
        """Time of one step; None before the first measurement."""
        return self._step

    def choose(self, load: Load) -> int:
        """Steps of the next dispatch; 0 for none."""
        if load.prefilling or load.disturbed:
            self._grown = 1
        longest = max(load.remaining, default=0)
        if longest <= 0:
            return 0
        depth = min(self._grown, longest)
        if load.waiting:
            depth = min(depth, max(1, min(load.remaining)))
        if self._target > 0 and (self._held_back or load.slot_free):
            depth = min(depth, self._within_target())
        return depth

    def dispatched(self, steps: int, *, now: float, alone: bool) -> None:
        """A dispatch goes out; `alone` if no prefill stands between it and the one before."""
        self._underway.append(_Dispatch(steps=steps, at=now, alone=alone))
        self._grown = min(2 * self._grown, self._deepest)

    def completed(self, now: float) -> None:
        """The oldest dispatch that was out has ended."""
        dispatch = self._underway.popleft()
        began, self._last_end = max(dispatch.at, self._last_end), now
        if not dispatch.alone:
            return
        step = (now - began) / dispatch.steps
        self._step = step if self._step is None else self._step + NEWEST * (step - self._step)

    def _within_target(self) -> int:
        if self._step is None:
            return 1
        if self._step * self._deepest <= self._target:  # a step of no time, too
            return self._deepest
        return max(1, int(self._target / self._step))
