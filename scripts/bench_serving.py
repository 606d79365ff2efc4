"""What clients of a running server see: time to first token, gaps between tokens, throughput.

    python -m tpustream.serve
    python scripts/bench_serving.py --num_prompts=32 --random_input_len=128 --ignore_eos
    python scripts/bench_serving.py --request-rate 2 --goodput ttft:500 tpot:50 --plot load.png

Loads any OpenAI-compatible server; flags are those of `vllm bench serve`, with dashes or underscores.
The last line is one JSON object with every figure. The exit code is 1 when a request failed.
"""

import datetime
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from tpustream.bench.serving.arguments import absl_arguments
from tpustream.bench.serving.arrivals import arrival_times
from tpustream.bench.serving.bodies import is_chat, parse_extra_body, request_body
from tpustream.bench.serving.client import LoadRun, Target, run_load, run_loop, served_models
from tpustream.bench.serving.dataset import SampleRequest, random_requests
from tpustream.bench.serving.metrics import parse_goodput, parse_metrics, parse_percentiles, summarize
from tpustream.bench.serving.plot import check_matplotlib, save_plot
from tpustream.bench.serving.report import check_folder, describe_client, json_line, save_result, table

_BASE_URL = flags.DEFINE_string("base_url", "http://127.0.0.1:8000", "Address of the server, without /v1.")
_ENDPOINT = flags.DEFINE_string(
    "endpoint", "/v1/completions", "/v1/completions (prompts are token ids) or /v1/chat/completions (words)."
)
_MODEL = flags.DEFINE_string("model", None, "Name to ask for; the first of /v1/models when not given.")
_DATASET = flags.DEFINE_enum("dataset_name", "random", ["random"], "What prompts are made of.")
_INPUT = flags.DEFINE_integer("random_input_len", 1024, "Tokens of a prompt; words for chat.")
_OUTPUT = flags.DEFINE_integer("random_output_len", 128, "Tokens of an answer, at most.")
_RATIO = flags.DEFINE_float(
    "random_range_ratio", 0.0, "Lengths are drawn from this share below to this share above the two."
)
_VOCABULARY = flags.DEFINE_integer(
    "vocab_size", 32_000, "Random token ids are drawn below this; it must not be above the model's own."
)
_PROMPTS = flags.DEFINE_integer("num_prompts", 100, "Requests to measure.")
_RATE = flags.DEFINE_float("request_rate", float("inf"), "Requests a second; inf sends all at once.")
_BURSTINESS = flags.DEFINE_float(
    "burstiness", 1.0, "Shape of the gamma gaps: 1 is Poisson, less comes in bursts, more is more even."
)
_CONCURRENCY = flags.DEFINE_integer(
    "max_concurrency", None, "Requests in flight, at most; no limit when not given."
)
_IGNORE_EOS = flags.DEFINE_bool("ignore_eos", False, "Ask for answers of full length.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of the sampling; 0 is greedy.")
_SEED = flags.DEFINE_integer("seed", 0, "Of prompts, lengths and arrivals.", lower_bound=0)
_METRICS = flags.DEFINE_list("percentile_metrics", ["ttft", "tpot", "itl", "e2el"], "Latencies to report.")
_PERCENTILES = flags.DEFINE_list("metric_percentiles", ["50", "90", "99"], "Percentiles of each.")
_GOODPUT = flags.DEFINE_list(
    "goodput", [], "Limits in ms, as ttft:200 tpot:50 e2el:2000; requests that meet all of them are counted."
)
_WARMUP = flags.DEFINE_integer(
    "warmup", 1, "Requests sent before, not measured; nothing is measured when one fails.", lower_bound=0
)
_EXTRA = flags.DEFINE_string("extra_body", "", "JSON object with more fields for every request.")
_HEADERS = flags.DEFINE_multi_string("header", [], "NAME=VALUE, sent with every request; may be repeated.")
_TIMEOUT = flags.DEFINE_float("timeout", 600.0, "Seconds of silence after which a request has failed.")
_SAVE = flags.DEFINE_bool("save_result", False, "Write figures and requests to --result_file.")
_RESULT = flags.DEFINE_string(
    "result_file", None, "Where, implies --save_result; serving-DATE-TIME.json when not given."
)
_PLOT = flags.DEFINE_string("plot", None, "Image file to draw the run into, as load.png.")
flags.DEFINE_alias("num_warmups", "warmup")


def main(argv: list[str]) -> int:
    """Run the load; 0 when every request was answered, 1 when one was not."""
    if len(argv) > 1:
        raise ValueError(f"arguments: wanted flags alone, got {argv[1:]}")
    chat = is_chat(_ENDPOINT.value)
    metrics, percentiles = parse_metrics(_METRICS.value), parse_percentiles(_PERCENTILES.value)
    goodput, extra = parse_goodput(_GOODPUT.value), parse_extra_body(_EXTRA.value)
    now = datetime.datetime.now().astimezone()
    result_file = _result_file(now)
    if _PLOT.value is not None:
        check_matplotlib()
        check_folder("plot", Path(_PLOT.value))
    target = Target(
        base_url=_BASE_URL.value, endpoint=_ENDPOINT.value, headers=_headers(), timeout=_TIMEOUT.value
    )
    seed = _SEED.value  # with a second number, so that what is drawn apart is independent
    due = arrival_times(_PROMPTS.value, rate=_RATE.value, burstiness=_BURSTINESS.value, seed=(seed, 1))
    draw = partial(
        random_requests,
        input_len=_INPUT.value,
        output_len=_OUTPUT.value,
        range_ratio=_RATIO.value,
        vocabulary=_VOCABULARY.value,
        chat=chat,
    )
    requests, warmups = draw(_PROMPTS.value, seed=(seed, 0)), draw(_WARMUP.value, seed=(seed, 2))
    model = _model(target)
    encode = partial(
        request_body,
        model=model,
        chat=chat,
        temperature=_TEMPERATURE.value,
        ignore_eos=_IGNORE_EOS.value,
        extra=extra,
    )
    print(f"{model} at {target.url(target.endpoint)}: {_PROMPTS.value} requests at {_RATE.value:g} a second")
    for record in _run("warm-up", target, warmups, encode, [0.0] * len(warmups)).records:
        if record.error is not None:
            raise ValueError(f"warm-up: wanted an answer, got {record.error}")
    run = _run("requests", target, requests, encode, due)

    summary = summarize(
        run.records, duration=run.duration, metrics=metrics, percentiles=percentiles, goodput=goodput
    )
    settings = {
        "date": now.isoformat(timespec="seconds"),
        "model": model,
        "endpoint": _ENDPOINT.value,
        "num_prompts": _PROMPTS.value,
        "random_input_len": _INPUT.value,
        "random_output_len": _OUTPUT.value,
        "random_range_ratio": _RATIO.value,
        "request_rate": _RATE.value,
        "burstiness": _BURSTINESS.value,
        "max_concurrency": _CONCURRENCY.value,
        "ignore_eos": _IGNORE_EOS.value,
        "temperature": _TEMPERATURE.value,
        "seed": _SEED.value,
        "goodput": goodput,
    }
    record = {**settings, **summary, **describe_client(run, _CONCURRENCY.value)}
    print(table(record, run, metrics, percentiles))
    if result_file is not None:
        save_result(result_file, record, run)
        print(f"requests: {result_file}")
    if _PLOT.value is not None:
        save_plot(Path(_PLOT.value), run, f"{model}, {_PROMPTS.value} requests, {_RATE.value:g} a second")
        print(f"picture: {_PLOT.value}")
    print(json_line(record))
    return 1 if summary["failed"] else 0


def _run(
    label: str,
    target: Target,
    requests: Sequence[SampleRequest],
    encode: Callable[[SampleRequest], bytes],
    due: Sequence[float],
) -> LoadRun:
    bodies = [encode(request) for request in requests]
    with tqdm(desc=label, total=len(requests), unit="request", mininterval=0.5, disable=not requests) as bar:
        return run_loop(
            run_load(
                target,
                requests,
                bodies,
                due,
                max_concurrency=_CONCURRENCY.value,
                finished=lambda record: bar.update(),
            )
        )


def _model(target: Target) -> str:
    """The model to ask for; asks the server even when it is given, to know that one is there."""
    listed = run_loop(served_models(target))
    if _MODEL.value is not None:
        return _MODEL.value
    if not listed:
        raise ValueError(f"model: wanted a name, got none, and {target.base_url} does not list any")
    return listed[0]


def _result_file(now: datetime.datetime) -> Path | None:
    if _RESULT.value is not None:
        return check_folder("result_file", Path(_RESULT.value))
    return Path(f"serving-{now:%Y%m%d-%H%M%S}.json") if _SAVE.value else None


def _headers() -> dict[str, str]:
    headers = {}
    for text in _HEADERS.value:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"header: wanted NAME=VALUE, got {text!r}")
        headers[name] = value
    return headers


def run() -> None:
    """Entry point: one clear line for an error of the user's, no traceback."""

    def checked(argv: list[str]) -> int:
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("interrupted: nothing is reported")

    app.run(checked, argv=absl_arguments(sys.argv))


if __name__ == "__main__":
    run()
