"""Streams whose connections break in every way, on a server that is killed: does anybody notice?

    python scripts/chaos.py --streams=1000 --kills=3

A server process is started with a stream store. Clients ask for streams, and for answers at once with an
idempotency key; their connections are reset, closed, half closed, read slowly, doubled, and broken before
the first byte. They come back by Last-Event-ID, `?from=` and Idempotency-Key. The server is killed (SIGKILL)
at random moments and started again. Each answer must come out whole, every event once, and equal to the
text that the same request gives undisturbed, or fail with a clear error; in the end all gauges are 0. The
last line is one JSON object; the exit code is 1 when a check failed.
"""

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator

from absl import flags
from tqdm import tqdm

from tpustream.bench.chaos.cases import draw
from tpustream.bench.chaos.run import Chaos
from tpustream.bench.chaos.server import MortalServer
from tpustream.bench.soak.checks import failed, table
from tpustream.flags import define_engine_flags, define_model_flag, run_checked, runtime_arguments

define_model_flag()
define_engine_flags(slots=8, ring_length=256, prefill_chunk=32, max_waiting=128)
_STREAMS = flags.DEFINE_integer("streams", 1000, "Clients, each with one answer.", lower_bound=2)
_AT_ONCE = flags.DEFINE_integer("at_once", 32, "Clients at the same time.", lower_bound=1)
_KILLS = flags.DEFINE_integer("kills", 3, "Times that the server is killed and started again.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of requests, mishaps and kills.", lower_bound=0)
_TOKENS = flags.DEFINE_integer("most_tokens", 48, "Tokens of the longest answer.", lower_bound=1)
_WINDOW = flags.DEFINE_float(
    "window_seconds",
    60.0,
    "That the server waits for a client; longer than it takes to start.",
    lower_bound=1.0,
)
_MOST_LOST = flags.DEFINE_float(
    "most_lost",
    0.0,
    "Share of the streams that may be lost, and said to be.",
    lower_bound=0.0,
    upper_bound=1.0,
)


def main(argv: list[str]) -> int:
    """Run; 0 when every check held."""
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    cases = draw(_STREAMS.value, seed=_SEED.value, most_tokens=_TOKENS.value)
    began = time.monotonic()
    arguments = [f"--resume_window_seconds={_WINDOW.value}", *runtime_arguments()]
    with MortalServer(arguments) as server:
        chaos = Chaos(server, cases, at_once=_AT_ONCE.value, kills=_KILLS.value, seed=_SEED.value)
        differing, held = asyncio.run(run(chaos, len(cases)))
    seconds = time.monotonic() - began
    checks = chaos.checks(differing, held, _MOST_LOST.value)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(chaos.outcomes().items()))
    resumes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(chaos.resumes.items()))
    print(f"{len(cases)} clients in {seconds:.0f} s, {server.kills} kills: {outcomes}")
    print(f"came back for an answer: {resumes}")
    print(table(checks))
    line = {
        "model": flags.FLAGS.model,
        "streams": len(cases),
        "seed": _SEED.value,
        "kills": server.kills,
        "seconds": round(seconds, 1),
        "connections": sum(client.connections for client in chaos.clients),
        "outcomes": chaos.outcomes(),
        "resumes": dict(chaos.resumes),
        "checks": [dataclasses.asdict(check) for check in checks],
        "passed": not failed(checks),
    }
    print(json.dumps(line))
    return int(failed(checks))


async def run(chaos: Chaos, clients: int) -> tuple[list[str], list[str]]:
    """All of it: (texts that differ from the undisturbed ones, gauges that are not 0)."""
    with progress("chaos", clients) as ended:
        await chaos.run(ended)
    with progress("undisturbed", sum(client.witness.done for client in chaos.clients)) as compared:
        differing = await chaos.compare(compared)
    return differing, await chaos.settle(_WINDOW.value)


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], object]]:
    """A bar on stderr; what it gives is called as each client ends."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(desc=title, total=total, unit="client", mininterval=interval) as bar:
        yield bar.update


if __name__ == "__main__":
    run_checked(main)
