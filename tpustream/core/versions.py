"""What this process runs: versions of the packages that executables depend on, and of this one's source."""

import functools
import hashlib
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
SOURCES = (".py", ".cc", ".h")
DEPENDED_ON = ("jax", "jaxlib", "libtpu")


def versions() -> dict[str, str]:
    """Package -> version, and a digest of the source."""
    found = {}
    for package in DEPENDED_ON:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return {"source of tpustream": source_digest(), **found}


@functools.cache
def source_digest() -> str:
    """Hash of every source file of tpustream, 16 hexadecimal digits."""
    running = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in SOURCES:
            content = path.read_bytes()
            running.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode())
            running.update(content)
    return running.hexdigest()[:16]
