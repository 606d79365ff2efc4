"""Every change of a slot between two dispatches, on the device and in the host's books alike.

A prompt enters a slot, its stream is paused, resumed or sampled anew, and leaves. The books say how many
steps each row still needs, so that nothing is dispatched for rows that need none. Knows nothing of
requests, ids and who waits.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tpustream.config import EngineConfig, ModelConfig
from tpustream.core.plan import Placement
from tpustream.core.request import SamplingParams
from tpustream.engine import admission as admissions
from tpustream.engine.compile import CompiledSteps
from tpustream.engine.prefilling import WholePrefix
from tpustream.engine.state import DecodeState


@dataclasses.dataclass(kw_only=True, slots=True)
class _Row:
    limit: int  # tokens that the stream may get in all
    dispatched: int = 0  # steps of it that have gone out
    paused: bool = False

    @property
    def remaining(self) -> int:
        return self.limit - self.dispatched


class Slots:
    """The rows that the device decodes, by slot and epoch.

    Everything is done at once in the order of the calls: what was dispatched before is not touched.
    """

    def __init__(
        self, model: ModelConfig, config: EngineConfig, steps: CompiledSteps, eos_ids: Sequence[int]
    ):
        self._model, self._config, self._eos_ids = model, config, eos_ids
        self._steps = steps
        self._rows: dict[tuple[int, int], _Row] = {}

    @property
    def remaining(self) -> list[int]:
        """Of each row that is not paused, the steps until max_tokens that are not dispatched yet."""
        return [row.remaining for row in self._rows.values() if not row.paused]

    @property
    def need_step(self) -> bool:
        """Whether some row needs a step that is not dispatched yet."""
        return any(remaining > 0 for remaining in self.remaining)

    def dispatched(self, steps: int) -> None:
        """So many steps went out for all rows that are not paused."""
        for row in self._rows.values():
            if not row.paused:
                row.dispatched += steps

    def insert(
        self, whole: WholePrefix, sampling: SamplingParams, *, paused: bool, state: DecodeState
    ) -> DecodeState:
        """A prompt enters its slot, to be sampled so, and is decoded unless it is paused."""
        request = dataclasses.replace(whole.placement.request, sampling=sampling)
        placement = dataclasses.replace(whole.placement, request=request)
        arrays = admissions.admission(placement, self._model, self._config, self._eos_ids)
        self._rows[placement.slot, placement.epoch] = _Row(limit=int(arrays.remaining))
        state = self._steps.insert(whole.prefix, whole.first, state, arrays)
        return self.set_paused(placement, paused, state)

    def release(self, slot: int, epoch: int, state: DecodeState) -> DecodeState:
        """The device decodes this occupant no longer."""
        self.ended(slot, epoch)
        return self._steps.set_active(state, np.int32(slot), np.int32(epoch), np.int32(0))

    def ended(self, slot: int, epoch: int) -> None:
        """The device has ended this occupant by itself."""
        self._rows.pop((slot, epoch), None)

    def set_paused(self, placement: Placement, paused: bool, state: DecodeState) -> DecodeState:
        """No more steps for this row, or on where it stopped; nothing where it is not in the books."""
        row = self._rows.get((placement.slot, placement.epoch))
        if row is None or row.paused == paused:
            return state
        row.paused = paused
        slot, epoch, active = map(np.int32, (placement.slot, placement.epoch, not paused))
        return self._steps.set_active(state, slot, epoch, active)

    def retune(self, placement: Placement, sampling: SamplingParams, state: DecodeState) -> DecodeState:
        """Other parameters for the row. One that has as many tokens as it may have gets one more."""
        row = self._rows.get((placement.slot, placement.epoch))
        if row is None or row.remaining <= 0:  # its last step is on the way
            return state
        row.limit = max(admissions.limit(sampling), row.dispatched + 1)
        slot, epoch, remaining = map(np.int32, (placement.slot, placement.epoch, row.remaining))
        arrays = admissions.slot_sampling(sampling, self._model, self._config, self._eos_ids)
        return self._steps.retune(state, slot, epoch, remaining, arrays)
