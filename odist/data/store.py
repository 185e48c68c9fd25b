"""What the stores of all tasks share: the record store.json, names of splits, and fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from odist.errors import UserError

Split = TypeVar("Split")


class Store(Generic[Split]):
    """A finished store, read-only: the content of its store.json and its open splits."""

    def __init__(self, path: Path, meta: dict[str, Any], splits: Mapping[str, Split]) -> None:
        self.path = path
        self.meta = meta
        self._splits = splits

    @property
    def task(self) -> str:
        return str(self.meta["task"])

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._splits)

    @property
    def fingerprint(self) -> str:
        """Names the data, their order, the options and what gives them their meaning."""
        return str(self.meta["fingerprint"])

    @property
    def fitted_fingerprint(self) -> str:
        """Names what gives ids, values or classes their meaning; a model may be used on every store with the same."""
        return str(self.meta["fitted_fingerprint"])

    def _split(self, split: str) -> Split:
        """Raises UserError when there is no such split."""
        if split not in self._splits:
            raise UserError(f"{self.path}: no split {split!r}; it has {', '.join(self._splits)}.")
        return self._splits[split]


def open_record(path: Path, expected: str, *, command: str) -> dict[str, Any]:
    """Read the store.json of a finished store of format `expected`.

    command: what makes such a store, for the message
    Raises UserError when the folder is missing, unfinished, not a store, or of another format.
    """
    meta = read_record(path)
    if meta is None:
        if not path.exists():
            raise UserError(f"{path}: no such folder. Make it with `{command} --input FILE --output {path}`.")
        if path.name.endswith(".partial"):
            raise UserError(f"{path}: an unfinished preparation; the same `odist prepare` command completes it.")
        raise UserError(f"{path}: not a prepared store (it has no store.json). Name a folder made by `{command}`.")
    if meta.get("format") != expected:
        raise UserError(
            f"{path}: its format is {meta.get('format')!r}, expected {expected!r}. "
            f"Name a folder made by `{command}`, or prepare it again."
        )
    return meta


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of `path`/store.json, None if there is none. Raises UserError if it cannot be read."""
    record = path / "store.json"
    if not record.is_file():
        return None
    try:
        meta = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(record, f"not JSON ({error})") from None
    if not isinstance(meta, dict) or "format" not in meta:
        raise UserError(f"{record}: not the record of a prepared store. Name a folder made by `odist prepare`.")
    return meta


def fingerprint_of(content: Any) -> str:
    """Name JSON-able content: SHA-256 of its one compact text, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def damaged(path: Path, why: str) -> UserError:
    """The error for a file of a store that is not as it was written."""
    return UserError(f"{path}: damaged: {why}. Remove the folder {path.parent} and run `odist prepare` again.")
