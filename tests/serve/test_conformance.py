"""scripts/conformance.py: what suites report is counted as it is, and the exit code tells."""

import importlib.util
import json
from pathlib import Path

import pytest
from absl import flags

from tpustream.serve.answer import Settings

SCRIPT = Path(__file__).parents[2] / "scripts" / "conformance.py"
JUNIT = """<testsuites><testsuite>
<testcase classname="a.B" name="one"/>
<testcase classname="a.B" name="two"><failure message="wanted 1">got\n  2</failure></testcase>
<testcase classname="a.B" name="three"><error message="boom"/></testcase>
<testcase classname="a.B" name="four"><skipped message="not here"/></testcase>
<testcase name="tool-calling"><failure message="400"/></testcase>
</testsuite></testsuites>"""
COMPLY = {
    "results": [
        {"id": "basic", "status": "passed"},
        {"id": "image-input", "status": "failed", "errors": ["HTTP 400"]},
        {"id": "usage", "status": "failed", "errors": ["none", "at all"]},
    ]
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("conformance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for flag in flags.FLAGS.flags_by_module_dict().get("conformance", []):
        delattr(flags.FLAGS, flag.name)


def test_outcomes_and_reasons(script):
    """A failure stays one unless this server is known not to serve it, and each says why."""
    cases = [*script.junit_cases("j", JUNIT), *script.comply_cases("c", json.dumps(COMPLY))]
    assert [(case.name, case.outcome, case.reason) for case in cases] == [
        ("a.B::one", "passed", ""),
        ("a.B::two", "failed", "wanted 1 got 2"),
        ("a.B::three", "failed", "boom"),
        ("a.B::four", "skipped", "not here"),
        ("tool-calling", "skipped", script.TOOLS),
        ("basic", "passed", ""),
        ("image-input", "skipped", script.IMAGES),
        ("usage", "failed", "none; at all"),
    ]


@pytest.mark.parametrize("outcome", ["passed", "failed"])
def test_a_run_ends_with_json_and_a_code(script, served, capsys, monkeypatch, outcome):
    """Asked of a real server which model it has; one failure fails the run."""

    def suite(target):
        yield script.Case(suite="fake", name=target.name, outcome=outcome)

    monkeypatch.setattr(script, "SUITES", {"fake": suite})
    flags.FLAGS([str(SCRIPT), f"--base_url={served.url}", "--suites=fake"])
    assert script.main(["conformance"]) == int(outcome == "failed")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"url": served.url, "model": "scripted/bytes", "suites": {"fake": {outcome: 1}}}
    flags.FLAGS([str(SCRIPT), "--suites=fake,other"])
    assert script.main(["conformance"]) == 1


def test_the_server_takes_the_flags_that_it_is_started_with(script):
    """Every field that is dropped for the suites can be dropped."""
    assert Settings(ignored_fields=script.IGNORED).ignored_fields == script.IGNORED
