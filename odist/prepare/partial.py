"""The folder of an unfinished preparation: `<output>.partial`, with a journal of what is done.

Commits by one rename, so the output folder is whole or absent. Keeps the journal of the preparation, and refuses a
folder that belongs to another request.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from odist.data.store import read_record
from odist.errors import UserError
from odist.files import try_lock, write_atomically
from odist.run.places import local_folder

JOURNAL = "journal.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def differences(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Return the keys whose values differ, with both values, for a message."""
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, prefix=f"{prefix}{key}.")
        elif before != now:
            short = isinstance(before, (list, dict)) or isinstance(now, (list, dict))
            found.append(f"{prefix}{key}" if short else f"{prefix}{key} ({before} there, {now} here)")
    return found


def finished_record(output: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Read store.json of `output` if it was made by the same request; None if there is nothing yet.

    Raises UserError when the path is taken by a store of another request or by other files.
    """
    local_folder(str(output), key="--output")
    if not output.exists():
        return None
    if not output.is_dir():
        raise UserError(f"{output}: a file; the output has to be a new folder.")
    meta = read_record(output)
    if meta is not None:
        differing = differences(meta.get("request", {}), request)
        if not differing:
            return meta
        raise UserError(
            f"{output}: holds a store made otherwise; different: {', '.join(differing)}. "
            "Name another output folder, or remove this one."
        )
    if any(output.iterdir()):
        raise UserError(f"{output}: holds other files. Name a new or empty folder.")
    return None


class Partial:
    """The unfinished folder, locked while in use. A UserError or a full disk removes it, an interruption does not.

    output: folder to be
    request: JSON-able; what was asked for. Work begun for another request is refused.
    full_disk: what the message about a full disk ends with: how much is needed, what to do
    resumable: errors of the user after which the same command continues
    """

    def __init__(
        self, output: Path, *, request: dict[str, Any], full_disk: str, resumable: tuple[type[UserError], ...] = ()
    ) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self.work = self.path / "work"  # what the store does not need; the preparation makes it
        self.request = request
        self.full_disk = full_disk
        self.resumable = resumable
        self.journal: dict[str, Any] | None = None
        self.complete = False  # store.json is there already; only `publish` is left to do
        self._lock = -1

    def __enter__(self) -> Partial:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot make this folder: {error.strerror}.") from None
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            if not try_lock(self._lock):
                raise UserError(
                    f"{self.path}: another `odist prepare` is writing it. Wait for it, or name another output."
                )
            self._read()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = isinstance(error, UserError) and not isinstance(error, self.resumable)
        no_space = isinstance(error, OSError) and error.errno in NO_SPACE
        discarded = (refused or no_space) and not self.complete
        if discarded:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        if discarded and isinstance(error, OSError):
            reason = f"no space left on the disk ({error.strerror})"
            raise UserError(f"{self.output}: {reason}; nothing was kept. {self.full_disk}") from None

    def _read(self) -> None:
        path, meta = self.path / JOURNAL, read_record(self.path)
        if meta is not None:
            content = {"request": meta.get("request", {}), "journal": None}
        elif path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                content["request"], content["journal"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}: damaged. Remove the folder {self.path} and begin again.") from None
        else:
            if any(not child.name.startswith(f".{JOURNAL}") for child in self.path.iterdir()):
                raise UserError(f"{self.path}: holds other files. Remove it, or name another output.")
            return
        differing = differences(content["request"], self.request)
        if differing:
            raise UserError(
                f"{self.path}: holds an unfinished preparation of another kind; different: {', '.join(differing)}. "
                "Type its command again, remove the folder, or name another output."
            )
        self.journal, self.complete = content["journal"], meta is not None

    def num_bytes(self) -> int:
        """Count the bytes of the files that make up the store."""
        files = (path for path in self.path.iterdir() if path.is_file() and not path.name.startswith(("journal", ".")))
        return sum(path.stat().st_size for path in files)

    def save(self, journal: dict[str, Any]) -> None:
        """Replace the journal; what it tells of must already be on the disk."""
        self.journal = journal
        write_atomically(self.path / JOURNAL, json.dumps({"request": self.request, "journal": journal}) + "\n")

    def commit(self, meta: dict[str, Any]) -> None:
        """Write store.json, the last file of the store, remove the work and give the folder its name."""
        # The record first: an interruption while the work is removed finds a complete store.
        write_atomically(self.path / "store.json", json.dumps({**meta, "request": self.request}, indent=1) + "\n")
        self.publish()

    def publish(self) -> None:
        """Remove the work, then give the complete folder its name."""
        if self.work.exists():
            shutil.rmtree(self.work)
        (self.path / JOURNAL).unlink(missing_ok=True)
        for unfinished in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote a file
            unfinished.unlink()
        os.fsync(self._lock)
        os.replace(self.path, self.output)
        parent = os.open(self.output.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
