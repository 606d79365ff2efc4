"""The generated tests of the installed OpenAI client's own version, from its source archive."""

import importlib.metadata
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tpustream.bench.conformance.cases import Case, Suite, Target
from tpustream.bench.conformance.pytest_run import junit_cases, model_names, run_pytest
from tpustream.weights.cache import cache_folder

FILES = {
    "openai-python completions": "test_completions.py",
    "openai-python chat": "chat/test_completions.py",
    "openai-python models": "test_models.py",
    "openai-python responses": "test_responses.py",
    "openai-python embeddings": "test_embeddings.py",
}
CREATE = "create or (test_models and (list or retrieve))"
# The tests send a value for every parameter that OpenAI's description has, references to stored objects
# that exist nowhere among them. By default each of these is refused by name. Their strict client reads
# vectors as numbers only, yet asks for base64.
IGNORED = (
    "suffix",
    "context_management",
    "conversation",
    "previous_response_id",
    "prompt",
    "encoding_format",
)


def run(target: Target) -> Iterator[Case]:
    """Each file in turn."""
    for suite, file in FILES.items():
        arguments = ("-o", "addopts=", "-k", CREATE, f"tests/api_resources/{file}")
        report = run_pytest(source(), arguments, {"TEST_API_BASE_URL": f"{target.url}/v1"})
        yield from junit_cases(suite, report)


def names() -> set[str]:
    """The models that the tests ask for."""
    return model_names(source() / "tests/api_resources" / file for file in FILES.values())


def source() -> Path:
    """The client's source archive, unpacked in the cache: its wheel has no tests."""
    version = importlib.metadata.version("openai")
    folder = cache_folder() / "conformance"
    if not (folder / f"openai-{version}").exists():
        folder.mkdir(parents=True, exist_ok=True)
        fetch = ("download", "--quiet", "--no-deps", "--no-binary=:all:", f"--dest={folder}")
        subprocess.run([sys.executable, "-m", "pip", *fetch, f"openai=={version}"], check=True)
        with tarfile.open(folder / f"openai-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / f"openai-{version}"


SUITE = Suite(run=run, names=names, flags=(f"--ignored_fields={','.join(IGNORED)}", "--ring_length=128"))
