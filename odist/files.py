"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`: what is written there replaces `path` if the block ends well, and is gone if not.

    A reader sees the old file or the new one, never a part; after a power cut, too.
    """
    temporary = _beside(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise the OSError that `replacing` would raise at `path`, and leave nothing there."""
    temporary = _beside(path)
    temporary.touch()
    temporary.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
