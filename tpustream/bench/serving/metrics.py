"""From records to figures, under the names that `vllm bench serve` gives them. Milliseconds."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tpustream.bench.serving.records import RequestRecord

# Metric -> its samples of one completed request, in seconds.
SAMPLES: Mapping[str, Callable[[RequestRecord], list[float]]] = {
    "ttft": lambda record: [] if record.ttft is None else [record.ttft],
    "tpot": lambda record: [] if record.tpot is None else [record.tpot],
    "itl": lambda record: record.itl,
    "e2el": lambda record: [record.e2el],
}
GOODPUT_METRICS = ("ttft", "tpot", "e2el")  # those with one value a request
HIGHEST_LIMIT = 1e9  # milliseconds: eleven days


def summarize(
    records: Sequence[RequestRecord],
    *,
    duration: float,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, float | int | None]:
    """Counts, rates a second, and mean, median, std and percentiles of each metric.

    Failed requests are counted and have no part in any other figure. A figure without a sample is
    None. `duration` in seconds; `goodput` holds limits in milliseconds, {} leaves request_goodput out.
    """
    completed = [record for record in records if record.error is None]
    inputs = sum(record.prompt_tokens for record in completed)
    outputs = sum(record.completion_tokens for record in completed)
    summary: dict[str, float | int | None] = {
        "duration": duration,
        "completed": len(completed),
        "failed": len(records) - len(completed),
        "short_answers": sum(record.completion_tokens < record.output_len for record in completed),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _rate(len(completed), duration),
        "output_throughput": _rate(outputs, duration),
        "total_token_throughput": _rate(inputs + outputs, duration),
        "max_concurrent_requests": peak_concurrency(records),
    }
    if goodput:
        good = sum(is_good(record, goodput) for record in completed)
        summary["request_goodput"] = _rate(good, duration)
    for metric in metrics:
        samples = [1e3 * value for record in completed for value in SAMPLES[metric](record)]
        summary |= {f"{name}_{metric}_ms": value for name, value in _spread(samples, percentiles).items()}
    return summary


def failures(records: Sequence[RequestRecord]) -> dict[str, int]:
    """Reason -> how many requests failed for it, the most frequent first."""
    counts = Counter(record.error for record in records if record.error is not None)
    return dict(counts.most_common())


def is_good(record: RequestRecord, limits: Mapping[str, float]) -> bool:
    """Whether a completed request meets every limit (milliseconds). One token has a TPOT of 0."""
    return all(1e3 * (getattr(record, metric) or 0.0) <= limit for metric, limit in limits.items())


def peak_concurrency(records: Sequence[RequestRecord]) -> int:
    """The most requests that were in flight at once."""
    # An end sorts before a start of the same moment.
    changes = sorted([(record.start, 1) for record in records] + [(record.end, -1) for record in records])
    return int(np.cumsum([change for _, change in changes]).max(initial=0))


def parse_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics of --percentile_metrics. Raises ValueError for one that there is not."""
    for name in names:
        if name not in SAMPLES:
            raise ValueError(f"percentile_metrics: wanted any of {','.join(SAMPLES)}, got {name!r}")
    return tuple(names)


def parse_percentiles(texts: Sequence[str]) -> tuple[float, ...]:
    """The numbers of --metric_percentiles. Raises ValueError for what is none between 0 and 100."""
    return tuple(_number("metric_percentiles", text, 100.0) for text in texts)


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """Limits in milliseconds from texts like "ttft:200". Raises ValueError for anything else."""
    limits = {}
    for pair in pairs:
        metric, _, limit = pair.partition(":")
        if metric not in GOODPUT_METRICS:
            raise ValueError(f"goodput: wanted {'/'.join(GOODPUT_METRICS)}:MILLISECONDS, got {pair!r}")
        limits[metric] = _number("goodput", limit, HIGHEST_LIMIT)
    return limits


def percentile_name(percentile: float) -> str:
    """p99 for 99, p99.9 for 99.9."""
    return f"p{percentile:g}"


def _number(flag: str, text: str, highest: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= highest:
        raise ValueError(f"{flag}: wanted a number from 0 to {highest:g}, got {text!r}")
    return value


def _spread(samples: Sequence[float], percentiles: Sequence[float]) -> dict[str, float | None]:
    names = ["mean", "median", "std", *map(percentile_name, percentiles)]
    if not samples:
        return dict.fromkeys(names)
    values = [np.mean(samples), np.median(samples), np.std(samples), *np.percentile(samples, percentiles)]
    return dict(zip(names, map(float, values), strict=True))


def _rate(count: float, duration: float) -> float:
    return count / duration if duration else 0.0
