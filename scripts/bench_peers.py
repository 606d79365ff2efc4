"""The same work done by tpustream, llama.cpp and transformers, in turns, on the same cores and GGUF file.

    python scripts/bench_peers.py --weights=int8
    python scripts/bench_peers.py --peers=llama.cpp --llama_cpp=FOLDER --batches=8 --rounds=5
    python scripts/bench_peers.py --peers=transformers --transformers_python=OTHER/bin/python

Decode goes from --prompt tokens in every stream's cache to --prompt + --generate; prefill is one prompt
of --prefill tokens. `steps` are our compiled steps alone, `engine` the whole engine while all its streams
run. llama.cpp is found (--llama_cpp, PATH, the cache) or built once from its source archive on the
Python package index; transformers runs in this interpreter or another one, and is left out where it is
not installed. The last line is one JSON object with every figure.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from tpustream.bench.bandwidth import read_bandwidth
from tpustream.bench.peers.llama_cpp import LlamaCpp
from tpustream.bench.peers.llama_cpp_build import find_llama_cpp
from tpustream.bench.peers.machine import cpu_name, keep_to_cores
from tpustream.bench.peers.ours import Ours
from tpustream.bench.peers.report import HEADER, engine_share, record, row
from tpustream.bench.peers.transformers_peer import Transformers
from tpustream.bench.peers.turns import DISTURBING, Turns, compare, take_turns
from tpustream.bench.peers.work import Peer, PeerMissing, Workload, plan
from tpustream.config import EngineConfig
from tpustream.core.errors import ModelError
from tpustream.flags import define_engine_flags, define_model_flag, engine_config_from_flags, run_checked
from tpustream.runtime import enable_compile_cache
from tpustream.weights.resolve import ModelFiles, resolve_model

PEERS = ("llama.cpp", "transformers")

define_model_flag()
define_engine_flags(ring_length=1024)
_PEERS = flags.DEFINE_list("peers", list(PEERS), "Compare with these.")
_LLAMA_CPP = flags.DEFINE_string("llama_cpp", None, "Folder with llama-bench and llama-batched-bench.")
_TRANSFORMERS_PYTHON = flags.DEFINE_string(
    "transformers_python", None, "Interpreter that has torch, transformers and gguf; else this one is tried."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "16"], "Streams that decode together; replaces --slots.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens in each cache before decode.", lower_bound=1)
_GENERATE = flags.DEFINE_integer("generate", 128, "Tokens that each stream decodes.", lower_bound=2)
_PREFILL = flags.DEFINE_integer("prefill", 512, "Tokens of the prefilled prompt; 0 for none.", lower_bound=0)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 2, "Cores that every side may use.", lower_bound=1)
_ENGINE = flags.DEFINE_bool("engine", True, "Measure the whole engine beside its compiled steps.")
_COMPILE_CACHE = flags.DEFINE_bool("compile_cache", True, "Read and fill the persistent compile cache.")


def main(argv: list[str]) -> None:
    """Find the peers, then compare. Raises ValueError for what the user can mend."""
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    config = engine_config_from_flags()
    unknown = sorted(set(_PEERS.value) - set(PEERS))
    if unknown or not _PEERS.value:
        raise ValueError(f"peers: wanted some of {', '.join(PEERS)}, got {', '.join(unknown) or 'none'}")
    workloads = plan(
        batches=_BATCHES.value,
        prompt=_PROMPT.value,
        generate=_GENERATE.value,
        prefill=_PREFILL.value,
        ring_length=config.ring_length,
        fused_steps=config.fused_steps,
    )
    keep_to_cores(_THREADS.value)
    files = resolve_model(flags.FLAGS.model)
    if files.format != "gguf":
        raise ModelError(f"{files.name}: wanted a GGUF file, which every peer reads, got {files.format}")
    peers, skipped = _open_peers(files.path)
    with contextlib.ExitStack() as opened:
        for peer in peers:
            opened.enter_context(contextlib.closing(peer))
        _compare(files, config, workloads, peers, skipped)


def _open_peers(model: Path) -> tuple[list[Peer], dict[str, str]]:
    """The peers that this machine has, and why it lacks the others. Raises PeerError."""
    peers: list[Peer] = []
    skipped = {}
    for name in PEERS:
        if name not in _PEERS.value:
            continue
        try:
            if name == "llama.cpp":
                chosen = _LLAMA_CPP.value and Path(_LLAMA_CPP.value)
                programs = find_llama_cpp(chosen, model, threads=_THREADS.value)
                peers.append(LlamaCpp(programs, model, threads=_THREADS.value))
            else:
                chosen = _TRANSFORMERS_PYTHON.value and Path(_TRANSFORMERS_PYTHON.value)
                peers.append(Transformers(model, threads=_THREADS.value, python=chosen))
        except PeerMissing as missing:
            skipped[name] = str(missing)
            print(f"left out: {missing}", flush=True)
    if not peers:
        raise ValueError(f"peers: wanted at least one on this machine, got none: {skipped}")
    return peers, skipped


def _compare(
    files: ModelFiles,
    config: EngineConfig,
    workloads: Sequence[Workload],
    peers: Sequence[Peer],
    skipped: dict[str, str],
) -> None:
    """Measure and print everything."""
    if _COMPILE_CACHE.value:
        enable_compile_cache()
    device = jax.devices()[0]
    bandwidth = read_bandwidth(device)
    print(f"{files.name} on {cpu_name()}, {_THREADS.value} threads; ours on {device.device_kind}")
    print(f"memory bandwidth seen by a float32 matrix-vector product: {bandwidth / 1e9:.1f} GB/s")
    for peer in peers:
        print(f"{peer.name}: {json.dumps(peer.describe())}")
    with contextlib.closing(Ours(files, config)) as ours:
        print(HEADER, flush=True)
        taken = [_take_turns(ours, peers, workload) for workload in workloads]
    comparisons = [comparison for turns in taken for comparison in compare(turns)]
    share = engine_share(comparisons)
    for workload, part in share.items():
        print(f"the engine keeps {part:.0%} of the rate of its steps in {workload}")
    our_cores = max(turns.our_cores for turns in taken)
    other_cores = max((turns.other_cores for turns in taken if turns.other_cores is not None), default=None)
    if our_cores > DISTURBING:
        print(f"WARNING: tpustream used {our_cores:.2f} cores in the turns of its peers")
    if (other_cores or 0.0) > DISTURBING:
        print(f"WARNING: other programs used {other_cores:.2f} cores: compare again on an idle machine")
    line = {
        "model": files.name,
        "processor": cpu_name(),
        "threads": _THREADS.value,
        "platform": device.platform,
        "jax": jax.__version__,
        "bandwidth_bytes_per_second": bandwidth,
        "engine": dataclasses.asdict(config),
        "peers": {peer.name: peer.describe() for peer in peers},
        "skipped": skipped,
        "our_cores_while_peers_worked": our_cores,
        "other_cores_while_ours_worked": other_cores,
        "engine_share_of_steps": share,
        "comparisons": [record(comparison) for comparison in comparisons],
    }
    print(json.dumps(line))


def _take_turns(ours: Ours, peers: Sequence[Peer], workload: Workload) -> Turns:
    """All rounds of one workload; prints its rows."""
    ours.prepare(workload)
    sides = {"steps": ours.steps}
    if _ENGINE.value and workload.kind == "decode":
        sides["engine"] = ours.engine
    turns = take_turns(workload, sides, {peer.name: peer.measure for peer in peers}, rounds=_ROUNDS.value)
    for comparison in compare(turns):
        print(row(comparison), flush=True)
    return turns


if __name__ == "__main__":
    run_checked(main)
