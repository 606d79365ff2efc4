"""The environment of libtpu on a machine without a TPU, where it only compiles, or only gets in the way."""

import os
from pathlib import Path

# Without these libtpu asks Google's metadata server what it runs on, waits for the lock of another process,
# and complains on stderr.
_OFFLINE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_DEVICES = ("accel0", "vfio")  # below /dev, on a TPU VM


def work_offline() -> None:
    """What the user has not set is set; it counts until libtpu is loaded, when jax starts its devices."""
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)


def hush_without_tpu(devices: Path = Path("/dev")) -> None:
    """`work_offline` on a machine that has no TPU: an installed libtpu then says nothing of it."""
    if not any((devices / name).exists() for name in _DEVICES):
        work_offline()
