"""Building the C++ kernels: once a machine, and what is said where it does not work."""

import logging

import pytest

from tests.ops.conftest import needs_compiler
from tpustream.ops.cpu import build


def test_without_a_compiler_it_says_so_once(tmp_path, monkeypatch, caplog):
    """The slower path is taken aloud, and only a single CPU device asks for the kernel at all."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert not build.available(tmp_path)
        assert not build.available(tmp_path)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "no-such-compiler" in caplog.text and "XLA path" in caplog.text
    assert not build.usable(tmp_path, platform="gpu", devices=1)
    assert not build.usable(tmp_path, platform="cpu", devices=8)


@needs_compiler
def test_a_compiler_that_fails_shows_what_it_said(tmp_path):
    """The reason is in the message, and no broken library stays behind."""
    with pytest.raises(build.BuildError, match="no-such-option"):
        build.build(tmp_path, machine=("--no-such-option",))
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_a_library_is_built_once(folder, monkeypatch):
    """A second process finds the file and compiles nothing; other options, another compiler do."""
    path = build.build(folder)
    version = build._version(build.find_compiler())
    monkeypatch.setattr(build, "_version", lambda compiler: version)
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail("compiled again"))
    assert build.build(folder) == path
    with pytest.raises(pytest.fail.Exception):
        build.build(folder, machine=(*build.native_options(), "-DOTHER"))
    monkeypatch.setattr(build, "_version", lambda compiler: f"{version}, newer")
    with pytest.raises(pytest.fail.Exception):
        build.build(folder)
