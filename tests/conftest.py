"""Shared by all tests: eight CPU devices, a strict jax, and the embedded model when it is there."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Compilation makes the first example slow, and a fixed seed makes a failure repeatable.
settings.register_profile("tpustream", deadline=None, derandomize=True)
settings.load_profile("tpustream")


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """The embedded model's file, fetched once into the cache."""
    from tpustream.weights.resolve import DEFAULT_MODEL, resolve_model

    return resolve_model(DEFAULT_MODEL).path


@pytest.fixture(scope="session")
def cpu_devices() -> list[jax.Device]:
    """The eight stand-ins for chips."""
    return jax.devices("cpu")
