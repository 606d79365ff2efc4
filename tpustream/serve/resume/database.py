"""Records in an SQLite file, so that a server that was killed knows what it was doing.

Reads happen once, before the server serves. Writes are handed to a thread, which commits all that has
come since its last commit together: the event loop never waits for a disk. What a kill loses is how far
the last checksums reach, never a record that a client has seen for longer than a commit takes. One
process at a time holds the file.
"""

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

from tpustream.serve.resume.record import Record

APPLICATION = 0x7470_7573  # "tpus", by which the file is known as ours
VERSION = 1
LONGEST_AWAY = 24 * 60 * 60  # seconds: nobody comes back to a server that was down for longer
FIXED = ("id", "owner", "route", "key", "digest", "streamed", "created", "body", "model", "asked")
FIELDS = (*FIXED, "counts", "checksums", "tokens", "touched")  # the latter as `_progress` gives them
INSERT = f"INSERT INTO answers ({', '.join(FIELDS)}) VALUES ({', '.join('?' * len(FIELDS))})"
UPDATE = "UPDATE answers SET counts = ?, checksums = ?, tokens = ?, touched = ? WHERE id = ?"
DELETE = "DELETE FROM answers WHERE id = ?"

_log = logging.getLogger(__name__)


class StreamDatabase:
    """The file. It holds prompts, so only its owner may read it.

    Raises ValueError or OSError for a file that cannot be used, and says why.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._closed = False
        self._failing = False
        self._saved: dict[str, tuple] = {}
        self._progress: dict[str, tuple] = {}
        self._dropped: set[str] = set()
        self._found: list[Record] = []
        opened = threading.Event()
        self._error: Exception | None = None
        # A connection belongs to the thread that makes it.
        self._thread = threading.Thread(target=self._run, args=(opened,), name="stream-store", daemon=True)
        self._thread.start()
        opened.wait()
        if self._error is not None:
            raise self._error

    def take(self) -> list[Record]:
        """The records that were there at the start, oldest first; once."""
        found, self._found = self._found, []
        return found

    def save(self, record: Record) -> None:
        """A new record."""
        values = (*(getattr(record, name) for name in FIXED), *_progress(record))
        with self._lock:
            self._saved[record.id] = values
        self._work.set()

    def progress(self, record: Record) -> None:
        """A record that has got further."""
        with self._lock:
            self._progress[record.id] = _progress(record)
        self._work.set()

    def drop(self, id: str) -> None:
        """A record of no more use; it may be one that was never saved."""
        with self._lock:
            self._dropped.add(id)
        self._work.set()

    def close(self) -> None:
        """Write what is left. May be called twice."""
        self._closed = True
        self._work.set()
        self._thread.join()

    def _run(self, opened: threading.Event) -> None:
        connection = None
        try:
            connection = _open(self._path)
            connection.execute("DELETE FROM answers WHERE touched < ?", (time.time() - LONGEST_AWAY,))
            connection.commit()
            rows = connection.execute(f"SELECT {', '.join(FIELDS)} FROM answers ORDER BY touched")
            self._found = [_record(row) for row in rows]
        except (ValueError, OSError) as error:
            self._error = error
        except Exception as error:  # whatever it is, whoever waits has to know
            self._error = ValueError(f"{self._path}: wanted a stream store, got {error}")
        finally:
            opened.set()
        with contextlib.closing(connection) if connection is not None else contextlib.nullcontext():
            while self._error is None:
                self._work.wait()
                self._work.clear()
                closed = self._closed
                self._commit(connection)
                if closed:
                    return

    def _commit(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            saved, self._saved = self._saved, {}
            progress, self._progress = self._progress, {}
            dropped, self._dropped = self._dropped, set()
        try:
            with connection:
                connection.executemany(INSERT, [row for id, row in saved.items() if id not in dropped])
                connection.executemany(UPDATE, [(*row, id) for id, row in progress.items()])
                connection.executemany(DELETE, [(id,) for id in dropped])
            self._failing = False
        except sqlite3.Error as error:
            # A full disk must not end streams that are being read; it is said once, not with each commit.
            if not self._failing:
                _log.error("the stream store cannot be written, so a restart will lose streams: %s", error)
            self._failing = True


def _open(path: Path) -> sqlite3.Connection:
    """The file, made where there is none and locked for this process.

    Raises ValueError, OSError or sqlite3.Error.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=1.0)
    try:
        application, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        new = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not new and application != APPLICATION:
            raise ValueError(f"{path}: wanted a stream store, got another program's database")
        if not new and version != VERSION:
            raise ValueError(f"{path}: wanted a stream store of version {VERSION}, got version {version}")
        if (fault := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ValueError(f"{path}: wanted a sound stream store, got one with damage: {fault}")
        os.chmod(path, 0o600)  # what SQLite writes beside it gets the same mode
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if new:
            connection.execute("PRAGMA auto_vacuum = FULL")  # the file shrinks as records go
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing
        connection.execute("PRAGMA journal_size_limit = 1048576")
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            if new:
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute(f"CREATE TABLE answers ({', '.join(FIELDS)}, PRIMARY KEY (id))")
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise ValueError(f"{path}: wanted a stream store of our own, got one in use") from None
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _progress(record: Record) -> tuple:
    return json.dumps(list(record.counts)), json.dumps(list(record.checksums)), record.tokens, record.touched


def _record(row: tuple) -> Record:
    fields = dict(zip(FIELDS, row, strict=True))
    fields["streamed"] = bool(fields["streamed"])
    fields["counts"] = tuple(json.loads(fields["counts"]))
    fields["checksums"] = tuple(json.loads(fields["checksums"]))
    return Record(**fields)
