"""Devices of a TPU that is not there: libtpu's description of a topology, for compiling only."""

import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

_NAME = re.compile(r"([a-z]\w*):\d+(x\d+)+")
_SPELLING = "VERSION:SIZES, as v5e:2x4, v6e:2x2, v5p:2x2x1 or v5e:4x4"

# Without these libtpu asks Google's metadata server what it runs on, or waits for another process's lock.
_OFFLINE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def version_of(name: str) -> str:
    """The TPU version that a topology's name begins with. Raises ValueError for another spelling."""
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"topology: wanted {_SPELLING}, got {name!r}")
    return found[1]


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Devices of a topology, to be compiled for; none of them is there to run anything.

    Raises ValueError without libtpu, or for a topology that it does not know. The process keeps computing on
    its CPU: call it before anything else has started jax.
    """
    version_of(name)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ValueError(
            "the TPU compiler: wanted the package libtpu, got none; pip install 'tpustream[plan]'"
        ) from None
    for key, value in _OFFLINE.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology: wanted {_SPELLING}, got {name!r}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].partition(": ")[2]
