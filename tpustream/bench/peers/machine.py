"""The processor: its name, which of its cores every side may use, and how busy all of them are."""

import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
CPU_TIMES = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal (proc_stat(5))


def cpu_name(info: Path = CPU_INFO) -> str:
    """The processor's own name, where the system tells it."""
    if info.is_file():
        for line in info.read_text("utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def busy_seconds(times: Path = CPU_TIMES) -> float | None:
    """Seconds that all cores together worked since the machine started; None where nobody tells."""
    if not times.is_file():
        return None
    ticks = times.read_text("ascii").split("\n", 1)[0].split()[1:]
    return sum(int(ticks[place]) for place in _BUSY) / os.sysconf("SC_CLK_TCK")


def keep_to_cores(threads: int) -> None:
    """Let this process, and those that it starts, use `threads` cores; before jax makes its threads.

    Raises ValueError where fewer cores are there, or where the system cannot do so.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads != os.cpu_count():
            raise ValueError(
                f"threads: wanted {os.cpu_count()}, all cores (this system cannot use fewer), got {threads}"
            )
        return
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise ValueError(f"threads: wanted 1 to {len(cores)}, the cores of this machine, got {threads}")
    os.sched_setaffinity(0, cores[:threads])
