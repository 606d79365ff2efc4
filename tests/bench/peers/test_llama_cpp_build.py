"""Where llama.cpp's programs come from; cmake and the compiler are stand-ins, nothing is fetched or built."""

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from tests.bench.peers.programs import (
    CRASH,
    FAKE_BATCHED_BENCH,
    FAKE_BENCH,
    llama_cpp_folder,
    script,
)
from tpustream.bench.peers import llama_cpp_build
from tpustream.bench.peers.llama_cpp_build import ARCHIVE, SOURCE, build, find_llama_cpp
from tpustream.bench.peers.work import PeerError
from tpustream.weights.cache import CACHE_VARIABLE

MODEL = Path("model.gguf")
CMAKE = """
out = Path(sys.argv[sys.argv.index("-B") + 1] if "-B" in sys.argv else sys.argv[2])
if "-B" in sys.argv:
    assert (Path(sys.argv[sys.argv.index("-S") + 1]) / "CMakeLists.txt").is_file()
    out.mkdir(exist_ok=True)
    (out / "flags").write_text(" ".join(sys.argv))
    sys.exit()
plain = "-fno-dse" in (out / "flags").read_text()
(out / "bin").mkdir(exist_ok=True)
for name, body in {programs}:
    path = out / "bin" / name
    body = ({first}) if plain else body
    path.write_text("#!" + sys.executable + "\\nimport json, os, signal, sys\\n" + body)
    path.chmod(0o755)
"""
GCC = "print('c++ (Debian 12.2.0) 12.2.0\\nCopyright (C) 2022 Free Software Foundation, Inc.')"
CLANG = "print('clang version 19.1.7')"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH that holds only stand-ins, and the function that makes them."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)

    def make(cmake: str, compiler: str = GCC) -> None:
        script(folder / "cmake", cmake)
        script(folder / "c++", compiler)

    return make


def cmake(first: str | None = None) -> str:
    """A cmake that builds working programs, or, with GCC's flags, programs of the body `first`."""
    programs = [("llama-bench", FAKE_BENCH), ("llama-batched-bench", FAKE_BATCHED_BENCH)]
    return CMAKE.replace("{programs}", repr(programs)).replace(
        "{first}", "body" if first is None else repr(first)
    )


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The archive in the cache, with a source of one file; its hash is the one that is wanted."""
    folder = tmp_path / "cache" / "peers"
    folder.mkdir(parents=True)
    with tarfile.open(folder / ARCHIVE, "w:gz") as file:
        for name in (f"{SOURCE}/CMakeLists.txt", "llama_cpp_python-0.0.0/not-wanted"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    sha256 = hashlib.sha256((folder / ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setattr(build, "__kwdefaults__", {"sha256": sha256})
    return folder / ARCHIVE


def find(chosen=None):
    return find_llama_cpp(chosen, MODEL, threads=2)


def test_a_given_folder_comes_first(tmp_path, tools):
    """--llama_cpp wins over PATH, and a folder without the programs is an error, not a search."""
    llama_cpp_folder(tmp_path / "tools")
    given = llama_cpp_folder(tmp_path / "given")
    assert find(given).folder == given
    (given / "llama-batched-bench").unlink()
    with pytest.raises(PeerError, match=r"wanted the programs llama-batched-bench in .*given, got none"):
        find(given)


def test_path_comes_before_the_cache(tmp_path, tools):
    """What the user installed is measured before what was built."""
    kept = llama_cpp_folder(tmp_path / "cache" / "peers" / f"llama.cpp-{llama_cpp_build.VERSION}")
    (kept / "build.json").write_text('{"build": "kept"}')
    assert (find().folder, find().build) == (kept, {"build": "kept"})
    on_path = llama_cpp_folder(tmp_path / "tools")
    assert (find().folder, find().build) == (on_path, {"source": "PATH"})


def test_programs_that_crash_here_are_refused(tmp_path, tools):
    """Programs of another processor are named with their folder and signal, before any measurement."""
    given = llama_cpp_folder(tmp_path / "given", bench=CRASH)
    with pytest.raises(PeerError, match=r"(?s)SIGILL.*wanted programs for this processor, .*given"):
        find(given)


def test_a_build_is_kept(tools, archive, capfd):
    """The first start builds and says how; the second uses what was kept, without cmake."""
    tools(cmake())
    built = find()
    assert built.build["build"] == "for this processor"
    assert built.build["flags"] == "-fno-tree-dse -fno-dse"
    assert "building llama.cpp" in capfd.readouterr().err
    tools("sys.exit(1)")
    assert find() == built
    assert sorted(path.name for path in archive.parent.iterdir()) == sorted([ARCHIVE, built.folder.name])


def test_flags_of_gcc_are_for_gcc(tools, archive):
    """Other compilers have no such flags and do not need them."""
    tools(cmake(first=CRASH), CLANG)
    assert find().build["flags"] == ""


def test_a_build_that_crashes_is_replaced_aloud(tools, archive, capfd):
    """Without AMX is the second choice; the user and the record are told."""
    tools(cmake(first=CRASH))
    built = find()
    assert built.build["build"] == "for this processor without AMX"
    assert json.loads((built.folder / "build.json").read_text()) == built.build
    said = capfd.readouterr().err
    assert "WARNING: llama.cpp built for this processor does not run here" in said and "SIGILL" in said


def test_no_build_runs(tools, archive):
    """Every build is named with its crash, and nothing is kept."""
    tools(cmake(first=CRASH).replace("if plain", "if True"))
    with pytest.raises(
        PeerError, match=r"(?s)wanted a build that runs, got none.*SIGILL.*without AMX.*SIGILL"
    ):
        find()
    assert [path.name for path in archive.parent.iterdir()] == [ARCHIVE]


def test_a_failed_build_shows_the_end_of_its_log(tools, archive):
    """The compiler's last words reach the user; another build is not tried."""
    lines = "\n".join(f"line {number}" for number in range(40))
    tools(f"print({lines!r}); print('error: no member named x', file=sys.stderr); sys.exit(2)")
    with pytest.raises(PeerError) as caught:
        find()
    message = str(caught.value)
    assert message.startswith("llama.cpp's configuration: wanted exit code 0, got exit code 2")
    assert message.endswith("error: no member named x")
    assert "line 39" in message and "line 20" not in message


def test_tools_that_are_missing_are_named(tools, archive, tmp_path):
    """No cmake and no compiler are two different errors."""
    with pytest.raises(PeerError, match="wanted cmake to build it"):
        find()
    script(tmp_path / "tools" / "cmake", "")
    with pytest.raises(PeerError, match=r"wanted a C\+\+ compiler to build it, got no 'c\+\+' on PATH"):
        find()


def test_an_archive_with_another_hash_is_refused(tools, archive):
    """What is not the pinned archive is not built."""
    archive.write_bytes(b"else")
    tools(cmake())
    with pytest.raises(PeerError, match=rf"{ARCHIVE}: wanted sha256 \w+, got \w+; remove"):
        find()


def test_no_network(tools, tmp_path, monkeypatch):
    """pip's reason, and what to do without a network."""
    tools(cmake())
    python = script(
        tmp_path / "python", "print('ERROR: No matching distribution', file=sys.stderr); sys.exit(1)"
    )
    monkeypatch.setattr(sys, "executable", os.fspath(python))
    with pytest.raises(PeerError, match=r"got exit code 1 of pip: ERROR: No matching.*Offline: put it into"):
        find()
