"""How much memory a process and the devices hold."""

import os
from pathlib import Path

import jax

PROCESSES = Path("/proc")
MEGABYTE = 1 << 20


def resident_bytes(pid: int, processes: Path = PROCESSES) -> int | None:
    """Bytes of a process that lie in memory (proc_pid_statm(5)); None where the system does not tell."""
    file = processes / str(pid) / "statm"
    return int(file.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.is_file() else None


def array_bytes() -> int:
    """Bytes of all jax arrays of this process that are alive."""
    return sum(array.nbytes for array in jax.live_arrays())
