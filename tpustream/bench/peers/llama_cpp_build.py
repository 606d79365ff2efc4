"""Where llama.cpp's programs come from: a folder, PATH, the cache, or a build of the source archive.

The Python package index has all of llama.cpp inside llama-cpp-python's source archive, so nothing but
pip, cmake and a C++ compiler is needed. A build is kept in the cache only after it has run.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tpustream.bench.peers.llama_cpp import PROGRAMS, Programs, smoke_test
from tpustream.bench.peers.programs import run_logged, run_program
from tpustream.bench.peers.work import PeerError
from tpustream.core.errors import ModelError
from tpustream.weights.cache import cache_folder
from tpustream.weights.embedded import check_hash

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
ARCHIVE = f"llama_cpp_python-{VERSION}.tar.gz"
ARCHIVE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SOURCE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp"

OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
           "-DLLAMA_CURL=OFF", "-DGGML_NATIVE=ON")  # fmt: skip
# GCC 12 believes that _tile_loadconfig reads 8 bytes, and drops the stores of the other 56 as dead: on a
# processor with AMX its programs then end with SIGILL or SIGSEGV. Both passes that drop stores are off.
GCC_FLAGS = "-fno-tree-dse -fno-dse"
WITHOUT_AMX = "-U__AMX_INT8__"


def find_llama_cpp(chosen: Path | None, model: Path, *, threads: int) -> Programs:
    """Programs that have run on this machine: in `chosen`, else on PATH, else in the cache, else built.

    Args:
      chosen: a folder with both programs.
      model: a GGUF file, for the smoke test.

    Raises:
      PeerError: `chosen` lacks a program; a program crashes; the archive cannot be fetched or built.
    """
    kept = cache_folder() / "peers" / f"llama.cpp-{VERSION}"
    on_path = shutil.which(PROGRAMS[0])
    if chosen is not None:
        found = programs_in(chosen, {"source": "given"})
    elif on_path and set(PROGRAMS) <= set(os.listdir(Path(on_path).parent)):
        found = programs_in(Path(on_path).parent, {"source": "PATH"})
    elif kept.is_dir():
        found = programs_in(kept, json.loads((kept / "build.json").read_text("utf-8")))
    else:
        return build(kept, model, threads=threads)
    try:
        smoke_test(found, model, threads=threads)
    except PeerError as error:
        raise PeerError(
            f"{error}\nwanted programs for this processor, got those in {found.folder}"
        ) from error
    return found


def programs_in(folder: Path, build: dict[str, str]) -> Programs:
    """The programs of a folder. Raises PeerError where one is missing."""
    missing = [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]
    if missing:
        raise PeerError(f"llama.cpp: wanted the programs {' and '.join(missing)} in {folder}, got none")
    return Programs(folder=folder, build=build)


def build(kept: Path, model: Path, *, threads: int, sha256: str = ARCHIVE_SHA256) -> Programs:
    """Build llama.cpp and keep its programs in the folder `kept`; the first build that runs.

    Args:
      kept: does not exist yet; its parent holds the archive, or gets it.
      sha256: of the archive.

    Raises:
      PeerError: no tools, no archive, a build that fails, or programs that crash in every build.
    """
    compiler = os.environ.get("CXX", "c++")
    for tool, what in (("cmake", "cmake"), (compiler, "a C++ compiler")):
        if shutil.which(tool) is None:
            raise PeerError(f"llama.cpp: wanted {what} to build it, got no {tool!r} on PATH")
    kept.parent.mkdir(parents=True, exist_ok=True)
    archive = fetch_archive(kept.parent, sha256)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=kept.parent) as name:
        temporary = Path(name)
        _say(f"building llama.cpp of {PACKAGE} {VERSION}: some minutes, once")
        with tarfile.open(archive) as file:
            members = (member for member in file if member.name.startswith(f"{SOURCE}/"))
            file.extractall(temporary, members, filter="data")
        crashes = []
        for title, flags in _builds(compiler).items():
            record = {"source": f"{PACKAGE} {VERSION}", "build": title, "flags": flags}
            built = _compile(temporary, flags, record)
            try:
                smoke_test(built, model, threads=threads)
            except PeerError as error:
                crashes.append(f"built {title}: {error}")
                _say(f"WARNING: llama.cpp built {title} does not run here; it is left out. {error}")
                continue
            fresh = temporary / "kept"
            fresh.mkdir()
            for program in PROGRAMS:
                shutil.copy2(built.path(program), fresh / program)
            (fresh / "build.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
            os.replace(fresh, kept)
            return Programs(folder=kept, build=record)
    raise PeerError("llama.cpp: wanted a build that runs, got none\n" + "\n".join(crashes))


def _builds(compiler: str) -> dict[str, str]:
    """Name -> C and C++ flags of the builds to try, in this order."""
    gcc = "Free Software Foundation" in run_program([compiler, "--version"], timeout=60.0)
    return {"for this processor": GCC_FLAGS if gcc else "", "for this processor without AMX": WITHOUT_AMX}


def fetch_archive(folder: Path, sha256: str = ARCHIVE_SHA256) -> Path:
    """The source archive in `folder`, fetched there by pip where it is not, and its hash checked."""
    path = folder / ARCHIVE
    if not path.exists():
        _say(f"fetching {PACKAGE} {VERSION} (77 MB, once)")
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            wanted = ("--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "--dest", temporary)
            command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *wanted]
            # pip draws its progress bar on stdout, where the last line is to be JSON.
            done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0 or not (Path(temporary) / ARCHIVE).is_file():
                reasons = [
                    line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line
                ]
                raise PeerError(
                    f"{ARCHIVE}: wanted it from the package index, got exit code {done.returncode} of pip: "
                    f"{' '.join(reasons) or 'no error message'}. Offline: put it into {folder}, or give "
                    "built programs (--llama_cpp), or leave llama.cpp out (--peers)"
                )
            os.replace(Path(temporary) / ARCHIVE, path)
    try:
        check_hash(path, sha256)
    except ModelError as error:
        raise PeerError(f"{error}; remove {path} to have it fetched again") from error
    return path


def _compile(folder: Path, flags: str, record: dict[str, str]) -> Programs:
    """One build of the source in `folder`, over the one before it."""
    log, out = folder / "build.log", folder / "build"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [*OPTIONS, f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
    configure = ["cmake", *generator, "-S", str(folder / SOURCE), "-B", str(out), *options]
    run_logged(configure, log, title="llama.cpp's configuration")
    jobs = str(os.cpu_count() or 1)
    make = ["cmake", "--build", str(out), "--parallel", jobs, "--target", *PROGRAMS]
    run_logged(make, log, title="llama.cpp's build")
    return programs_in(out / "bin", record)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
