"""Stand-ins for programs of others: scripts that say what they are told to, or crash."""

import json
import sys
from pathlib import Path

# Printed by llama.cpp's programs (llama-cpp-python 0.3.36), with fewer fields.
BENCH_OUTPUT = """[
  {
    "cpu_info": "Intel(R) Xeon(R) Processor",
    "n_threads": 2,
    "n_prompt": 512,
    "n_gen": 0,
    "avg_ts": 284.134841,
    "stddev_ts": 17.129631,
    "samples_ns": [ 233557580, 214587008, 213587008 ],
    "samples_ts": [ 274.022, 298.247, 299.643 ]
  }
]
"""
BATCHED_OUTPUT = """{"n_threads": 2, "pp": 16, "tg": 8, "pl": 1, "t_tg": 0.116268, "speed_tg": 68.806549}
{"n_threads": 2, "pp": 16, "tg": 8, "pl": 4, "t_tg": 0.235618, "speed_tg": 135.813049, "t": 0.494219}

"""

FAKE_BENCH = """
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tests = [{"n_prompt": int(flags["-p"]), "n_gen": 0, "samples_ts": [100.0] * int(flags["-r"])}]
print(json.dumps(tests))
"""
FAKE_BATCHED_BENCH = """
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pp, tg, pl = (int(flags[name]) for name in ("-npp", "-ntg", "-npl"))
if pl * (pp + tg) <= int(flags["-c"]):
    print(json.dumps({"pp": pp, "tg": tg, "pl": pl, "speed_tg": 2.0 * pl}))
"""
CRASH = "os.kill(os.getpid(), signal.SIGILL)"


def script(path: Path, body: str) -> Path:
    """An executable file that runs this Python."""
    path.write_text(f"#!{sys.executable}\nimport json, os, signal, sys\nfrom pathlib import Path\n{body}\n")
    path.chmod(0o755)
    return path


def llama_cpp_folder(folder: Path, bench: str = FAKE_BENCH, batched_bench: str = FAKE_BATCHED_BENCH) -> Path:
    """A folder with both programs of llama.cpp."""
    folder.mkdir(parents=True, exist_ok=True)
    script(folder / "llama-bench", bench)
    script(folder / "llama-batched-bench", batched_bench)
    return folder


def said(value: object) -> str:
    """Python that prints this text."""
    return f"sys.stdout.write({json.dumps(value)})"
