"""Devices of a TPU that is not there: libtpu's description of a topology, for compiling only."""

import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from tpustream.config.libtpu import work_offline

_NAME = re.compile(r"([a-z]\w*):\d+(x\d+)+")
_SPELLING = "VERSION:SIZES, as v5e:2x4, v6e:2x2, v5p:2x2x1 or v5e:4x4"


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
    work_offline()
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology: wanted {_SPELLING}, got {name!r}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].partition(": ")[2]
