"""The TPU compiler without a TPU: chips of a topology, or a skipped test that says what is missing."""

import importlib.util
import os
from collections.abc import Sequence

import jax
import pytest
from jax.experimental import topologies

_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def chips(topology: str) -> Sequence[jax.Device]:
    """Devices that programs can be compiled for, such as those of "v5e:2x4"; none of them exists."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'libtpu==0.0.42.*'")
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)  # libtpu would look for a machine with chips
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
