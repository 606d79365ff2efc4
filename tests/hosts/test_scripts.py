"""What starts many hosts uses flags that exist, and gives every host its own number."""

import os
import re
import subprocess
from pathlib import Path

import yaml

from tests.test_readme import ROOT, flags_of

SERVE = ROOT / "tpustream/serve/__main__.py"
GCLOUD = """#!/bin/sh
case "$*" in
  *describe*) echo "10.0.0.7;10.0.0.8;10.0.0.9" ;;
  *) for word in "$@"; do echo "$word"; done ;;
esac
"""


def known(words: list[str]) -> bool:
    """Whether every flag among the words is one of the server's."""
    return {word[2:].partition("=")[0] for word in words if word.startswith("--")} <= flags_of(SERVE)


def test_the_manifest_starts_what_exists():
    """Flags, and the numbers that have to be alike."""
    jobset, service = yaml.safe_load_all((ROOT / "scripts/jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert known(container["command"])
    assert spec["parallelism"] == spec["completions"] == 4 and "--hosts=4" in container["command"]
    first = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    assert f"--coordinator={first}:8476" in container["command"]
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() >= labels.items()


def test_the_script_starts_every_worker(tmp_path: Path):
    """With a stand-in for gcloud: as many hosts as addresses, the first one leads, quotes survive."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    run = subprocess.run(
        [ROOT / "scripts/tpu_pod.sh", "slice", "zone-a", "--model=a folder"],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    *_, command = run.stdout.splitlines()
    assert "--worker=all" in run.stdout
    assert command.startswith("python3 -u -m tpustream.serve --host_index=$(curl ")
    assert "agent-worker-number) --hosts=3 --coordinator=10.0.0.7:8476 --model=a\\ folder" in command
    assert known(re.findall(r"--\w+(?==)", command))
