"""Programs of others: run to their end, with errors that say how they ended and what they said last."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tpustream.bench.peers.work import PeerError

TAIL = 15  # lines of output that an error shows
PROGRESS_SECONDS = 10.0  # between two lines of progress


def run_program(command: Sequence[str], *, timeout: float) -> str:
    """What the program wrote to stdout.

    Raises PeerError where it does not start, ends with another exit code than 0 or by a signal, or
    takes longer than `timeout` seconds.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except OSError as error:
        raise PeerError(f"{command[0]}: wanted a program that starts, got: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{command[0]}: wanted an end within {timeout:.0f} s, got none") from error
    if done.returncode != 0:
        raise PeerError(ending(command[0], done.returncode, done.stderr or done.stdout))
    return done.stdout


def run_logged(command: Sequence[str], log: Path, *, title: str) -> None:
    """Run a long program whose output goes to the file `log`; its last line shows on stderr now and then.

    Raises PeerError with the end of the log.
    """
    with log.open("w", encoding="utf-8", errors="replace") as file:
        try:
            running = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise PeerError(f"{command[0]}: wanted a program that starts, got: {error}") from error
        with running:
            shown = time.monotonic()
            for line in running.stdout:
                file.write(line)
                if time.monotonic() - shown > PROGRESS_SECONDS:
                    shown = time.monotonic()
                    print(f"{title}: {line.strip()[:90]}", file=sys.stderr, flush=True)
    if running.returncode != 0:
        raise PeerError(ending(title, running.returncode, log.read_text("utf-8")))


def ending(program: str, code: int, output: str) -> str:
    """How a program failed, in the words of an error; `code` as subprocess gives it."""
    how = f"exit code {code}"
    if code < 0:
        how = (
            f"the signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"
        )
    last = "\n".join(f"    {line}" for line in output.strip().splitlines()[-TAIL:])
    return f"{program}: wanted exit code 0, got {how}" + (f"; it said last:\n{last}" if last else "")
