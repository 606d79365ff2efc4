"""Suites that are written for pytest: run in a process of their own, read back as JUnit's XML."""

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tpustream.bench.conformance.cases import Case

PACKAGE_ROOT = Path(__file__).parents[3]  # where the plugins of this folder are imported from
WITHOUT_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # environment of suites that need none


def run_pytest(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """pytest in `folder` with more environment; the report as JUnit's XML.

    Raises RuntimeError, with what pytest printed, where there is no report.
    """
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.xml")
        options = ("-q", "-p", "no:cacheprovider", f"--junitxml={report}")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *arguments],
            cwd=folder,
            env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not report.exists():
            raise RuntimeError(f"{' '.join(arguments)}: wanted a report of pytest, got:\n{done.stdout}")
        return report.read_text(encoding="utf-8")


def junit_cases(suite: str, report: str) -> Iterator[Case]:
    """The cases of a JUnit report; the last part of a class or module goes before a test's name."""
    for case in ElementTree.fromstring(report).iter("testcase"):
        owner = case.get("classname", "").rpartition(".")[2]
        name = "::".join(filter(None, (owner, case.get("name"))))
        for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            found = case.find(tag)
            if found is not None:
                reason = " ".join(f"{found.get('message', '')} {found.text or ''}".split())
                yield Case(suite=suite, name=name, outcome=outcome, reason=reason)
                break
        else:
            yield Case(suite=suite, name=name, outcome="passed")


def model_names(files: Iterable[Path]) -> set[str]:
    """Names of models that sources ask for, as `model="..."` or `"model": "..."`."""
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    return set(re.findall(r'\bmodel"?\s*[:=]\s*"([\w./-]+)"', text))
