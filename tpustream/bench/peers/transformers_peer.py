"""transformers as a peer: `generate` on the same GGUF file, in a process of its own.

The process may run another interpreter, so tpustream's own needs no torch. It holds the model in
float32, which is how transformers reads GGUF files, and sleeps between measurements.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tpustream.bench.peers import transformers_worker
from tpustream.bench.peers.programs import ending
from tpustream.bench.peers.work import PeerError, PeerMissing, Workload


class Transformers:
    """transformers on one GGUF file; see `work.Peer`.

    Args:
      python: the interpreter that has torch, transformers and gguf; None for this one.
      worker: the program that answers; another one in tests.

    Raises:
      PeerMissing: this interpreter lacks one of them, and no other was named.
      PeerError: the named interpreter lacks one of them, or the model does not load.
    """

    name = "transformers"

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        python: Path | None = None,
        worker: Path = Path(transformers_worker.__file__),
    ):
        self._python = str(python or sys.executable)
        with contextlib.ExitStack() as opened:
            self._log = opened.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            try:
                self._process = subprocess.Popen(
                    [self._python, str(worker), str(model), str(threads)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    text=True,
                )
            except OSError as error:
                raise PeerError(f"transformers: wanted a Python that starts, got: {error}") from error
            opened.enter_context(self._process)
            opened.callback(self._end)
            hello = self._answer()
            if "missing" in hello:
                kind = PeerMissing if python is None else PeerError
                raise kind(
                    f"transformers: wanted torch, transformers and gguf in {self._python}, "
                    f"got: {hello['missing']}"
                )
            self._opened = opened.pop_all()
        self._versions = hello["ready"]

    def measure(self, workload: Workload) -> float:
        """Tokens a second. Raises PeerError."""
        # A process that is gone shows below, where the reason is known.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(dataclasses.asdict(workload)), file=self._process.stdin, flush=True)
        return workload.streams * workload.tokens / self._answer()["seconds"]

    def describe(self) -> dict[str, object]:
        """Versions and dtype."""
        return {"python": self._python, **self._versions}

    def close(self) -> None:
        """End the process."""
        self._opened.close()

    def _end(self) -> None:
        """The process ends when its stdin does."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._log.seek(0)
        raise PeerError(ending("transformers", code, self._log.read()))
