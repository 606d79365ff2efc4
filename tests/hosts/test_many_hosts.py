"""Several processes are one server: the tokens of one process, and one end for all.

TPUSTREAM_TEST_HOSTS=4 runs the first test with four processes instead of two.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.hosts.tiny_model import ENGINE, FILES, FLAGS
from tests.tiny import generate, request, tiny_engine

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-u", "-m", "tests.hosts.host")
HOSTS = int(os.environ.get("TPUSTREAM_TEST_HOSTS", "2"))
PATIENCE = 300.0  # for processes that share two cores with other tests
LONG = [*range(3, 40)]
BODIES = [
    {"prompt": LONG, "temperature": 0, "max_tokens": 30},
    {"prompt": LONG, "temperature": 0.8, "seed": 3, "max_tokens": 12},  # its beginning is cached
    {"prompt": [5, 17, 99], "temperature": 1.2, "seed": 7, "top_k": 20, "max_tokens": 12},
]


@contextlib.contextmanager
def group(hosts: int, tmp_path: Path):
    """(processes by index, the leader's URL); what each prints goes to a file."""
    served, mesh = free_port(), f"{hosts // 2},2"
    shared = (f"--hosts={hosts}", f"--coordinator=127.0.0.1:{free_port()}", f"--mesh={mesh}")
    processes = []
    with contextlib.ExitStack() as files:
        for index in range(hosts):
            log = files.enter_context((tmp_path / f"{index}.txt").open("w"))
            processes.append(
                subprocess.Popen(
                    [*COMMAND, *FLAGS, *shared, f"--host_index={index}", f"--port={served}"],
                    cwd=ROOT,
                    env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
                    stdout=log,
                    stderr=log,
                )
            )
        try:
            yield processes, f"http://127.0.0.1:{served}"
        finally:
            for process in processes:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(text: str, index: int, processes: list[subprocess.Popen], tmp_path: Path) -> None:
    """Return when this host has printed the text."""
    while text not in said(tmp_path)[str(index)]:
        assert all(process.poll() is None for process in processes), said(tmp_path)
        time.sleep(0.1)


def said(tmp_path: Path) -> dict[str, str]:
    """What every process printed."""
    return {path.stem: path.read_text() for path in sorted(tmp_path.glob("*.txt"))}


def label(token: int) -> str:
    """A token as log-probabilities show it."""
    try:
        return bytes([token]).decode() if token < 256 else "<eos>"
    except UnicodeDecodeError:
        return f"bytes:\\x{token:02x}"


@pytest.fixture(scope="module")
def alone() -> list[list[str]]:
    """The tokens of every body from one process."""
    engine = tiny_engine(ENGINE, files=FILES)
    tokens = []
    for body in BODIES:
        fields = {name: value for name, value in body.items() if name != "prompt"}
        tokens.append(generate(engine, request(body["prompt"], ignore_eos=True, **fields)))
    engine.stop()
    return [[*map(label, each)] for each in tokens]


def test_the_tokens_of_one_host_and_one_end(tmp_path, alone):
    """Greedy, sampled and from cached blocks; a host that is killed ends a stream and every process."""
    with group(HOSTS, tmp_path) as (processes, url):
        wait_for("curl", 0, processes, tmp_path)
        client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)
        for body, wanted in zip(BODIES, alone, strict=True):
            got = client.post("/v1/completions", json=body | {"ignore_eos": True, "logprobs": 0})
            assert got.json()["choices"][0]["logprobs"]["tokens"] == wanted
        assert "tpustream:prefix_cache_hits_total 32.0" in client.get("/metrics").text
        endless = {"prompt": [1], "max_tokens": 10**6, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=endless) as stream:
            lines = stream.iter_lines()
            next(lines)
            processes[-1].kill()
            end = [line for line in lines if "error" in line]
        assert f"host {HOSTS - 1} of {HOSTS} at 127.0.0.1 was lost" in end[-1]
        codes = [process.wait(PATIENCE) for process in processes[:-1]]
    assert codes == [1] * (HOSTS - 1)
    for index, text in said(tmp_path).items():
        assert int(index) == HOSTS - 1 or f"host {HOSTS - 1} of {HOSTS} at 127.0.0.1 was lost" in text


def test_a_lost_leader(tmp_path):
    """A follower outlives its leader, and with it jax's own service, long enough to say who was lost."""
    with group(2, tmp_path) as (processes, _):
        wait_for("follows host 0", 1, processes, tmp_path)
        processes[0].kill()
        assert processes[1].wait(PATIENCE) == 1
    assert "error: host 0 of 2 at 127.0.0.1 was lost" in said(tmp_path)["1"]
