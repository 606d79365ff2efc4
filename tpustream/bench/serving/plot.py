"""A run as a picture: arrivals, the distributions of TTFT and ITL, and a bar for every request."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpustream.bench.serving.client import LoadRun
from tpustream.bench.serving.records import RequestRecord

BINS = 40
WAIT, ANSWER, FAILURE = "#c8c8c8", "#2a6f97", "#c1121f"


def check_matplotlib() -> None:
    """Raises ValueError when there is no matplotlib, before a run is spent."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("plot: wanted matplotlib installed, got none; pip install matplotlib") from None


def save_plot(path: Path, run: LoadRun, title: str) -> None:
    """Draw the run into an image file; its ending says which kind. Raises ValueError for an unknown one."""
    from matplotlib.figure import Figure  # optional, and slow to import

    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(title)
    (arrivals, first), (gaps, bars) = figure.subplots(2, 2)
    completed = [record for record in run.records if record.error is None]
    _arrivals(arrivals, run.records)
    _distribution(first, [1e3 * record.ttft for record in completed], "time to first token (ms)")
    _distribution(gaps, [1e3 * gap for record in completed for gap in record.itl], "inter-token latency (ms)")
    gaps.set_yscale("log")  # a stutter is one gap among thousands
    _bars(bars, run.records)
    figure.savefig(path, dpi=120)


def _arrivals(axes, records: Sequence[RequestRecord]) -> None:
    changes = sorted([(record.start, 1) for record in records] + [(record.end, -1) for record in records])
    moments, steps = np.array([0.0, *[moment for moment, _ in changes]]), [step for _, step in changes]
    axes.step(moments, np.cumsum([0, *steps]), where="post", color=ANSWER, label="in flight")
    axes.plot([record.due for record in records], [0] * len(records), "|", color="black", label="arrivals")
    axes.set(xlabel="seconds", ylabel="requests")
    axes.legend()


def _distribution(axes, values: Sequence[float], label: str) -> None:
    axes.set(xlabel=label, ylabel="count")
    if not values:
        axes.text(0.5, 0.5, "no samples", ha="center", transform=axes.transAxes)
        return
    axes.hist(values, bins=BINS, color=ANSWER)
    for percentile, style in ((50, "-"), (99, "--")):
        value = float(np.percentile(values, percentile))
        axes.axvline(value, color=FAILURE, linestyle=style, label=f"p{percentile} {value:.1f}")
    axes.legend()


def _bars(axes, records: Sequence[RequestRecord]) -> None:
    width = max(0.5, min(6.0, 300 / len(records)))
    for color, label, spans in (
        (WAIT, "to first token", [(r, r.start, r.end if r.first is None else r.first) for r in records]),
        (ANSWER, "answer", [(r, r.first, r.end) for r in records if r.first is not None and not r.error]),
        (FAILURE, "failed", [(r, r.start, r.end) for r in records if r.error]),
    ):
        if spans:
            places = [record.index for record, _, _ in spans]
            starts, ends = [start for _, start, _ in spans], [end for _, _, end in spans]
            axes.hlines(places, starts, ends, color=color, linewidth=width, label=label)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", ylabel="request")
    axes.legend()
