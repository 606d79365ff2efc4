"""scripts/bench_peers.py, as a user runs it; llama.cpp's programs are stand-ins with known rates."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.peers.programs import CRASH, llama_cpp_folder
from tests.text.gguf_files import write_gguf_bpe
from tests.weights.model_specs import random_params, specs_of
from tpustream.config import ModelConfig
from tpustream.weights.export_gguf import save_gguf

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ModelConfig(name="small", num_layers=1, embed_dim=26, ffw_dim=38, num_heads=6, num_kv_heads=2,
                     head_dim=10, vocab_size=47, context_length=64)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model in a GGUF file."""
    folder = tmp_path_factory.mktemp("model")
    vocabulary = write_gguf_bpe(folder / "vocabulary.gguf", ["a", "b"], [], pre=None)
    path = folder / "small.gguf"
    save_gguf(
        path, CONFIG, specs_of(CONFIG), random_params(CONFIG).items(), kind="F32", vocabulary=vocabulary
    )
    return path


def bench(*flags) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_peers.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        timeout=300,
        check=False,
    )


def test_a_whole_run(model, tmp_path):
    """Table and JSON line agree, and every side has every round."""
    flags = "--peers=llama.cpp --batches=3 --prompt=3 --generate=32 --prefill=40 --ring_length=64 --rounds=2"
    flags += " --threads=1 --nocompile_cache --prefill_chunk=16"
    folder = llama_cpp_folder(tmp_path / "llama.cpp")
    done = bench(*flags.split(), f"--model={model}", f"--llama_cpp={folder}")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    lines = record["comparisons"]
    found = [(line["workload"], line["ours"], line["peer_tokens_per_second"]) for line in lines]
    assert found == [
        ("prefill 40", "steps", 100.0),
        ("decode 3", "steps", 6.0),
        ("decode 3", "engine", 6.0),
    ]
    for line in lines:
        assert len(line["rounds"]) == len(line["peer_rounds"]) == 2
        assert line["ratio"] == statistics.median(line["rounds"]) / line["peer_tokens_per_second"]
        assert f"{line['ratio']:.2f}" in done.stdout
    assert record["peers"] == {"llama.cpp": {"programs": str(folder), "build": {"source": "given"}}}
    assert set(record["engine_share_of_steps"]) == {"decode 3"}


def test_a_peer_that_nobody_knows():
    """One line that names the flag, before anything is built or loaded."""
    done = bench("--peers=vllm")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: peers: wanted some of llama.cpp, transformers, got vllm"


def test_programs_that_crash(model, tmp_path):
    """The user learns which program died of what, and gets no traceback."""
    folder = llama_cpp_folder(tmp_path / "llama.cpp", bench=CRASH)
    done = bench("--peers=llama.cpp", "--threads=1", f"--model={model}", f"--llama_cpp={folder}")
    assert done.returncode == 1
    assert "SIGILL" in done.stderr and "Traceback" not in done.stderr


def test_help():
    """--help names the flags of the comparison, and those of the engine."""
    done = bench("--help")
    for flag in ("--peers", "--llama_cpp", "--transformers_python", "--[no]engine", "--weights"):
        assert flag in done.stdout
