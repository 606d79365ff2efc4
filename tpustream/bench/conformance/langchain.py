"""ChatModelIntegrationTests of langchain-tests, through ChatOpenAI."""

from collections.abc import Iterator
from pathlib import Path

from tpustream.bench.conformance.cases import Case, Suite, Target
from tpustream.bench.conformance.pytest_run import junit_cases, run_pytest

TESTS = Path(__file__).with_name("langchain_chat_model.py")


def run(target: Target) -> Iterator[Case]:
    """All of them; the suite itself skips what the class says that the model cannot do."""
    # The client keeps its connections for the whole process, so all tests have to share an event loop.
    scopes = ("asyncio_default_test_loop_scope=session", "asyncio_default_fixture_loop_scope=session")
    options = [word for option in ("addopts=", "asyncio_mode=auto", *scopes) for word in ("-o", option)]
    arguments = (*options, f"--rootdir={TESTS.parent}", str(TESTS))
    environment = {
        "TPUSTREAM_URL": f"{target.url}/v1",
        "TPUSTREAM_MODEL": target.name,
        "LANGSMITH_TRACING": "false",
    }
    yield from junit_cases("langchain-tests", run_pytest(TESTS.parent, arguments, environment))


SUITE = Suite(run=run)
