"""What Prometheus reads: counters and histograms of requests, and a look at the engine when it asks.

Names are vLLM's where vLLM has one, with the prefix `tpustream:`. The registry is our own, so two
servers in a process do not mix, and nothing of the client library's own process metrics is promised.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tpustream.core.engine_stats import EngineStats
from tpustream.core.request import GOOD_ENDS, FinishReason
from tpustream.serve.exchange import Exchange
from tpustream.serve.observe.gaps import Cause, GapWatch, Phase

PREFIX = "tpustream:"
LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)  # seconds
TOKEN_GAP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
REJECTIONS = (
    "context_length_exceeded",
    "engine_stopped",
    "invalid_api_key",
    "load_failed",
    "loading",
    "queue_full",
    "rate_limit_exceeded",
    "request_too_large",
    "shutting_down",
)
KEPT_STATES = ("dormant", "running", "ended")
RESUMED = ("live", "replayed", "regenerated", "mismatch", "expired")


class PauseReason(enum.StrEnum):
    """Why the streams of an answer were paused."""

    SLOW_READER = "slow_reader"
    CREDITS = "credits"


class WatchedEngine(Protocol):
    """What is asked of an engine."""

    def stats(self) -> EngineStats: ...


class CompileCount(Protocol):
    """Counts compilations since the start; `engine.compile_guard.CompileGuard` is one."""

    count: int


class WatchedRuntime(Protocol):
    """What is asked of a loaded model."""

    engine: WatchedEngine
    compile_guard: CompileCount


class WatchedShelf(Protocol):
    """What is asked of the answers that are kept."""

    bytes: int

    def states(self) -> Mapping[str, int]: ...


class Metrics:
    """All metrics of one server. Counted on the event loop.

    Args:
      gap_threshold: seconds between two tokens from which on the gap is counted with its cause.
      memory_bandwidth: bytes a second that the memory of all devices gives together, for the share of
        the roofline that steps reach; None where it is not known.
    """

    def __init__(self, *, gap_threshold: float, memory_bandwidth: float | None = None):
        self.registry = CollectorRegistry()
        self._gap_threshold = gap_threshold
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", LATENCY
        )
        self._token_gap = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a stream, as they go out.", TOKEN_GAP
        )
        self._whole = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to the end of a choice.", LATENCY
        )
        self._queued = self._histogram(
            "request_queue_time_seconds", "From arrival in the engine to a slot.", LATENCY
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were let in.")
        self._tokens = self._counter("generation_tokens", "Tokens generated.")
        self._finished = self._counter("request_success", "Choices that ended well.", "finished_reason")
        self._unfinished = self._counter("request_failure", "Choices that did not.", "reason")
        self._rejected = self._counter("admission_rejections", "Requests refused at the door.", "reason")
        self._pauses = self._counter("stream_pauses", "Times that an answer was paused.", "reason")
        self._gaps = self._counter(
            "token_gaps", "Waits for a token over the threshold, by what held it up.", "phase", "cause"
        )
        self._resumes = self._counter(
            "stream_resumes", "Clients that came back for an answer, by what they found.", "outcome"
        )
        # Series that are there from the start: a rate over one that appears with its first event misses it.
        for finish in FinishReason:
            (self._finished if finish in GOOD_ENDS else self._unfinished).labels(finish)
        for reason in REJECTIONS:
            self._rejected.labels(reason)
        for reason in PauseReason:
            self._pauses.labels(reason)
        for outcome in RESUMED:
            self._resumes.labels(outcome)
        for cause in Cause:
            self._gaps.labels(Phase.NEXT, cause)
        if memory_bandwidth is not None:
            name = f"{PREFIX}memory_bandwidth_bytes_per_second"
            Gauge(name, "Of all devices together, as the flag says.", registry=self.registry).set(
                memory_bandwidth
            )

    def attach(self, runtime: WatchedRuntime) -> None:
        """The model is loaded: from now on the engine is looked at too."""
        self.registry.register(_RuntimeCollector(runtime))

    def render(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self.registry)

    def entered(self, prompt_tokens: int) -> None:
        """A request was let in."""
        self._prompt_tokens.inc(prompt_tokens)

    def watch(self) -> GapWatch:
        """For a new stream: finds what held up its tokens."""
        return GapWatch(self._gap_threshold)

    def first_token(self, seconds: float, queued: float | None) -> None:
        """A request has its first token after so long, of which it was queued so long."""
        self._first_token.observe(seconds)
        if queued is not None:
            self._queued.observe(queued)

    def token(self, gap: float | None, held_up: tuple[Phase, Cause] | None) -> None:
        """A token came, `gap` seconds after the one before; None for the first of a stream."""
        self._tokens.inc()
        if gap is not None:
            self._token_gap.observe(gap)
        if held_up is not None:
            self._gaps.labels(*held_up).inc()

    def paused(self, reason: PauseReason) -> None:
        """The streams of an answer were paused."""
        self._pauses.labels(reason).inc()

    def finished(self, finish: FinishReason, seconds: float) -> None:
        """A choice ended, so long after its request came."""
        if finish in GOOD_ENDS:
            self._finished.labels(finish).inc()
            self._whole.observe(seconds)
        else:
            self._unfinished.labels(finish).inc()

    def resumed(self, outcome: str) -> None:
        """A client has come back for an answer that is kept, and found one of RESUMED."""
        self._resumes.labels(outcome).inc()

    def watch_kept(self, shelf: WatchedShelf) -> None:
        """From now on the answers that are kept are looked at too."""
        self.registry.register(_ShelfCollector(shelf))

    def exchange_ended(self, exchange: Exchange) -> None:
        """A request that asked for work is over."""
        if exchange.error in REJECTIONS and exchange.status >= 400:
            self._rejected.labels(exchange.error).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, buckets=buckets, registry=self.registry)


class _ShelfCollector(Collector):
    """Looks at what is kept whenever somebody asks."""

    def __init__(self, shelf: WatchedShelf):
        self._shelf = shelf

    def collect(self) -> Iterator[Metric]:
        states = self._shelf.states()
        answers = GaugeMetricFamily(
            PREFIX + "kept_answers", "Answers kept for clients that come back.", labels=("state",)
        )
        for state in KEPT_STATES:
            answers.add_metric((state,), states.get(state, 0))
        yield answers
        yield GaugeMetricFamily(PREFIX + "kept_bytes", "Memory that they take.", value=self._shelf.bytes)


class _RuntimeCollector(Collector):
    """Looks at the engine whenever somebody asks."""

    def __init__(self, runtime: WatchedRuntime):
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        stats = self._runtime.engine.stats()
        for name, text, value in (
            ("num_requests_running", "Choices in a slot.", stats.running),
            ("num_requests_waiting", "Choices that wait for a slot.", stats.waiting),
            ("num_requests_paused", "Choices that are paused.", stats.paused),
            ("kv_cache_usage_perc", "Part of the cache that holds tokens, 0 to 1.", stats.cache_usage),
            ("batch_occupancy", "Part of the slots that are taken, 0 to 1.", stats.running / stats.slots),
            ("slots", "Streams that may decode together.", stats.slots),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        for name, text, value in (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits),
            ("decode_steps", "Decode steps.", stats.decode_steps),
            ("decode_rows", "Tokens of all steps: by steps and slots, the occupancy.", stats.decode_rows),
            ("decode_timed_bytes", "What timed steps had to read at least.", stats.timed_bytes),
            ("decode_timed_seconds", "Time of steps without prefill between.", stats.timed_seconds),
            ("compilations", "Compilations after the start.", self._runtime.compile_guard.count),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value=value)
