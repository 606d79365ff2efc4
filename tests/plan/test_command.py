"""`python -m tpustream.plan` before the compiler is called: what it refuses, and how it says so."""

import os
import sys
from unittest import mock

import pytest

from tpustream.config.libtpu import hush_without_tpu
from tpustream.plan.__main__ import shape_of
from tpustream.plan.topology import topology_devices, version_of


@pytest.mark.parametrize("name", ["v5e", "v5e-8", "2x4", "v5e:2", "v5e:2x4x"])
def test_topologies_are_spelled_so(name):
    """Another spelling is an error that shows the right one."""
    with pytest.raises(ValueError, match=r"wanted VERSION:SIZES, as v5e:2x4.*got"):
        version_of(name)


def test_versions():
    """What the table of chips is asked for."""
    assert [version_of(name) for name in ("v5e:2x4", "v5p:2x2x1", "tpu7x:2x2x1")] == ["v5e", "v5p", "tpu7x"]


def test_without_the_compiler(monkeypatch):
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match="wanted the package libtpu, got none; pip install"):
        topology_devices("v5e:2x4")


def test_models_are_presets_or_models():
    """A preset needs no prefix; anything else is found as every command finds it."""
    assert shape_of("llama-3.1-8b").num_layers == 32
    assert shape_of("random:llama-3.1-70b").num_layers == 80
    with pytest.raises(ValueError, match="model: wanted"):
        shape_of("llama-3.1-9b")


@pytest.mark.parametrize(("device", "hushed"), [("null", True), ("accel0", False), ("vfio", False)])
def test_libtpu_is_hushed_where_there_is_no_tpu(tmp_path, device, hushed):
    """A TPU VM keeps its environment; elsewhere an installed libtpu writes nothing to stderr."""
    (tmp_path / device).touch()
    with mock.patch.dict(os.environ, {"TPU_MIN_LOG_LEVEL": "0"}):
        os.environ.pop("TPU_SKIP_MDS_QUERY", None)
        hush_without_tpu(tmp_path)
        assert ("TPU_SKIP_MDS_QUERY" in os.environ) == hushed
        assert os.environ["TPU_MIN_LOG_LEVEL"] == "0"
