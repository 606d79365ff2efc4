"""What a run says: the table for people, the record for programs, and the file with every request."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpustream.bench.serving.client import LoadRun
from tpustream.bench.serving.metrics import failures, percentile_name

TITLES = {
    "ttft": "Time to first token (ms)",
    "tpot": "Time per output token after the first (ms)",
    "itl": "Inter-token latency, between chunks (ms)",
    "e2el": "End-to-end latency (ms)",
}

COUNTS = (
    ("completed", "Completed requests", "{:d}"),
    ("failed", "Failed requests", "{:d}"),
    ("short_answers", "Answers shorter than asked", "{:d}"),
    ("duration", "Duration (s)", "{:.2f}"),
    ("total_input_tokens", "Input tokens", "{:d}"),
    ("total_output_tokens", "Output tokens", "{:d}"),
    ("request_throughput", "Requests a second", "{:.2f}"),
    ("request_goodput", "Requests a second within the limits", "{:.2f}"),
    ("output_throughput", "Output tokens a second", "{:.2f}"),
    ("total_token_throughput", "Tokens a second, both ways", "{:.2f}"),
    ("max_concurrent_requests", "Most requests at once", "{:d}"),
    ("client_lag_ms", "Latest sending after its time (ms)", "{:.1f}"),
    ("client_cpu_us_per_chunk", "Client CPU time a chunk (µs)", "{:.0f}"),
)


def describe_client(run: LoadRun, max_concurrency: int | None) -> dict[str, float | None]:
    """Whether the client kept up: how late it sent, and what it cost.

    Lag is not known under a limit on concurrency, where requests wait on purpose.
    """
    chunks = sum(len(record.text_times) for record in run.records)
    lags = [record.start - record.due for record in run.records]
    return {
        "client_lag_ms": 1e3 * max(lags, default=0.0) if max_concurrency is None else None,
        "client_cpu_us_per_chunk": 1e6 * run.client_cpu_seconds / chunks if chunks else None,
    }


def table(
    summary: Mapping[str, Any], run: LoadRun, metrics: Sequence[str], percentiles: Sequence[float]
) -> str:
    """The figures of `summary` and the reasons of failures, as lines of text."""
    lines = [
        f"{title:<44}{form.format(summary[name]):>12}"
        for name, title, form in COUNTS
        if summary.get(name) is not None
    ]
    names = ["mean", *map(percentile_name, percentiles)]
    lines.append(f"\n{'':<44}" + "".join(f"{name:>10}" for name in names))
    for metric in metrics:
        values = [summary[f"{name}_{metric}_ms"] for name in names]
        shown = "".join(f"{'-' if value is None else format(value, '.2f'):>10}" for value in values)
        lines.append(f"{TITLES[metric]:<44}{shown}")
    lines += [f"failed {count} times: {reason}" for reason, count in failures(run.records).items()]
    return "\n".join(lines)


def json_line(record: Mapping[str, Any]) -> str:
    """Strict JSON on one line: an infinite setting is written "inf", as its flag is."""
    return json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False)


def save_result(path: Path, record: Mapping[str, Any], run: LoadRun) -> None:
    """Write the record with all requests as one JSON object."""
    whole = {**record, "requests": [request.to_json() for request in run.records]}
    path.write_text(json_line(whole) + "\n", encoding="utf-8")


def check_folder(flag: str, path: Path) -> Path:
    """The path, whose folder is there. Raises ValueError before a run would be lost for it."""
    if not path.parent.is_dir():
        raise ValueError(f"{flag}: wanted a file in a folder that exists, got {str(path)!r}")
    return path


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value
