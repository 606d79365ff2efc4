"""Public test suites against a server: what OpenAI's clients and descriptions expect, and what is met.

    pip install -e ".[test,conformance]"
    python scripts/conformance.py
    python scripts/conformance.py --suites=llm-comply --base_url=http://127.0.0.1:8000

Without --base_url it starts `python -m tpustream.serve` itself, on a free port, under the model names that
the suites use; SERVED_FLAGS are the other flags that it gives. Suites are fetched from the package index
into the cache folder, never committed. The last line is one JSON object; the exit code is 1 when a case
failed. Cases that ask for what this server refuses by name are skipped, with the reason.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.resources
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags

from tpustream.weights.cache import cache_folder

_BASE_URL = flags.DEFINE_string("base_url", None, "Address of a running server, without /v1.")
_MODEL = flags.DEFINE_string("model", None, "Model of the server that is started; its default if absent.")
_NAME = flags.DEFINE_string(
    "name", None, "Model to ask for where a suite leaves the choice; the first served."
)
_SUITES = flags.DEFINE_list("suites", ["openai-python", "llm-comply", "schemathesis"], "Suites to run.")

# The generated tests send a value for every parameter that OpenAI's description has, references to stored
# objects that exist nowhere among them. By default each of these is refused by name.
# Its strict client reads vectors as numbers only, yet asks for base64.
IGNORED = (
    "suffix",
    "context_management",
    "conversation",
    "previous_response_id",
    "prompt",
    "encoding_format",
)
# Most cases leave the length of an answer to the server; the ring bounds it.
SERVED_FLAGS = (f"--ignored_fields={','.join(IGNORED)}", "--ring_length=128")
RESOURCES = {
    "openai-python completions": "test_completions.py",
    "openai-python chat": "chat/test_completions.py",
    "openai-python models": "test_models.py",
    "openai-python responses": "test_responses.py",
    "openai-python embeddings": "test_embeddings.py",
}
CREATE = "create or (test_models and (list or retrieve))"
TOOLS, IMAGES = "tools are refused by name", "images are refused by name"
COMPACT = "/v1/responses/compact is not served"
LEFT_OUT = "`model` may be left out, as openai-python's own tests of responses do"
NOT_SERVED = {
    "tool-calling": TOOLS,
    "chat-tool-calling": TOOLS,
    "compact-response": COMPACT,
    "compact-missing-model": COMPACT,
    "image-input": IMAGES,
    "chat-image-input": IMAGES,
    "DELETE /responses/{response_id}": "the description leaves the envelope out of this one error",
    "error-handling": LEFT_OUT,
    "chat-error-handling": LEFT_OUT,
}
FORMATS = ("openai-chat", "open-responses")
OPERATIONS = {
    "/chat/completions": ("post",),
    "/completions": ("post",),
    "/embeddings": ("post",),
    "/models": ("get",),
    "/models/{model}": ("get",),
    "/responses": ("post",),
    "/responses/{response_id}": ("get", "delete"),
    "/responses/{response_id}/input_items": ("get",),
}
STARTING = 600.0  # seconds: the model may have to be fetched and compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One test of a suite; `outcome` is passed, failed or skipped, `reason` why where it did not pass."""

    suite: str
    name: str
    outcome: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A server to test, and the model to ask for."""

    url: str
    name: str


def openai_python(target: Target) -> Iterator[Case]:
    """The generated tests of the installed client's own version."""
    source = openai_source()
    for suite, file in RESOURCES.items():
        report = run_pytest(source, file, target)
        yield from junit_cases(suite, report)


def openai_source() -> Path:
    """The client's source archive, unpacked: its wheel has no tests."""
    version = importlib.metadata.version("openai")
    folder = cache_folder() / "conformance"
    if not (folder / f"openai-{version}").exists():
        folder.mkdir(parents=True, exist_ok=True)
        fetch = ("download", "--quiet", "--no-deps", "--no-binary=:all:", f"--dest={folder}")
        subprocess.run([sys.executable, "-m", "pip", *fetch, f"openai=={version}"], check=True)
        with tarfile.open(folder / f"openai-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / f"openai-{version}"


def run_pytest(source: Path, file: str, target: Target) -> str:
    """A file of the client's tests, against the server; the report as JUnit's XML."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ("-o", "addopts=", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", CREATE)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"tests/api_resources/{file}"],
            cwd=source,
            env=os.environ | {"TEST_API_BASE_URL": f"{target.url}/v1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        if not report.exists():
            raise RuntimeError(f"{file}: wanted a report of pytest, got:\n{done.stdout}")
        return report.read_text(encoding="utf-8")


def junit_cases(suite: str, report: str) -> Iterator[Case]:
    """The cases of a JUnit report."""
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            found = case.find(tag)
            if found is not None:
                reason = " ".join(f"{found.get('message', '')} {found.text or ''}".split())
                if case.get("name") in NOT_SERVED:
                    outcome, reason = "skipped", NOT_SERVED[case.get("name")]
                yield Case(suite=suite, name=name, outcome=outcome, reason=reason)
                break
        else:
            yield Case(suite=suite, name=name, outcome="passed")


def llm_comply(target: Target) -> Iterator[Case]:
    """llm-comply in the two formats that this server speaks."""
    for form in FORMATS:
        options = (f"--base-url={target.url}/v1", f"--model={target.name}", f"--format={form}", "--json")
        done = subprocess.run(
            [sys.executable, "-m", "llm_comply.cli", *options, "--api-key=none", "--timeout=120"],
            stdout=subprocess.PIPE,
            text=True,
        )
        yield from comply_cases(f"llm-comply {form}", done.stdout)


def comply_cases(suite: str, output: str) -> Iterator[Case]:
    """The cases of llm-comply's JSON."""
    for result in json.loads(output)["results"]:
        outcome, reason = result["status"], "; ".join(result.get("errors", []))
        if outcome == "failed" and result["id"] in NOT_SERVED:
            outcome, reason = "skipped", NOT_SERVED[result["id"]]
        yield Case(suite=suite, name=result["id"], outcome=outcome, reason=reason)


def schemathesis(target: Target) -> Iterator[Case]:
    """OpenAI's description, as llm-comply carries it, reduced to the operations that are served."""
    with importlib.resources.as_file(importlib.resources.files("llm_comply") / "specs") as specs:
        described = json.loads((specs / "openai_chat.json").read_text(encoding="utf-8"))
    described["paths"] = {
        route: {method: described["paths"][route][method] for method in methods}
        for route, methods in OPERATIONS.items()
    }
    described["servers"] = [{"url": f"{target.url}/v1"}]
    with tempfile.TemporaryDirectory() as folder:
        spec, report = Path(folder, "openai.json"), Path(folder, "report.xml")
        spec.write_text(json.dumps(described), encoding="utf-8")
        checks = "not_a_server_error,response_schema_conformance"
        phases = ("--phases=examples,coverage", f"--checks={checks}", "--max-examples=20", "--seed=0")
        reports = ("--report=junit", f"--report-junit-path={report}")
        command = ("-m", "schemathesis.cli", "run", str(spec), f"--url={target.url}/v1", *phases, *reports)
        done = subprocess.run([sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, text=True)
        if not report.exists():
            raise RuntimeError(f"schemathesis: wanted a report, got:\n{done.stdout}")
        yield from junit_cases("schemathesis", report.read_text(encoding="utf-8"))


SUITES: dict[str, Callable[[Target], Iterator[Case]]] = {
    "openai-python": openai_python,
    "llm-comply": llm_comply,
    "schemathesis": schemathesis,
}


@contextlib.contextmanager
def started() -> Iterator[str]:
    """A server of our own, under every model name of the suites; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = [openai_source() / "tests/api_resources" / file for file in RESOURCES.values()]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    names = sorted(set(re.findall(r'model="([\w.-]+)"', text)))
    chosen = [f"--model={_MODEL.value}"] if _MODEL.value else []
    options = (*chosen, *SERVED_FLAGS, f"--served_model_name={','.join(names)}", f"--port={port}")
    server = subprocess.Popen([sys.executable, "-m", "tpustream.serve", *options], stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + STARTING
        while not answers(f"{url}/ready"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server: wanted it ready within {STARTING} seconds, got none")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def table(cases: list[Case]) -> str:
    """Counts a suite, and every case that did not pass with its reason."""
    lines = [f"{'suite':<28}{'passed':>8}{'failed':>8}{'skipped':>8}"]
    for suite in dict.fromkeys(case.suite for case in cases):
        counts = Counter(case.outcome for case in cases if case.suite == suite)
        lines.append(f"{suite:<28}{counts['passed']:>8}{counts['failed']:>8}{counts['skipped']:>8}")
    lines += [f"{c.outcome}: {c.suite}: {c.name}: {c.reason[:300]}" for c in cases if c.outcome != "passed"]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run the suites; the exit code."""
    unknown = sorted({*argv[1:], *_SUITES.value} - set(SUITES))
    if unknown:
        print(f"error: wanted suites of {', '.join(SUITES)}, got {', '.join(unknown)}", file=sys.stderr)
        return 1
    with contextlib.nullcontext(_BASE_URL.value) if _BASE_URL.value else started() as url:
        with urllib.request.urlopen(f"{url}/v1/models") as response:
            served = json.load(response)["data"][0]["id"]
        target = Target(url=url, name=_NAME.value or served)
        cases: list[Case] = []
        for suite in _SUITES.value:
            for case in SUITES[suite](target):
                if case.suite not in {known.suite for known in cases}:
                    print(f"{case.suite}: done", file=sys.stderr, flush=True)
                cases.append(case)
    print(table(cases))
    counts = {suite: dict(Counter(c.outcome for c in cases if c.suite == suite))
              for suite in dict.fromkeys(case.suite for case in cases)}  # fmt: skip
    print(json.dumps({"url": url, "model": target.name, "suites": counts}))
    return int(any(case.outcome == "failed" for case in cases))


if __name__ == "__main__":
    app.run(main)
