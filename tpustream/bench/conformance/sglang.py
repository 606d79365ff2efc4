"""SGLang's test_openai_server.py: echo x log-probabilities x lists x n, streamed and at once, and more.

The file is of SGLang's repository at COMMIT, which names its bytes: fetched from there once into the
cache, or given as a file. It runs with a stand-in for the parts of SGLang that it imports.
"""

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tpustream.bench.conformance.cases import Case, Suite, Target
from tpustream.bench.conformance.pytest_run import WITHOUT_PLUGINS, junit_cases, run_pytest
from tpustream.weights.cache import cache_folder

COMMIT = "341ffe19c346fd8dbf184b2e19e5d5c996a0496d"
URL = (
    f"https://raw.githubusercontent.com/sgl-project/sglang/{COMMIT}"
    "/test/registered/openai_server/basic/test_openai_server.py"
)
FETCH_SECONDS = 60.0
PLUGIN = "tpustream.bench.conformance.sglang_stand_in"

CONSTRAINED = "constrained output is refused by name"
PREFILL = "a last message that the model continues is refused by name (continue_final_message)"
USAGE = "wants usage of /v1/responses in the words of the older API; OpenAI's are input_tokens, output_tokens"
PROCESSOR = "runs the client's Python code in the server"
RERANK, SCORE = "/v1/rerank is not served", "/v1/score is not served"
NOT_APPLICABLE = {
    "TestOpenAIServer::test_regex": CONSTRAINED,
    "TestOpenAIServer::test_response_prefill": PREFILL,
    "TestOpenAIServerv1Responses::test_response": USAGE,
    "TestOpenAIServerv1Responses::test_penalty": USAGE,
    "TestOpenAIServerv1Responses::test_regex": CONSTRAINED,
    "TestOpenAIServerv1Responses::test_response_prefill": PREFILL,
    "TestOpenAIServerCustomLogitProcessor::test_custom_logit_processor": PROCESSOR,
    "TestOpenAIServerCustomLogitProcessor::test_custom_logit_processor_batch_mixed": PROCESSOR,
    "TestOpenAIV1Rerank::test_rerank_single": RERANK,
    "TestOpenAIV1Rerank::test_rerank_batch": RERANK,
    "TestOpenAIV1Score::test_score_text_input": SCORE,
    "TestOpenAIV1Score::test_score_token_input": SCORE,
    "TestOpenAIV1Score::test_score_error_handling": SCORE,
}

CUT = "wants `completed` of an answer that is cut at max_output_tokens; OpenAI's is `incomplete`"
NOT_RUN = {
    f"test_openai_server.py::TestOpenAIServerv1Responses::{name}": CUT
    for name in ("test_response_stream", "test_response_completion", "test_response_completion_stream")
}


def suite(given: Path | None) -> Suite:
    """The suite; `given` is a copy of the file, None fetches it."""
    return Suite(
        run=lambda target: run(target, given),
        not_applicable=NOT_APPLICABLE,
        not_run=NOT_RUN,
        flags=("--ring_length=512",),
    )


def run(target: Target, given: Path | None) -> Iterator[Case]:
    """The whole file."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(given or fetched(), Path(folder, "test_openai_server.py"))
        environment = {"TPUSTREAM_URL": target.url, "TPUSTREAM_MODEL": target.name} | WITHOUT_PLUGINS
        left_out = (f"--deselect={name}" for name in NOT_RUN)
        report = run_pytest(Path(folder), ("-p", PLUGIN, *left_out, "test_openai_server.py"), environment)
        yield from junit_cases("sglang", report)


def fetched() -> Path:
    """The file in the cache. Raises ValueError, with what else can be done, where it cannot be had."""
    kept = cache_folder() / "conformance" / f"sglang-{COMMIT[:12]}" / "test_openai_server.py"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        try:
            with urllib.request.urlopen(URL, timeout=FETCH_SECONDS) as answer:
                partial.write_bytes(answer.read())
        except (urllib.error.URLError, TimeoutError) as error:
            raise ValueError(
                f"sglang: wanted {URL}, got: {error}. Give a copy (--sglang_tests) or leave it out"
            ) from error
        os.replace(partial, kept)
    return kept
