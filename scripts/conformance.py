"""Public test suites against a server: what OpenAI's clients and descriptions expect, and what is met.

    pip install -e ".[test,conformance]"
    python scripts/conformance.py
    python scripts/conformance.py --suites=llm-comply --base_url=http://127.0.0.1:8000

Without --base_url it starts `python -m tpustream.serve` itself, on a free port, under the model names that
a suite uses, and says with which flags; a server of your own needs the same. Suites are fetched from the
package index, SGLang's from its repository, into the cache folder, never committed. The last line is one
JSON object; the exit code is 1 when a case failed. Cases that do not apply are listed with their reasons;
one that is listed and passes has failed too.
"""

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from tpustream.bench.conformance import langchain, llama_cpp, llm_comply, openai_python, openapi, sglang
from tpustream.bench.conformance.cases import Case, Suite, Target, counts, judged, table
from tpustream.bench.soak.server import running_server

SUITES = ("openai-python", "llm-comply", "schemathesis", "langchain", "llama.cpp", "sglang")

_BASE_URL = flags.DEFINE_string("base_url", None, "Address of a running server, without /v1.")
_MODEL = flags.DEFINE_string("model", None, "Model of the server that is started; its default if absent.")
_NAME = flags.DEFINE_string(
    "name", None, "Model to ask for where a suite leaves the choice; the first served."
)
_SUITES = flags.DEFINE_list("suites", list(SUITES), f"Suites to run, of {', '.join(SUITES)}.")
_SGLANG_TESTS = flags.DEFINE_string(
    "sglang_tests", None, "A copy of SGLang's test_openai_server.py, where its repository cannot be reached."
)


def suites() -> dict[str, Suite]:
    """Every suite by its name."""
    given = Path(_SGLANG_TESTS.value).absolute() if _SGLANG_TESTS.value else None
    found = (openai_python.SUITE, llm_comply.SUITE, openapi.SUITE, langchain.SUITE, llama_cpp.SUITE)
    return dict(zip(SUITES, (*found, sglang.suite(given)), strict=True))


@contextlib.contextmanager
def served(suite: Suite) -> Iterator[str]:
    """The address of the server that was given, or of one that is started for a suite."""
    if _BASE_URL.value:
        yield _BASE_URL.value
        return
    chosen = [f"--model={_MODEL.value}"] if _MODEL.value else []
    names = sorted(suite.names())
    named = [f"--served_model_name={','.join(names)}"] if names else []
    arguments = [*chosen, *suite.flags, *named]
    print("server:", *arguments, file=sys.stderr, flush=True)
    with running_server(arguments) as server:
        yield server.url


def first_model(url: str) -> str:
    """The first name that a server has for its model."""
    with urllib.request.urlopen(f"{url}/v1/models") as response:
        return json.load(response)["data"][0]["id"]


def main(argv: list[str]) -> int:
    """Run the suites; the exit code."""
    known = suites()
    unknown = sorted({*argv[1:], *_SUITES.value} - set(known))
    if unknown:
        print(f"error: wanted suites of {', '.join(known)}, got {', '.join(unknown)}", file=sys.stderr)
        return 1
    cases: list[Case] = []
    for title in _SUITES.value:
        suite = known[title]
        try:
            with served(suite) as url:
                target = Target(url=url, name=_NAME.value or first_model(url))
                cases += judged(suite, target)
        except (OSError, ValueError) as error:
            print(f"error: {title}: {error}", file=sys.stderr)
            return 1
        print(f"{title}: done", file=sys.stderr, flush=True)
    print(table(cases, {title: known[title].not_run for title in _SUITES.value}))
    print(json.dumps({"suites": counts(cases)}))
    return int(any(case.outcome == "failed" for case in cases))


if __name__ == "__main__":
    app.run(main)
