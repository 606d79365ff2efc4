"""Which source this package was started from: one word that changes with any file of it."""

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
SOURCES = (".py", ".cc", ".h")


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
