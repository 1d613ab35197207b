"""Files and batch jobs on disk: SQLite for what is known of them, plain files for content.

Every method is safe to call from any thread and leaves the store consistent: a server that
dies between two of them finds, when it starts again, what the last one wrote. Several processes
may use one folder.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from dlcore.serve.record import new_id
from dlcore.serve.schemas.batches import Batch, FileObject

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created_at INTEGER NOT NULL, object BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created_at INTEGER NOT NULL, object BLOB NOT NULL,
    active INTEGER NOT NULL, cancel INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS results (
    batch_id TEXT NOT NULL, line INTEGER NOT NULL, ok INTEGER NOT NULL, result BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)
) WITHOUT ROWID;
"""
FINAL = frozenset({"completed", "failed", "expired", "cancelled"})


class JobStore:
    """One folder: `jobs.sqlite` and `files/`."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError or sqlite3.Error when the folder cannot be used."""
        self._files = folder / "files"
        self._claims = folder / "claims"
        for part in (self._files, self._claims):
            part.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLES)

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / "jobs.sqlite").is_file()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def content_path(self, file_id: str) -> Path:
        return self._files / file_id

    def new_content_path(self) -> tuple[str, Path]:
        """Where to write a file before `add_file`; what is never added is never seen."""
        file_id = f"file-{new_id()}"
        return file_id, self.content_path(file_id)

    def add_file(self, file_id: str, owner: str, filename: str, purpose: str) -> FileObject:
        file = FileObject(
            id=file_id,
            bytes=self.content_path(file_id).stat().st_size,
            created_at=int(time.time()),
            filename=filename,
            purpose=purpose,
        )
        row = (file.id, owner, file.created_at, msgspec.json.encode(file))
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row)
        return file

    def get_file(self, file_id: str, owner: str) -> FileObject | None:
        row = self._one("SELECT object FROM files WHERE id = ? AND owner = ?", (file_id, owner))
        return None if row is None else msgspec.json.decode(row[0], type=FileObject)

    def list_files(self, owner: str) -> list[FileObject]:
        """Newest first."""
        query = "SELECT object FROM files WHERE owner = ? ORDER BY created_at DESC, id"
        return [msgspec.json.decode(row[0], type=FileObject) for row in self._all(query, (owner,))]

    def delete_file(self, file_id: str, owner: str) -> None:
        with self._lock, self._db:
            self._db.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner))
        self.content_path(file_id).unlink(missing_ok=True)

    def put_batch(self, batch: Batch, owner: str) -> None:
        active = batch.status not in FINAL
        row = (batch.id, owner, batch.created_at, msgspec.json.encode(batch), active)
        with self._lock, self._db:
            self._db.execute(
                "INSERT INTO batches (id, owner, created_at, object, active) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE"
                " SET object = excluded.object, active = excluded.active",
                row,
            )
        if not active:
            (self._claims / batch.id).unlink(missing_ok=True)

    def claim(self, batch_id: str) -> IO[str] | None:
        """The right to run a job, until the file is closed. None: another process has it.

        The kernel gives it back when the process dies, however it dies.
        """
        claim = (self._claims / batch_id).open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            claim.close()
            return None
        return claim

    def request_cancel(self, batch_id: str) -> None:
        """Seen by whichever process runs the job."""
        with self._lock, self._db:
            self._db.execute("UPDATE batches SET cancel = 1 WHERE id = ?", (batch_id,))

    def cancel_requested(self, batch_id: str) -> bool:
        row = self._one("SELECT cancel FROM batches WHERE id = ?", (batch_id,))
        return row is not None and bool(row[0])

    def get_batch(self, batch_id: str, owner: str) -> Batch | None:
        row = self._one("SELECT object FROM batches WHERE id = ? AND owner = ?", (batch_id, owner))
        return None if row is None else msgspec.json.decode(row[0], type=Batch)

    def list_batches(self, owner: str) -> list[Batch]:
        """Newest first."""
        query = "SELECT object FROM batches WHERE owner = ? ORDER BY created_at DESC, id"
        return [msgspec.json.decode(row[0], type=Batch) for row in self._all(query, (owner,))]

    def active_batches(self) -> list[tuple[Batch, str]]:
        """What was not finished, with its owner, oldest first."""
        rows = self._all("SELECT object, owner FROM batches WHERE active ORDER BY created_at", ())
        return [(msgspec.json.decode(row[0], type=Batch), row[1]) for row in rows]

    def add_result(self, batch_id: str, line: int, *, ok: bool, result: bytes) -> None:
        with self._lock, self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", (batch_id, line, ok, result)
            )

    def lines_done(self, batch_id: str) -> dict[int, bool]:
        """Line number -> whether it went well."""
        rows = self._all("SELECT line, ok FROM results WHERE batch_id = ?", (batch_id,))
        return {line: bool(ok) for line, ok in rows}

    def write_results(self, batch_id: str, owner: str, *, ok: bool, filename: str) -> str | None:
        """Puts the results of one kind into a file; None where there are none."""
        rows = self._all(
            "SELECT result FROM results WHERE batch_id = ? AND ok = ? ORDER BY line", (batch_id, ok)
        )
        if not rows:
            return None
        # Named after the batch: done again after a crash, it is the same file.
        file_id = f"file-{filename.removesuffix('.jsonl')}"
        self.content_path(file_id).write_bytes(b"".join(_lines(row[0] for row in rows)))
        self.add_file(file_id, owner, filename, "batch_output")
        return file_id

    def forget_results(self, batch_id: str) -> None:
        with self._lock, self._db:
            self._db.execute("DELETE FROM results WHERE batch_id = ?", (batch_id,))

    def _one(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        return row

    def _all(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()


def _lines(results: Iterable[bytes]) -> Iterator[bytes]:
    for result in results:
        yield result
        yield b"\n"
