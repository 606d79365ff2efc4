"""The server tests of llama.cpp, as llama-cpp-python's source archive carries them.

They run with DEBUG_EXTERNAL=1: against a server that is there, whatever options a test would have
started its own with.
"""

import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tpustream.bench.conformance.cases import Case, Suite, Target
from tpustream.bench.conformance.llama_cpp_cases import NOT_APPLICABLE, NOT_RUN
from tpustream.bench.conformance.pytest_run import WITHOUT_PLUGINS, junit_cases, model_names, run_pytest
from tpustream.bench.peers.llama_cpp_build import SOURCE, VERSION, fetch_archive
from tpustream.weights.cache import cache_folder

FILES = (
    "test_basic.py",
    "test_chat_completion.py",
    "test_compat_oai_responses.py",
    "test_completion.py",
    "test_embedding.py",
)
PLUGIN = "tpustream.bench.conformance.llama_cpp_routes"


def run(target: Target) -> Iterator[Case]:
    """Each file in turn."""
    address = urlsplit(target.url)
    for file in FILES:
        left_out = (f"--deselect={name}" for name in NOT_RUN if name.startswith(f"unit/{file}::"))
        arguments = ("-p", PLUGIN, *left_out, f"unit/{file}")
        environment = {
            "DEBUG_EXTERNAL": "1",
            "PORT": str(address.port),
            "TPUSTREAM_HOST": address.hostname,
        } | WITHOUT_PLUGINS
        report = run_pytest(source(), arguments, environment)
        yield from junit_cases("llama.cpp", report)


def names() -> set[str]:
    """The models that the tests ask for."""
    return model_names(source() / "unit" / file for file in FILES)


def source() -> Path:
    """The folder of the tests, unpacked in the cache."""
    kept = cache_folder() / "conformance" / f"llama.cpp-{VERSION}"
    if not kept.is_dir():
        archives = cache_folder() / "peers"
        archives.mkdir(exist_ok=True)
        wanted = f"{SOURCE}/tools/server/tests"
        kept.parent.mkdir(exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=kept.parent) as temporary,
            tarfile.open(fetch_archive(archives)) as file,
        ):
            members = (member for member in file if member.name.startswith(f"{wanted}/"))
            file.extractall(temporary, members, filter="data")
            os.replace(Path(temporary) / wanted, kept)
    return kept


SUITE = Suite(
    run=run,
    names=names,
    not_applicable=NOT_APPLICABLE,
    not_run=NOT_RUN,
    flags=("--ring_length=1024",),
)
