"""OpenAI's description of its API with schemathesis: no 5xx, and answers of the form described."""

import importlib.resources
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tpustream.bench.conformance.cases import Case, Suite, Target
from tpustream.bench.conformance.pytest_run import junit_cases

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
PATIENCE = "--request-timeout=120"  # seconds: an answer may be as long as the context, on any machine
NOT_APPLICABLE = {
    "DELETE /responses/{response_id}": "the description leaves the envelope out of this one error"
}


def run(target: Target) -> Iterator[Case]:
    """The description, as llm-comply carries it, reduced to the operations that are served."""
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
        phases = (
            "--phases=examples,coverage",
            f"--checks={checks}",
            "--max-examples=20",
            "--seed=0",
            PATIENCE,
        )
        reports = ("--report=junit", f"--report-junit-path={report}")
        command = ("-m", "schemathesis.cli", "run", str(spec), f"--url={target.url}/v1", *phases, *reports)
        done = subprocess.run([sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, text=True)
        if not report.exists():
            raise RuntimeError(f"schemathesis: wanted a report, got:\n{done.stdout}")
        yield from junit_cases("schemathesis", report.read_text(encoding="utf-8"))


# Answers without a length of their own are as long as the ring lets them be, and the suite is impatient.
SUITE = Suite(run=run, not_applicable=NOT_APPLICABLE, flags=("--ring_length=128",))
