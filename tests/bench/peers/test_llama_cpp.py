"""llama.cpp's programs: what they are asked, what is read from them, and how they fail."""

from pathlib import Path

import pytest

from tests.bench.peers.programs import BATCHED_OUTPUT, BENCH_OUTPUT, CRASH, llama_cpp_folder, said
from tpustream.bench.peers.llama_cpp import LlamaCpp, Programs, decode_rate, prefill_rate, smoke_test
from tpustream.bench.peers.work import PeerError, Workload

DECODE = Workload(kind="decode", streams=4, prompt=16, tokens=8)
PREFILL = Workload(kind="prefill", streams=1, prompt=0, tokens=512)
MODEL = Path("model.gguf")


def peer(folder: Path) -> LlamaCpp:
    return LlamaCpp(Programs(folder=folder, build={"source": "given"}), MODEL, threads=2)


def test_rates_of_recorded_output():
    """Decode is T_TG's rate of the row with this batch; prefill the median sample, not the mean."""
    assert decode_rate(BATCHED_OUTPUT, DECODE) == 135.813049
    assert prefill_rate(BENCH_OUTPUT, 512) == 298.247


@pytest.mark.parametrize(
    ("output", "workload", "got"),
    [
        ("\n", DECODE, "got ''"),  # the cache was too small: llama-batched-bench leaves the row out
        (BATCHED_OUTPUT, Workload(kind="decode", streams=8, prompt=16, tokens=8), "speed_tg"),
        ('{"pp": 16, "tg": 8, "pl": 4}', DECODE, "16"),
        ("error: bad flag", PREFILL, "bad flag"),
        (BENCH_OUTPUT, Workload(kind="prefill", streams=1, prompt=0, tokens=256), "samples_ts"),
    ],
)
def test_output_without_the_work_is_an_error(output, workload, got):
    """Figures of other work are never taken for those of this one."""
    with pytest.raises(PeerError, match=f"wanted one JSON(.|\n)*{got}"):
        if workload.kind == "prefill":
            prefill_rate(output, workload.tokens)
        else:
            decode_rate(output, workload)


def test_programs_get_the_model_the_threads_and_room(tmp_path):
    """Both programs run with the model and threads asked for, decode with a cache for all streams."""
    echo = "Path(__file__ + '.seen').write_text(' '.join(sys.argv[1:]));"
    folder = llama_cpp_folder(
        tmp_path, bench=echo + said(BENCH_OUTPUT), batched_bench=echo + said(BATCHED_OUTPUT)
    )
    assert peer(folder).measure(DECODE) == 135.813049
    assert peer(folder).measure(PREFILL) == 298.247
    decode, prefill = ((folder / f"llama-{name}.seen").read_text() for name in ("batched-bench", "bench"))
    assert decode == (
        "--model model.gguf --threads 2 -npp 16 -ntg 8 -npl 4 -c 96 --output-format jsonl"
    )  # 4 * (16 + 8)
    assert prefill == "--model model.gguf --threads 2 -p 512 -n 0 -r 3 -o json"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (CRASH, "got the signal SIGILL"),
        ("print('loading\\nno such model', file=sys.stderr); sys.exit(3)", "got exit code 3.*no such model"),
    ],
)
def test_a_program_that_fails_says_how(tmp_path, body, reason):
    """A crash names its signal, an exit its code and last words."""
    folder = llama_cpp_folder(tmp_path, batched_bench=body)
    with pytest.raises(PeerError, match=f"(?s)llama-batched-bench: wanted exit code 0, {reason}"):
        peer(folder).measure(DECODE)


def test_a_program_that_does_not_start(tmp_path):
    """A file that is none of this system's programs is an error in words."""
    folder = llama_cpp_folder(tmp_path)
    (folder / "llama-bench").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(PeerError, match="llama-bench: wanted a program that starts, got"):
        peer(folder).measure(PREFILL)


@pytest.mark.parametrize("broken", ["bench", "batched_bench"])
def test_the_smoke_test_runs_both_programs(tmp_path, broken):
    """A build of which either program crashes is found out."""
    sound = Programs(folder=llama_cpp_folder(tmp_path / "sound"), build={})
    smoke_test(sound, MODEL, threads=2)
    crashing = Programs(folder=llama_cpp_folder(tmp_path / "crashing", **{broken: CRASH}), build={})
    with pytest.raises(PeerError, match="SIGILL"):
        smoke_test(crashing, MODEL, threads=2)
