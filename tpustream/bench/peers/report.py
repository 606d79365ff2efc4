"""What a comparison says: a table for people, and a record for programs."""

import statistics
from collections.abc import Sequence
from typing import Any

from tpustream.bench.peers.turns import Comparison

_ROW = "{:<13} {:<12} {:<7} {:>10} {:>10} {:>7} {:>13} {:>7}  {}"
HEADER = _ROW.format("peer", "workload", "ours", "tok/s", "peer tok/s", "ratio", "in a round", "target", "")


def row(comparison: Comparison) -> str:
    """One line of the table; medians, and the ratios of the worst and best round."""
    target = "" if comparison.target is None else f"{comparison.target:.1f}"
    verdict = {None: "", True: "met", False: "not met"}[comparison.met]
    return _ROW.format(
        comparison.peer,
        comparison.workload.name,
        comparison.ours,
        f"{statistics.median(comparison.ours_rates):.1f}",
        f"{statistics.median(comparison.peer_rates):.1f}",
        f"{comparison.ratio:.2f}",
        f"{comparison.lowest:.2f}..{comparison.highest:.2f}",
        target,
        "disturbed" if comparison.disturbed else verdict,
    ).rstrip()


def engine_share(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Decode workload -> the part of the steps' rate that the engine keeps."""
    medians = {
        (comparison.workload.name, comparison.ours): statistics.median(comparison.ours_rates)
        for comparison in comparisons
    }
    return {
        workload: rate / medians[workload, "steps"]
        for (workload, side), rate in medians.items()
        if side == "engine"
    }


def record(comparison: Comparison) -> dict[str, Any]:
    """The figures of one line, every round among them."""
    workload = comparison.workload
    return {
        "peer": comparison.peer,
        "workload": workload.name,
        "streams": workload.streams,
        "prompt": workload.prompt,
        "tokens": workload.tokens,
        "ours": comparison.ours,
        "tokens_per_second": statistics.median(comparison.ours_rates),
        "peer_tokens_per_second": statistics.median(comparison.peer_rates),
        "rounds": list(comparison.ours_rates),
        "peer_rounds": list(comparison.peer_rates),
        "ratio": comparison.ratio,
        "lowest_ratio": comparison.lowest,
        "highest_ratio": comparison.highest,
        "target": comparison.target,
        "met": comparison.met,
        "disturbed": comparison.disturbed,
    }
