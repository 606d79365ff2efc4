"""llama.cpp as a peer: its own benchmark programs, run once a measurement, and what they print.

Decode is `llama-batched-bench` (T_TG of its table), prefill is `llama-bench`. Neither chooses tokens:
they feed random ones. Both load the model anew each time, before their clocks start, and warm up.
Cache types, batch sizes and flash attention are as llama.cpp chooses them.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpustream.bench.peers.programs import run_program
from tpustream.bench.peers.work import PeerError, Workload

BENCH, BATCHED_BENCH = "llama-bench", "llama-batched-bench"
PROGRAMS = (BENCH, BATCHED_BENCH)
SECONDS = 1800.0  # after which a program hangs
REPEATS = 3  # prefills of one measurement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """llama.cpp's benchmark programs.

    Attributes:
      folder: where both lie.
      build: how they were built, as far as is known.
    """

    folder: Path
    build: Mapping[str, str]

    def path(self, name: str) -> str:
        """The program's file."""
        return str(self.folder / name)


class LlamaCpp:
    """llama.cpp on one GGUF file; see `work.Peer`."""

    name = "llama.cpp"

    def __init__(self, programs: Programs, model: Path, *, threads: int):
        self._programs = programs
        self._model = model
        self._threads = threads

    def measure(self, workload: Workload) -> float:
        """Tokens a second. Raises PeerError, with the signal that ended a program that crashed."""
        if workload.kind == "prefill":
            return prefill_rate(self._run(BENCH, *prefill_flags(workload.tokens, REPEATS)), workload.tokens)
        return decode_rate(self._run(BATCHED_BENCH, *decode_flags(workload)), workload)

    def describe(self) -> dict[str, object]:
        """The programs, and how they were built."""
        return {"programs": str(self._programs.folder), "build": dict(self._programs.build)}

    def close(self) -> None:
        """Nothing runs between measurements."""

    def _run(self, program: str, *flags: str) -> str:
        common = ("--model", str(self._model), "--threads", str(self._threads))
        return run_program([self._programs.path(program), *common, *flags], timeout=SECONDS)


def smoke_test(programs: Programs, model: Path, *, threads: int) -> None:
    """A little of both kinds of work: a build for another processor crashes here. Raises PeerError."""
    peer = LlamaCpp(programs, model, threads=threads)
    peer._run(BENCH, *prefill_flags(32, 1))
    for streams in (1, 8):
        peer.measure(Workload(kind="decode", streams=streams, prompt=32, tokens=2))


def prefill_flags(tokens: int, repeats: int) -> tuple[str, ...]:
    """Flags of llama-bench for prompts of this length."""
    return ("-p", str(tokens), "-n", "0", "-r", str(repeats), "-o", "json")


def decode_flags(workload: Workload) -> tuple[str, ...]:
    """Flags of llama-batched-bench, with as much cache as the streams fill."""
    prompt, tokens, streams = workload.prompt, workload.tokens, workload.streams
    sizes = {"-npp": prompt, "-ntg": tokens, "-npl": streams, "-c": streams * (prompt + tokens)}
    return (*(str(word) for pair in sizes.items() for word in pair), "--output-format", "jsonl")


def prefill_rate(output: str, tokens: int) -> float:
    """Median tokens a second of llama-bench's JSON. Raises PeerError where that work is not in it."""
    try:
        (test,) = (test for test in json.loads(output) if (test["n_prompt"], test["n_gen"]) == (tokens, 0))
        return float(statistics.median(test["samples_ts"]))
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(BENCH, f"one JSON test of {tokens} prompt tokens", output) from error


def decode_rate(output: str, workload: Workload) -> float:
    """Tokens a second of the row of llama-batched-bench's JSON lines that is this work.

    The program leaves out a row, and says nothing, where the cache is too small for it: PeerError.
    """
    wanted = (workload.prompt, workload.tokens, workload.streams)
    try:
        rows: list[dict[str, Any]] = [
            json.loads(line) for line in output.splitlines() if line.startswith("{")
        ]
        (row,) = (row for row in rows if (row["pp"], row["tg"], row["pl"]) == wanted)
        return float(row["speed_tg"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(BATCHED_BENCH, f"one JSON line with pp, tg, pl = {wanted}", output) from error


def _unreadable(program: str, wanted: str, output: str) -> PeerError:
    return PeerError(f"{program}: wanted {wanted}, got {output.strip()[-300:]!r}")
