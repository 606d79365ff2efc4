"""Turns, ratios, targets, and the lines that show them; peers are functions with known rates."""

import dataclasses
import os

import pytest

from tpustream.bench.peers import turns as turns_module
from tpustream.bench.peers.machine import busy_seconds, cpu_name, keep_to_cores
from tpustream.bench.peers.report import engine_share, record, row
from tpustream.bench.peers.turns import compare, take_turns
from tpustream.bench.peers.work import Workload

EIGHT = Workload(kind="decode", streams=8, prompt=16, tokens=8)
RATES = {"steps": [90.0, 80.0, 40.0], "engine": [40.0, 60.0, 30.0], "llama.cpp": [20.0, 50.0, 40.0],
         "transformers": [1.0, 2.0, 3.0]}  # fmt: skip


def sides(calls, *names):
    """Measures that take the rates of RATES one by one, and note who worked."""

    def measure_of(name):
        rates = iter(RATES[name])

        def measure(workload):
            assert workload is EIGHT
            calls.append(name)
            return next(rates)

        return measure

    return {name: measure_of(name) for name in names}


@pytest.fixture
def calls():
    return []


@pytest.fixture
def turns(calls):
    """On a machine that nobody else uses."""
    ours, peers = sides(calls, "steps", "engine"), sides(calls, "llama.cpp", "transformers")
    taken = take_turns(EIGHT, ours, peers, rounds=3)
    return dataclasses.replace(taken, our_cores=0.01, other_cores=0.02)


def test_sides_take_turns(turns, calls):
    """Each round goes through all sides once, so that a drift of the machine meets all of them."""
    assert calls == ["steps", "engine", "llama.cpp", "transformers"] * 3
    assert {**turns.ours, **turns.peers} == RATES


def test_ratios_are_of_medians(turns):
    """The ratio takes the medians; the spread takes the rounds, in which the machine was the same."""
    first = compare(turns)[0]
    assert (first.ours, first.peer) == ("steps", "llama.cpp")
    assert first.ratio == 80 / 40
    assert (first.lowest, first.highest) == (1.0, 4.5)
    assert (first.target, first.met) == (2.0, True)


def test_targets_are_those_of_the_peer_and_the_workload(turns):
    """Not every line has a target; a ratio below it is not met."""
    found = {(line.ours, line.peer): (line.target, line.met) for line in compare(turns)}
    assert found == {
        ("steps", "llama.cpp"): (2.0, True),
        ("engine", "llama.cpp"): (2.0, False),
        ("steps", "transformers"): (None, None),
        ("engine", "transformers"): (None, None),
    }
    names = {name for _, name in turns_module.TARGETS}
    assert names == {"decode 1", "decode 8", "decode 16", "prefill 512"}
    assert EIGHT.name in names
    assert Workload(kind="prefill", streams=1, prompt=0, tokens=512).name in names


def test_lines_and_records(turns):
    """The table shows medians and whether a target is met; the record keeps every round."""
    lines = compare(turns)
    shown = " ".join(row(lines[0]).split())
    assert shown == "llama.cpp decode 8 steps 80.0 40.0 2.00 1.00..4.50 2.0 met"
    assert row(lines[1]).endswith("2.0  not met")
    assert row(lines[2]).endswith("40.00  13.33..90.00")
    saved = record(lines[1])
    assert (saved["rounds"], saved["peer_rounds"]) == (RATES["engine"], RATES["llama.cpp"])
    assert (saved["ratio"], saved["target"], saved["met"]) == (1.0, 2.0, False)
    assert engine_share(lines) == {"decode 8": 40 / 80}


@pytest.mark.parametrize("whose", ["our_cores", "other_cores"])
def test_a_disturbed_ratio_meets_no_target(turns, whose):
    """Where the machine was shared the ratio is shown, but nothing is claimed of it."""
    line = compare(dataclasses.replace(turns, **{whose: 0.2}))[0]
    assert (line.ratio, line.met) == (2.0, None)
    assert row(line).endswith("2.0  disturbed")
    assert record(line)["disturbed"]
    unknown = compare(dataclasses.replace(turns, other_cores=None))[0]
    assert unknown.met


def test_who_else_used_the_processor(monkeypatch):
    """Cores of this process count while peers work, cores of others while ours do."""
    now = {"wall": 0.0, "process": 0.0, "machine": 100.0}

    def spend(**seconds):
        def measure(_):
            for clock, passed in seconds.items():
                now[clock] += passed
            return 1.0

        return measure

    monkeypatch.setattr(turns_module.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(turns_module.time, "process_time", lambda: now["process"])
    monkeypatch.setattr(turns_module, "busy_seconds", lambda: now["machine"])
    ours = {"steps": spend(wall=2.0, process=3.0, machine=4.0)}
    peers = {"llama.cpp": spend(wall=4.0, process=1.0, machine=8.0)}
    turns = take_turns(EIGHT, ours, peers, rounds=2)
    assert (turns.our_cores, turns.other_cores) == (0.25, 0.5)
    now["machine"] = None
    ours = {"steps": spend(wall=2.0)}
    assert take_turns(EIGHT, ours, {"llama.cpp": spend(wall=1.0)}, rounds=1).other_cores is None


def test_the_machine(tmp_path):
    """The processor's name and its times are read as Linux writes them."""
    info, stat = tmp_path / "cpuinfo", tmp_path / "stat"
    info.write_text("processor\t: 0\nmodel name\t: Fast(R) 9\n\nprocessor\t: 1\nmodel name\t: Fast(R) 9\n")
    assert cpu_name(info) == "Fast(R) 9"
    assert cpu_name(tmp_path / "absent") != ""
    stat.write_text("cpu  100 200 300 9999 9999 400 500 600 100 0\ncpu0 1 2 3\n")
    assert busy_seconds(stat) == 2100 / os.sysconf("SC_CLK_TCK")
    assert busy_seconds(tmp_path / "absent") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot use fewer cores")
def test_cores(monkeypatch):
    """The first cores are kept; more than there are is an error."""
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 3, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: kept.append(cores))
    keep_to_cores(2)
    assert kept == [[3, 4]]
    with pytest.raises(ValueError, match=r"threads: wanted 1 to 3, .* got 4"):
        keep_to_cores(4)
