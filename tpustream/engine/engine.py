"""The engine: one thread that takes messages, asks the scheduler and dispatches compiled steps.

It never reads a token. Tokens leave through the token queue and come back only as "this slot ended",
through the same inbox as requests and commands.
"""

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import numpy as np

from tpustream.config import EngineConfig, ModelConfig
from tpustream.core.engine_stats import EngineStats
from tpustream.core.errors import EngineStopped, InvalidRequest
from tpustream.core.prompt_scores import PromptScores
from tpustream.core.request import Command, FinishReason, Request, TokenEvent
from tpustream.engine import admission as admissions
from tpustream.engine.compile import CompiledSteps
from tpustream.engine.depth import DepthPolicy, Load
from tpustream.engine.emitters import TokenQueue
from tpustream.engine.prefilling import Prefiller, WholePrefix
from tpustream.engine.prefix_cache import PrefixCacheStats
from tpustream.engine.routing import Router, Sink
from tpustream.engine.scheduler import Scheduler
from tpustream.engine.scoring import ScoreJob, Scorer
from tpustream.engine.state import DecodeState, Weights, position_bytes, weight_bytes
from tpustream.engine.step_meter import StepBytes, StepMeter
from tpustream.engine.waiting_room import WaitingRoom

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Submitted:
    request: Request
    arrived: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _SlotFinished:
    slot: int
    epoch: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    job: ScoreJob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _DispatchEnded:
    at: float


class _Stop:
    """The last message."""


class Engine:
    """Streams tokens for many requests over `slots` slots.

    `submit` and `cancel` may be called from any thread. Each request's sink gets its events in order,
    the last one with `finish` set, on a thread of the engine: it must return at once.

    Args:
      clock: seconds that never go back, for deadlines.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        config: EngineConfig,
        weights: Weights,
        steps: CompiledSteps,
        tokens: TokenQueue,
        eos_ids: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.model = model
        self.config = config
        self._weights = weights
        self._steps = steps
        self._tokens = tokens
        self._eos_ids = tuple(eos_ids)
        self._clock = clock
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._scheduler = Scheduler(config.slots)
        self._prefiller = Prefiller(config, weights, steps)
        self._scorer = Scorer(config, weights, steps)
        # (slot, epoch) that the device decodes -> steps until max_tokens that are not dispatched yet
        self._decoding: dict[tuple[int, int], int] = {}
        self._depth = DepthPolicy(
            deepest=config.fused_steps, target=config.itl_target_ms / 1e3, held_back=tokens.held_back
        )
        self._disturbed = False  # a request came or was cancelled since the last dispatch
        self._dispatches = 0
        self._room = WaitingRoom(
            slots=config.slots,
            max_waiting=config.max_waiting,
            max_waiting_tokens=config.max_waiting_tokens,
        )
        self._meter = StepMeter(
            slots=config.slots,
            step_bytes=StepBytes(
                weights=weight_bytes(weights), positions=position_bytes(model, config, self._prefiller.dtype)
            ),
            clock=clock,
        )
        self._router = Router(config.slots, self._slot_finished, self._room, self._meter, clock)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopped: str | None = None
        self._closing = threading.Lock()

    @property
    def max_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return self.config.ring_length

    @property
    def vocab_size(self) -> int:
        """V: token ids are 0..V-1."""
        return self.model.vocab_size

    @property
    def embed_dim(self) -> int:
        """D, numbers of a hidden state."""
        return self.model.embed_dim

    @property
    def stopped(self) -> str | None:
        """Why no request is taken any more; None while the engine works."""
        return self._stopped

    @property
    def prefix_cache(self) -> PrefixCacheStats:
        """Counts of the prefix cache, in blocks."""
        return self._prefiller.cache.stats

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return self._scheduler.waiting

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return self._scheduler.running

    def stats(self) -> EngineStats:
        """What to tell whoever watches. From any thread."""
        cache, block = self._prefiller.cache.stats, self._steps.block or 0
        return dataclasses.replace(
            self._meter.stats(self._router.lengths()),
            running=self.running,
            waiting=self.waiting,
            prefix_queries=cache.queries * block,
            prefix_hits=cache.hits * block,
        )

    @property
    def dispatches(self) -> int:
        """Dispatches of decode since the start."""
        return self._dispatches

    def start(self) -> None:
        """Start the threads. Once."""
        self._tokens.start(self._router.deliver, self._fail, self._dispatch_ended)
        self._thread.start()

    def stop(self) -> None:
        """End every stream as cancelled and join the threads. Safe to call twice."""
        self._inbox.put(_Stop())
        if self._thread.is_alive():
            self._thread.join()

    def check_room(self, requests: int) -> None:
        """Raise QueueFull when this many more would be refused now; for a no before their prompts are made.

        A look without a promise: `submit` decides.
        """
        self._room.check(requests)

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request.

        Raises InvalidRequest for one that cannot be honoured, QueueFull when too much waits already,
        EngineStopped after stop or failure.
        """
        admissions.check(request, self.model, self.config, self._eos_ids)
        with self._closing:
            if self._stopped is not None:
                raise EngineStopped(self._stopped)
            if not self._router.open(request, sink):
                raise InvalidRequest(f"id: wanted one that is not in flight, got {request.id!r}", param="id")
        self._inbox.put(_Submitted(request=request, arrived=self._clock()))

    def score(self, prompt: Sequence[int], *, logprobs: int | None = None) -> "Future[PromptScores]":
        """Queue a prompt to be scored between the dispatches of the streams.

        Args:
          logprobs: None for hidden states alone, 0 for the log-probabilities of the prompt's tokens too,
            n for the n most likely in their place besides.

        The future may be cancelled. Raises InvalidRequest for a prompt that cannot be scored, QueueFull
        when too many wait, EngineStopped after stop or failure.
        """
        admissions.check_scored(prompt, logprobs, self.model, self.config)
        with self._closing:
            if self._stopped is not None:
                raise EngineStopped(self._stopped)
            job = self._scorer.open(prompt, -1 if logprobs is None else logprobs)
        self._inbox.put(_Scored(job=job))
        return job.future

    def cancel(self, request_id: str, finish: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request with this reason; its slot is free at the next dispatch. Unknown ids are ignored."""
        self._inbox.put(Command(request_id=request_id, finish=finish))

    def _slot_finished(self, slot: int, epoch: int) -> None:
        self._inbox.put(_SlotFinished(slot=slot, epoch=epoch))

    def _dispatch_ended(self) -> None:
        self._inbox.put(_DispatchEnded(at=self._clock()))

    def _run(self) -> None:
        try:
            state = self._steps.initial_state()
            while self._take_messages():
                state = self._iterate(state)
            self._close("the engine was stopped", TokenEvent(finish=FinishReason.CANCELLED))
        except BaseException as error:
            self._fail(error)
        finally:
            self._tokens.stop()

    def _take_messages(self) -> bool:
        """Handle everything in the inbox, waiting for it where nothing is to be done; False to stop."""
        if self._rows_to_step():
            self._tokens.reserve()  # first: what comes while this waits still counts for the next dispatch
        idle = not (self._rows_to_step() or self._prefiller.busy or self._scorer.busy)
        with contextlib.suppress(queue.Empty):
            while True:
                if not self._handle(self._inbox.get(block=idle)):
                    return False
                idle = False
        return self._stopped is None

    def _handle(self, message) -> bool:
        match message:
            case _Submitted():
                self._disturbed = True
                self._scheduler.add(message.request, message.arrived)
            case Command():
                self._disturbed = True
                if self._router.close(message.request_id, TokenEvent(finish=message.finish)):
                    self._scheduler.remove(message.request_id)
            case _SlotFinished():
                self._decoding.pop((message.slot, message.epoch), None)
                self._scheduler.finished(message.slot, message.epoch)
            case _Scored():
                self._scorer.add(message.job)
            case _DispatchEnded():
                self._depth.completed(message.at)
            case _Stop():
                return False
        return True

    def _iterate(self, state: DecodeState) -> DecodeState:
        """Idle what ended, one call of prefill or one chunk of a score, one dispatch of decode."""
        for expired in self._scheduler.expire(self._clock()):
            event = TokenEvent(finish=FinishReason.EXPIRED, error=expired.message)
            self._router.close(expired.request.id, event)
        plan = self._scheduler.plan()
        for slot, epoch in plan.release:
            if not self._prefiller.drop(slot, epoch):
                self._decoding.pop((slot, epoch), None)
                state = self._steps.release(state, np.int32(slot), np.int32(epoch))
        for placement in plan.admit:
            self._router.place(placement)
            self._prefiller.add(placement)
        scoring = self._scorer.takes_turn(others=self._prefiller.busy)
        prefilling = scoring or self._prefiller.busy
        if scoring:
            self._scorer.advance(alone=not self._rows_to_step())
        elif prefilling:
            for whole in self._prefiller.advance(alone=not self._rows_to_step()):
                state = self._insert(whole, state)
        return self._decode(state, prefilling)

    def _rows_to_step(self) -> bool:
        """Whether some row needs a step that is not dispatched yet."""
        return any(remaining > 0 for remaining in self._decoding.values())

    def _decode(self, state: DecodeState, prefilling: bool) -> DecodeState:
        """One dispatch, unless every row has all its steps on the way."""
        load = Load(
            prefilling=prefilling,
            disturbed=self._disturbed,
            waiting=self._scheduler.waiting > 0,
            slot_free=self._scheduler.running < self.config.slots,
            remaining=self._decoding.values(),
        )
        self._disturbed = False
        count = self._depth.choose(load)
        if count == 0:
            return state
        self._tokens.reserve()
        self._depth.dispatched(count, now=self._clock(), alone=not prefilling)
        self._meter.dispatched(count, after_prefill=prefilling)
        self._dispatches += 1
        state, packed = self._steps.decode(self._weights, state, np.int32(count))
        self._tokens.dispatched(packed, count)
        self._scheduler.decoded(count)
        for row in self._decoding:
            self._decoding[row] -= count
        return state

    def _insert(self, whole: WholePrefix, state: DecodeState) -> DecodeState:
        placement = whole.placement
        self._router.prefilled(placement, cached_tokens=whole.cached_tokens)
        arrays = admissions.admission(placement, self.model, self.config, self._eos_ids)
        self._decoding[placement.slot, placement.epoch] = int(arrays.remaining)
        return self._steps.insert(whole.prefix, whole.first, state, arrays)

    def _fail(self, error: BaseException) -> None:
        _log.error("the engine failed", exc_info=error)  # its requests hear what, the operator where
        message = f"the engine failed: {type(error).__name__}: {error}"
        self._close(message, TokenEvent(finish=FinishReason.ERROR, error=message))
        self._inbox.put(_Stop())

    def _close(self, why: str, event: TokenEvent) -> None:
        """No request enters from now on, and every one inside gets its last event."""
        with self._closing:
            if self._stopped is None:
                self._stopped = why
            self._router.close_all(event)
            self._scorer.close(why)
