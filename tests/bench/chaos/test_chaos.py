"""The chaos in short: a server process that is killed passes, and what can go wrong fails its check."""

import asyncio
import sys
from pathlib import Path

from tpustream.bench.chaos.cases import draw
from tpustream.bench.chaos.run import Chaos
from tpustream.bench.chaos.server import MortalServer
from tpustream.bench.soak.checks import failed, table

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-u", str(ROOT / "tests" / "serve" / "command.py"), "tpustream.serve")
WINDOW = 4.0


def test_nobody_notices(monkeypatch):
    """Connections that break in every way, and two kills: whole answers, nothing twice, nothing kept."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cases = draw(40, seed=3, most_tokens=32)
    arguments = ["--model=brisk", f"--resume_window_seconds={WINDOW}", "--slots=8"]
    with MortalServer(arguments, COMMAND) as server:
        chaos = Chaos(server, cases, at_once=16, kills=2, seed=1)

        async def run():
            await chaos.run()
            return await chaos.compare(), await chaos.settle(WINDOW)

        checks = chaos.checks(*asyncio.run(run()), most_failed=0.0)
    assert not failed(checks), table(checks)
    assert server.kills == 2
    assert chaos.resumes["live"] and chaos.resumes["replayed"] and chaos.resumes["regenerated"], chaos.resumes
    assert set(chaos.outcomes()) == {"whole", "left"}
