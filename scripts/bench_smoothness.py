"""Whether streams are smooth: HTTP beside the engine, a long prompt beside running streams, first tokens.

    python scripts/bench_smoothness.py --weights=int8

Five figures. The share of the engine's own rate that --streams clients get through HTTP, from a server
process of its own; p99 of the gaps between their chunks (SSE) beside p99 of those between the engine's
own tokens. The gaps (ITL) of --streams running streams while a prompt of --long tokens is
prefilled. The time to first token (TTFT) of a prompt of --short tokens on the idle, warm server; and of
one of --long tokens, cold and with its prefix cached. The last line is one JSON object.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence

from absl import flags

from tpustream.bench.peers.ours import stream_times
from tpustream.bench.serving.bodies import request_body
from tpustream.bench.serving.client import Target, run_load, run_loop, served_models
from tpustream.bench.serving.dataset import SampleRequest
from tpustream.bench.serving.records import RequestRecord
from tpustream.bench.smoothness import (
    Gaps,
    fresh_prompt,
    gaps_between,
    gaps_of,
    greedy,
    rate,
    smoothest,
)
from tpustream.bench.soak.server import running_server
from tpustream.core.request import Request, TokenEvent
from tpustream.engine.engine import Engine
from tpustream.engine.routing import Sink
from tpustream.flags import (
    define_engine_flags,
    define_model_flag,
    engine_config_from_flags,
    run_checked,
    runtime_arguments,
)
from tpustream.runtime import load_runtime

define_model_flag()
define_engine_flags(slots=9)
_STREAMS = flags.DEFINE_integer("streams", 8, "Streams that run side by side.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 128, "Tokens of each of them.", lower_bound=16)
_LONG = flags.DEFINE_integer("long", 1024, "Tokens of the long prompt.", lower_bound=2)
_SHORT = flags.DEFINE_integer("short", 32, "Tokens of the short prompt.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "Measurements of each rate and its gaps; the best counts.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Measurements of each first token; the median counts.", lower_bound=1
)


def main(argv: list[str]) -> None:
    """Measure and print. Raises ValueError for what the user can mend."""
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    config = engine_config_from_flags()
    if config.slots <= _STREAMS.value:
        raise ValueError(f"slots: wanted > --streams ({_STREAMS.value}), got {config.slots}")
    runtime = load_runtime(flags.FLAGS.model, config)
    try:
        figures = measure(runtime.engine)
    finally:
        runtime.stop()
    figures["http_share"] = round(figures["http_tokens_per_second"] / figures["engine_tokens_per_second"], 3)
    figures["itl_p99_sse_by_engine"] = round(
        figures["itl_sse"]["p99_ms"] / figures["itl_engine"]["p99_ms"], 2
    )
    figures["cached_sooner"] = round(figures["ttft_long_cold_ms"] / figures["ttft_long_cached_ms"], 2)
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):>28}: {value}")
    print(json.dumps({"model": flags.FLAGS.model, "engine": dataclasses.asdict(config), **figures}))


def running(engine: Engine, number: int, tokens: int) -> list[Request]:
    """Requests for all --streams; another number has other prompts."""
    first = number * _STREAMS.value
    prompts = [fresh_prompt(16, first + n, engine.vocab_size) for n in range(_STREAMS.value)]
    return [greedy(f"{number}-{n}", prompt, tokens) for n, prompt in enumerate(prompts)]


def beside_a_long_prompt(engine: Engine) -> tuple[Gaps, Gaps, float]:
    """(gaps before, gaps from the long prompt's arrival to its first token, seconds of that span)."""
    times: list[list[float]] = [[] for _ in range(_STREAMS.value)]
    first: list[float] = []

    def sink_of(into: list[float]) -> Sink:
        def sink(event: TokenEvent) -> None:
            if event.token is not None:
                into.append(time.perf_counter())

        return sink

    requests = running(engine, _ROUNDS.value, 10**6)
    for request, into in zip(requests, times, strict=True):
        engine.submit(request, sink_of(into))
    _wait(lambda: min(map(len, times)) >= _TOKENS.value)
    arrival = time.perf_counter()
    long = fresh_prompt(_LONG.value, 1, engine.vocab_size)
    engine.submit(greedy("long", long, 1), sink_of(first))
    _wait(lambda: bool(first))
    for request in requests:
        engine.cancel(request.id)
    half = times[0][_TOKENS.value // 2]
    steady, prefilling = gaps_between(times, half, arrival), gaps_between(times, arrival, first[0])
    return steady, prefilling, first[0] - arrival


def measure(engine: Engine) -> dict[str, object]:
    """All figures, of the engine in this process and of a server process, which take turns."""
    with running_server(runtime_arguments()) as server:
        target = Target(base_url=server.url, endpoint="/v1/completions", headers={}, timeout=120.0)
        model = run_loop(served_models(target))[0]

        def ask(requests: Sequence[Request]) -> Sequence[RequestRecord]:
            return answers(target, model, requests)

        ours, theirs = [], []
        our_gaps, their_gaps = [], []
        for number in range(_ROUNDS.value):
            requests = running(engine, number, _TOKENS.value)
            times = stream_times(engine, requests)
            ours.append(rate(times))
            our_gaps.append(gaps_of(times))
            records = ask(requests)
            theirs.append(sum(1 / record.tpot for record in records))
            their_gaps.append(gaps_of([record.text_times for record in records]))
        vocabulary = engine.vocab_size
        short, cold, cached = [], [], []
        for number in range(_REPEATS.value):
            short += ask([greedy("short", fresh_prompt(_SHORT.value, 5000 + number, vocabulary), 4)])
            long = [greedy("long", fresh_prompt(_LONG.value, 6000 + number, vocabulary), 4)]
            cold += ask(long)
            cached += ask(long)
    steady, prefilling, seconds = beside_a_long_prompt(engine)
    return {
        "engine_tokens_per_second": round(max(ours), 1),
        "http_tokens_per_second": round(max(theirs), 1),
        "itl_engine": dataclasses.asdict(smoothest(our_gaps)),
        "itl_sse": dataclasses.asdict(smoothest(their_gaps)),
        "itl_steady": dataclasses.asdict(steady),
        "itl_while_prefilling": dataclasses.asdict(prefilling),
        "itl_p99_by_p50": round(prefilling.p99_ms / prefilling.p50_ms, 2),
        "prefill_seconds": round(seconds, 3),
        "ttft_short_ms": _median_ms(short),
        "ttft_short_worst_ms": round(1e3 * max(record.ttft for record in short), 1),
        "ttft_long_cold_ms": _median_ms(cold),
        "ttft_long_cached_ms": _median_ms(cached),
    }


def answers(target: Target, model: str, requests: Sequence[Request]) -> Sequence[RequestRecord]:
    """The same requests over HTTP, all at once. Raises ValueError when one fails."""
    asked = [
        SampleRequest(
            index=index, prompt=one.prompt, input_len=len(one.prompt), output_len=one.sampling.max_tokens
        )
        for index, one in enumerate(requests)
    ]
    bodies = [
        request_body(one, model=model, chat=False, temperature=0.0, ignore_eos=True, extra={})
        for one in asked
    ]
    records = run_loop(run_load(target, asked, bodies, [0.0] * len(asked))).records
    for record in records:
        if record.error is not None:
            raise ValueError(f"server: wanted an answer, got {record.error}")
    return records


def _median_ms(records: Sequence[RequestRecord]) -> float:
    return round(1e3 * statistics.median(record.ttft for record in records), 1)


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 600
    while not condition():
        if time.monotonic() > until:
            raise ValueError("engine: wanted tokens within 600 s, got none")
        time.sleep(0.002)


if __name__ == "__main__":
    run_checked(main)
