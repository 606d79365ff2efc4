"""Whether streams are smooth: HTTP beside the engine, a long prompt beside running streams, first tokens.

    python scripts/bench_smoothness.py --weights=int8

Four figures. The share of the engine's own rate that --streams clients get through HTTP, from a server
process of its own. The gaps (ITL) of --streams running streams while a prompt of --long tokens is
prefilled. The time to first token (TTFT) of a prompt of --short tokens on the idle, warm server; and of
one of --long tokens, cold and with its prefix cached. The last line is one JSON object.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence

from absl import flags

from tpustream.bench.peers.ours import stream_times
from tpustream.bench.serving.bodies import request_body
from tpustream.bench.serving.client import Target, run_load, run_loop, served_models
from tpustream.bench.serving.dataset import SampleRequest
from tpustream.bench.serving.records import RequestRecord
from tpustream.bench.smoothness import fresh_prompt, gaps_between, greedy, rate
from tpustream.bench.soak.server import running_server
from tpustream.config import EngineConfig
from tpustream.core.request import TokenEvent
from tpustream.engine.engine import Engine
from tpustream.flags import define_engine_flags, define_model_flag, engine_config_from_flags, run_command
from tpustream.runtime import load_runtime

define_model_flag()
define_engine_flags(slots=9)
_STREAMS = flags.DEFINE_integer("streams", 8, "Streams that run side by side.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 128, "Tokens of each of them.", lower_bound=16)
_LONG = flags.DEFINE_integer("long", 1024, "Tokens of the long prompt.", lower_bound=2)
_SHORT = flags.DEFINE_integer("short", 32, "Tokens of the short prompt.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each first token; the median counts.")


def main(argv: list[str]) -> None:
    """Measure and print. Raises ValueError for what the user can mend."""
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    config = engine_config_from_flags()
    if config.slots <= _STREAMS.value:
        raise ValueError(f"slots: wanted > --streams ({_STREAMS.value}), got {config.slots}")
    figures = {**of_engine(config), **over_http()}
    figures["http_share"] = round(figures["http_tokens_per_second"] / figures["engine_tokens_per_second"], 3)
    figures["cached_sooner"] = round(figures["ttft_long_cold_ms"] / figures["ttft_long_cached_ms"], 2)
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):>28}: {value}")
    print(json.dumps({"model": flags.FLAGS.model, "engine": dataclasses.asdict(config), **figures}))


def of_engine(config: EngineConfig) -> dict[str, object]:
    """The engine in this process: its rate, and the gaps of running streams beside a long prompt."""
    runtime = load_runtime(flags.FLAGS.model, config)
    engine = runtime.engine
    try:
        for number in range(2):  # the first time warms up
            times = stream_times(engine, running(engine, f"rate{number}", _TOKENS.value))
        steady, prefilling, seconds = beside_a_long_prompt(engine)
    finally:
        runtime.stop()
    return {
        "engine_tokens_per_second": round(rate(times), 1),
        "itl_steady": dataclasses.asdict(steady),
        "itl_while_prefilling": dataclasses.asdict(prefilling),
        "itl_p99_by_p50": round(prefilling.p99_ms / prefilling.p50_ms, 2),
        "prefill_seconds": round(seconds, 3),
    }


def running(engine: Engine, name: str, tokens: int) -> list:
    """Requests for all --streams."""
    prompts = [fresh_prompt(16, hash((name, n)), engine.vocab_size) for n in range(_STREAMS.value)]
    return [greedy(f"{name}-{n}", prompt, tokens) for n, prompt in enumerate(prompts)]


def beside_a_long_prompt(engine: Engine):
    """(gaps before, gaps from the long prompt's arrival to its first token, seconds of that span)."""
    times: list[list[float]] = [[] for _ in range(_STREAMS.value)]
    first: list[float] = []

    def sink_of(into: list[float]):
        def sink(event: TokenEvent) -> None:
            if event.token is not None:
                into.append(time.perf_counter())

        return sink

    requests = running(engine, "beside", 10**6)
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


def over_http() -> dict[str, object]:
    """A server process: its rate for as many streams, and first tokens on it while it idles."""
    names = ["model", *(field.name for field in dataclasses.fields(EngineConfig))]
    given = [flags.FLAGS[name].serialize() for name in names if name in flags.FLAGS]
    with running_server(given) as server:
        target = Target(base_url=server.url, endpoint="/v1/completions", headers={}, timeout=120.0)
        model = run_loop(served_models(target))[0]

        def ask(prompts: Sequence[tuple[int, ...]], tokens: int) -> Sequence[RequestRecord]:
            asked = [
                SampleRequest(index=n, prompt=list(prompt), input_len=len(prompt), output_len=tokens)
                for n, prompt in enumerate(prompts)
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

        for number in range(2):
            prompts = [fresh_prompt(16, 1000 * number + n, 1000) for n in range(_STREAMS.value)]
            streams = ask(prompts, _TOKENS.value)
        short, cold, cached = [], [], []
        for number in range(_REPEATS.value):
            short += ask([fresh_prompt(_SHORT.value, 5000 + number, 1000)], 4)
            long = fresh_prompt(_LONG.value, 6000 + number, 1000)
            cold += ask([long], 4)
            cached += ask([long], 4)
    return {
        "http_tokens_per_second": round(sum(1 / record.tpot for record in streams), 1),
        "ttft_short_ms": _median_ms(short),
        "ttft_short_worst_ms": round(1e3 * max(record.ttft for record in short), 1),
        "ttft_long_cold_ms": _median_ms(cold),
        "ttft_long_cached_ms": _median_ms(cached),
    }


def _median_ms(records: Sequence[RequestRecord]) -> float:
    return round(1e3 * statistics.median(record.ttft for record in records), 1)


def _wait(condition) -> None:
    until = time.monotonic() + 600
    while not condition():
        if time.monotonic() > until:
            raise ValueError("engine: wanted tokens within 600 s, got none")
        time.sleep(0.002)


def checked(argv: list[str]) -> int:
    """One clear line for an error of the user's, no traceback."""
    try:
        main(argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(checked)
