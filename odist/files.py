"""Files that appear whole or not at all, JSON-lines files that grow while they are read, folders with one writer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary path: what is written there replaces `path` if the block ends well, and is removed if not.

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


def save_array(path: Path, array: np.ndarray) -> None:
    """Replace the .npy file at `path` by `array`; see `replacing`."""
    import numpy as np

    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def finite(content: Any) -> Any:
    """JSON-able content with None in place of floats that are not finite, which JSON cannot hold."""
    if isinstance(content, Mapping):
        return {str(key): finite(item) for key, item in content.items()}
    if isinstance(content, list | tuple):
        return [finite(item) for item in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class Tail:
    """Reads the lines that are added to a file, each once; a line without its end is read when the end is there.

    path: may not exist yet
    place: byte at which to begin; afterwards the byte up to which the file has been read
    """

    def __init__(self, path: Path, *, place: int = 0) -> None:
        self.path = path
        self.place = place

    @classmethod
    def from_end(cls, path: Path) -> Tail:
        """Read only what is added from now on."""
        return cls(path, place=path.stat().st_size if path.is_file() else 0)

    def lines(self) -> list[bytes]:
        """The whole lines since the last call, without their ends."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.place)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self.place += len(whole)
        return whole.splitlines()

    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects among the new lines; lines that hold none are left out."""
        return json_objects(self.lines())[0]


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the JSON objects of a file, one a line, and count the lines that hold none.

    Blank lines do not count. A process that is killed while it writes leaves half a line. Raises OSError.
    """
    return json_objects(line for line in path.read_bytes().splitlines() if line.strip())


def json_objects(lines: Iterable[bytes]) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects in `lines`, and the number of lines that hold none."""
    found: list[dict[str, Any]] = []
    damaged = 0
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or not even text
            content = None
        if isinstance(content, dict):
            found.append(content)
        else:
            damaged += 1
    return found, damaged


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, without waiting; false if another process holds it.

    On file systems without locks this is always true.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that is inside for this folder, on file systems that have locks; wait until that is so.

    Not to be nested for one folder: the inner one would wait for ever.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
