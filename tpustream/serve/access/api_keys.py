"""API keys: a file of hashes, read again when it changes.

One key a line: `NAME:SHA256`, where SHA256 is the hash of the key in 64 hexadecimal digits, and after
it, separated by spaces, bounds of that key (`requests_per_minute=60 tokens_per_minute=20000
streams=4`). Empty lines and those that begin with # say nothing. `python -m tpustream.serve.make_key
NAME` makes a key and its line. The keys are random numbers of 256 bits, not passwords, so a plain hash
cannot be turned back by guessing.
"""

import dataclasses
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from tpustream.serve.access.clients import Limits

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
HASH = re.compile(r"[0-9a-f]{64}")
LOOK_EVERY = 1.0  # seconds between two looks at the file

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A line of the file. `limits` is None where the line has none."""

    name: str
    digest: bytes
    limits: Limits | None = None


class KeyFile:
    """The keys of a file, as it is now.

    Raises OSError or ValueError, with the file and the line, when it cannot be read at first. A file
    that is broken later is reported in the log, and the keys that were known stay.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._path = path
        self._clock = clock
        self._seen = _state(path)
        self._keys = read_keys(path)
        self._looked = clock()

    def find(self, key: str) -> Key | None:
        """The entry of this key, or None. Takes the same time for every key."""
        self._look()
        digest = digest_of(key)
        found = None
        for entry in self._keys:
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        return found

    def read_again(self) -> None:
        """Read the file now, and say so in the log. From any thread."""
        self._read(unchanged_too=True)

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._read(unchanged_too=False)

    def _read(self, *, unchanged_too: bool) -> None:
        try:
            state = _state(self._path)
            if state == self._seen and not unchanged_too:
                return
            self._seen = state
            self._keys = read_keys(self._path)
        except (OSError, ValueError) as error:
            _log.error("API keys: the old ones stay, for the file cannot be read: %s", error)
        else:
            _log.info("API keys: %d read from %s", len(self._keys), self._path)


def read_keys(path: Path) -> tuple[Key, ...]:
    """All keys of a file. Raises OSError, or ValueError that names the line and shows none of it."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path} line {number}"
        entry, *bounds = line.split()
        name, _, digest = entry.partition(":")
        if not NAME.fullmatch(name) or not HASH.fullmatch(digest.lower()):
            # The line is not shown: it may hold a key that somebody forgot to hash.
            raise ValueError(f"{where}: wanted NAME:SHA256, {NAME.pattern} and 64 hexadecimal digits")
        if name in keys:
            raise ValueError(f"{where}: wanted one key a name, got {name!r} again")
        limits = _limits(bounds, where) if bounds else None
        keys[name] = Key(name=name, digest=bytes.fromhex(digest), limits=limits)
    if not keys:
        raise ValueError(f"{path}: wanted at least one key, got none")
    return tuple(keys.values())


def digest_of(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode()).digest()


def make_key(name: str) -> tuple[str, str]:
    """A new key and its line for the file. Raises ValueError for a name that a file cannot hold."""
    if not NAME.fullmatch(name):
        raise ValueError(f"name: wanted {NAME.pattern}, got {name!r}")
    key = "sk-" + secrets.token_urlsafe(32)
    return key, f"{name}:{digest_of(key).hex()}"


def _limits(bounds: list[str], where: str) -> Limits:
    names = {field.name for field in dataclasses.fields(Limits)}
    values = {}
    for bound in bounds:
        name, _, value = bound.partition("=")
        if name not in names or not value.isdecimal():
            raise ValueError(f"{where}: wanted bounds {', '.join(sorted(names))} as NAME=NUMBER")
        values[name] = int(value)
    return Limits(**values)


def _state(path: Path) -> tuple[int, int, int]:
    state = os.stat(path)
    return state.st_mtime_ns, state.st_size, state.st_ino
