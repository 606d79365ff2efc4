"""Thousands of mixed requests against the real engine, and what must be true after them.

    python scripts/soak.py --requests=2000
    python scripts/soak.py --requests=2000 --http
    python scripts/soak.py --http --base_url=http://127.0.0.1:8000 --slots=4 --max_waiting=8

Lengths, sampling, priorities, deadlines and cancellations are drawn from --seed. Nothing may compile
after the start, every request ends exactly once, a sample asked again gives the same tokens, slots and
queue are empty when nobody asks, memory stays flat, and a cancelled request's slot is free within one
dispatch; the queue is kept full, so that it says no again and again. With --http a server process is
started on a free port, or the one at --base_url is used, and clients drop their connections. What a run
cannot see (the memory of a server at --base_url) is said. The last line is one JSON object; the exit
code is 1 when a check failed.
"""

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from tqdm import tqdm

from tpustream.bench.serving.client import Target, run_loop, served_models
from tpustream.bench.soak.checks import Check, failed, memory_growth, table
from tpustream.bench.soak.in_process import Soak
from tpustream.bench.soak.memory import resident_bytes
from tpustream.bench.soak.over_http import HttpSoak
from tpustream.bench.soak.server import ServerProcess, running_server
from tpustream.bench.soak.work import Asked, draw
from tpustream.config import EngineConfig
from tpustream.flags import (
    define_engine_flags,
    define_model_flag,
    engine_config_from_flags,
    run_checked,
    runtime_arguments,
)
from tpustream.runtime import load_runtime
from tpustream.weights.resolve import resolve_model

define_model_flag()
define_engine_flags(
    slots=8, ring_length=256, prefill_chunk=32, max_waiting=16, prefix_cache_mb=16, prefix_cache_host_mb=16
)
_REQUESTS = flags.DEFINE_integer("requests", 2000, "Requests to send.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of lengths, sampling and who leaves.", lower_bound=0)
_PROMPT = flags.DEFINE_integer("longest_prompt", 128, "Tokens of the longest prompt.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("most_tokens", 48, "Tokens of the longest answer.", lower_bound=1)
_SAMPLE = flags.DEFINE_integer("sample", 50, "Streams that are asked again and compared.", lower_bound=0)
_GROWTH = flags.DEFINE_float(
    "memory_growth_mb", 48.0, "MB by which resident memory may grow after the first tenth of the requests."
)
_HTTP = flags.DEFINE_bool("http", False, "Speak to a server over HTTP.")
_BASE_URL = flags.DEFINE_string("base_url", None, "Server to use, without /v1; one is started without.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run has shown: its checks, how many requests ended how, and more figures for JSON."""

    checks: Sequence[Check]
    finishes: dict[str, int]
    figures: dict[str, object]


def main(argv: list[str]) -> int:
    """Soak; 0 when every check held."""
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    if _BASE_URL.value is not None and not _HTTP.value:
        raise ValueError("base_url: wanted --http with it, got it alone")
    config = engine_config_from_flags()
    if _PROMPT.value > config.ring_length:
        raise ValueError(f"longest_prompt: wanted <= {config.ring_length}, the ring, got {_PROMPT.value}")
    work = draw(
        _REQUESTS.value,
        seed=_SEED.value,
        vocabulary=resolve_model(flags.FLAGS.model).config.vocab_size,
        longest_prompt=_PROMPT.value,
        most_tokens=_TOKENS.value,
    )
    began = time.monotonic()
    outcome = soak_http(config, work) if _HTTP.value else soak_engine(config, work)
    seconds = time.monotonic() - began
    counts = ", ".join(f"{count} {end}" for end, count in sorted(outcome.finishes.items()))
    print(f"{len(work)} requests in {seconds:.0f} s: {counts}")
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in outcome.figures.items()))
    print(table(outcome.checks))
    broken = failed(outcome.checks)
    line = {
        "model": flags.FLAGS.model,
        "http": _HTTP.value,
        "requests": len(work),
        "seed": _SEED.value,
        "seconds": round(seconds, 1),
        "engine": dataclasses.asdict(config),
        "finishes": outcome.finishes,
        **outcome.figures,
        "checks": [dataclasses.asdict(check) for check in outcome.checks],
        "passed": not broken,
    }
    print(json.dumps(line))
    return int(broken)


def soak_engine(config: EngineConfig, work: Sequence[Asked]) -> Outcome:
    """The engine in this process."""
    runtime = load_runtime(flags.FLAGS.model, config)
    try:
        soak = Soak(runtime.engine)
        with progress(len(work)) as ended:
            soak.run(work, ended)
        repeated = soak.again(_SAMPLE.value)
        checks = soak.checks(runtime.compile_guard, repeated, growth_mb=_GROWTH.value)
        cache = runtime.engine.prefix_cache
        figures = {
            "refusals": soak.refusals,
            "tokens": sum(len(one.tokens) for one in soak.watched),
            "dispatches": runtime.engine.dispatches,
            "prefix_cache": dataclasses.asdict(cache),
        }
    finally:
        runtime.stop()
    return Outcome(checks=checks, finishes=soak.finishes(), figures=figures)


def soak_http(config: EngineConfig, work: Sequence[Asked]) -> Outcome:
    """A server process, started here or elsewhere."""
    with contextlib.ExitStack() as opened:
        server: ServerProcess | None = None
        if _BASE_URL.value is None:
            server = opened.enter_context(running_server(runtime_arguments()))
        url = _BASE_URL.value if server is None else server.url
        target = Target(base_url=url, endpoint="/v1/completions", headers={}, timeout=60.0)
        model = run_loop(served_models(target))[0]
        soak = HttpSoak(url, model, slots=config.slots, room=config.max_requests)
        with progress(len(work)) as ended:
            memory, repeated, held = asyncio.run(run_http(soak, server, work, ended))
        compilations = None if server is None else server.compilations()
    figures = {
        "refusals": soak.refusals,
        "slowest_refusal_ms": round(1e3 * soak.slowest_refusal, 1),
        "tokens": sum(one.tokens or 0 for one in soak.answers),
    }
    checks = soak.checks(compilations, repeated, held, memory)
    return Outcome(checks=checks, finishes=soak.finishes(), figures=figures)


async def run_http(
    soak: HttpSoak, server: ServerProcess | None, work: Sequence[Asked], ended: Callable[[], object]
) -> tuple[Check, list[str], list[str]]:
    """All requests: (growth of the server's memory, texts that changed, what is still held)."""

    def memory() -> int | None:
        return None if server is None else resident_bytes(server.pid)

    tenth = max(1, len(work) // 10)
    await soak.run(work[:tenth], ended)
    early = memory()
    await soak.run(work[tenth:], ended)
    late = memory()
    return memory_growth(early, late, _GROWTH.value), await soak.again(_SAMPLE.value), await soak.empty()


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[], object]]:
    """A bar on stderr; what it gives is called as each request ends."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(desc="soak", total=total, unit="request", mininterval=interval) as bar:
        yield bar.update


if __name__ == "__main__":
    run_checked(main)
