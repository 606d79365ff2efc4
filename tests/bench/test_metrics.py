"""Figures against records whose figures are known by hand."""

import json

import pytest

from tpustream.bench.serving.client import LoadRun
from tpustream.bench.serving.metrics import (
    failures,
    parse_goodput,
    parse_metrics,
    parse_percentiles,
    summarize,
)
from tpustream.bench.serving.records import RequestRecord
from tpustream.bench.serving.report import describe_client, json_line, table

ALL = ("ttft", "tpot", "itl", "e2el")


def record(index, start, first, end, tokens, gaps=(), **fields) -> RequestRecord:
    times = [first]
    for gap in gaps:
        times.append(times[-1] + gap)
    defaults = {"input_len": 10, "output_len": tokens, "due": start, "prompt_tokens": 12}
    defaults |= {"finish_reason": "length", "error": None, "text_times": tuple(times)}
    return RequestRecord(
        index=index, start=start, first=first, end=end, completion_tokens=tokens, **defaults | fields
    )


def failed(index, start, end, error) -> RequestRecord:
    nothing = dict.fromkeys(("prompt_tokens", "completion_tokens", "finish_reason"))
    return RequestRecord(
        index=index, input_len=10, output_len=5, due=start, start=start, first=None, text_times=(), end=end,
        error=error, **nothing,
    )  # fmt: skip


RECORDS = [
    # ttft 1 s, e2el 3 s, tpot 2 / 4 = 0.5 s, in two chunks of two tokens after the first
    record(0, start=0.0, first=1.0, end=3.0, tokens=5, gaps=(0.75, 1.25)),
    # ttft 2 s, e2el 4 s, tpot 2 / 2 = 1 s; asked for 4 tokens
    record(1, start=1.0, first=3.0, end=5.0, tokens=3, gaps=(2.0,), output_len=4),
    # one token: no TPOT, no gap
    record(2, start=5.0, first=5.5, end=5.5, tokens=1),
    failed(3, 6.0, 8.0, "HTTP 429: full"),
    failed(4, 6.0, 7.0, "HTTP 429: full"),
    failed(5, 6.0, 7.0, "no byte for 1 s"),
]
SUMMARY = summarize(RECORDS, duration=10.0, metrics=ALL, percentiles=(50, 90), goodput={"ttft": 1000})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("completed", 3),
        ("failed", 3),
        ("short_answers", 1),
        ("total_input_tokens", 36),
        ("total_output_tokens", 9),
        ("request_throughput", 0.3),
        ("output_throughput", 0.9),
        ("total_token_throughput", 4.5),
        ("max_concurrent_requests", 3),
        ("request_goodput", 0.2),
        ("mean_ttft_ms", 3500 / 3),
        ("median_ttft_ms", 1000),
        ("p50_ttft_ms", 1000),
        ("p90_ttft_ms", 1800),
        ("std_ttft_ms", 1e3 * (7 / 18) ** 0.5),
        ("mean_tpot_ms", 750),
        ("p50_itl_ms", 1250),
        ("mean_itl_ms", 4000 / 3),
        ("median_e2el_ms", 3000),
    ],
)
def test_figures_by_hand(name, value):
    """TPOT counts tokens, ITL counts chunks, and failed requests have no part in either."""
    assert SUMMARY[name] == pytest.approx(value)


def test_goodput_needs_every_limit():
    """A request counts when it meets all limits; a single token has no TPOT to miss one with."""
    for limits, good in (
        ({"ttft": 2000, "tpot": 500}, 2),
        ({"e2el": 3000}, 2),
        ({"ttft": 999, "e2el": 9999}, 1),
    ):
        summary = summarize(RECORDS, duration=1.0, metrics=(), percentiles=(), goodput=limits)
        assert summary["request_goodput"] == good
    assert "request_goodput" not in summarize(RECORDS, duration=1.0, metrics=(), percentiles=(), goodput={})


def test_nothing_completed():
    """A run in which all failed still has a report: figures without samples are null, not zero."""
    records = [record for record in RECORDS if record.error]
    summary = summarize(records, duration=2.0, metrics=ALL, percentiles=(99,), goodput={})
    assert (summary["completed"], summary["failed"], summary["p99_ttft_ms"]) == (0, 3, None)
    run = LoadRun(records=records, duration=2.0, client_cpu_seconds=0.1)
    client = describe_client(run, None)
    assert client == {"client_lag_ms": 0.0, "client_cpu_us_per_chunk": None}
    assert "failed 2 times: HTTP 429: full" in table({**summary, **client}, run, ALL, (99,))
    assert json.loads(json_line(summary))["p99_ttft_ms"] is None


def test_failures_are_counted_by_reason():
    """The most frequent reason comes first."""
    assert list(failures(RECORDS).items()) == [("HTTP 429: full", 2), ("no byte for 1 s", 1)]


def test_lag_is_what_the_client_sent_late():
    """The report shows a client that could not keep up; a limit on concurrency is no lag."""
    run = LoadRun(
        records=[record(0, 0.25, 1.0, 1.0, 2, gaps=(0.5,), due=0.0)], duration=1.0, client_cpu_seconds=1e-4
    )
    assert describe_client(run, None) == {"client_lag_ms": 250.0, "client_cpu_us_per_chunk": 50.0}
    assert describe_client(run, 1)["client_lag_ms"] is None


def test_saved_records_speak_milliseconds():
    """A record of the result file holds its latencies, and is JSON."""
    saved = json.loads(json.dumps(RECORDS[0].to_json()))
    assert (saved["ttft_ms"], saved["tpot_ms"], saved["e2el_ms"], saved["itl_ms"]) == (
        1000.0,
        500.0,
        3000.0,
        [750.0, 1250.0],
    )
    assert RECORDS[3].to_json()["ttft_ms"] is None


def test_json_has_no_infinity():
    """Strict readers take the last line: an infinite rate is a string in it."""
    assert json.loads(json_line({"request_rate": float("inf")})) == {"request_rate": "inf"}


def test_flags_of_metrics():
    """Lists are read, and what is none of the choices is refused by the flag's name."""
    assert parse_goodput(["ttft:200", "tpot:50.5"]) == {"ttft": 200.0, "tpot": 50.5}
    assert parse_percentiles(["50", "99.9"]) == (50.0, 99.9)
    assert parse_metrics(["itl", "ttft"]) == ("itl", "ttft")
    for parse, value in (
        (parse_goodput, "itl:5"),
        (parse_goodput, "ttft:soon"),
        (parse_percentiles, "101"),
        (parse_metrics, "mean"),
    ):
        with pytest.raises(ValueError, match=f"wanted .*, got '{value.removeprefix('ttft:')}'"):
            parse([value])
