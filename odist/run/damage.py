"""Reading files of a run folder that may be damaged, and writing files to a disk that may be full.

Disks fail, copies stop half-way, people edit. Every file is checked when it is read: the reader gets its content or
`Damaged`, one sentence with the file, what is wrong with it and the cure. Nothing damaged is deleted: it is set aside
under a hidden name before it is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.config.typed import yaml_content
from odist.errors import CannotWrite, Damaged

if TYPE_CHECKING:
    import numpy as np

SET_ASIDE = ".damaged-"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Kinds = Mapping[str, type | tuple[type, ...]]


def read_text(path: Path, *, cure: str) -> str:
    """The text of a file. Raises Damaged if it is missing, not a file, cannot be read or does not hold text."""
    try:
        if not path.is_file():
            raise Damaged(f"{path}: {'not a file' if os.path.lexists(path) else 'missing'}. {cure}")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{path}: damaged (not text from byte {error.start} on). {cure}") from error
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror or error}). {cure}") from error


def read_json(path: Path, *, cure: str, kinds: Kinds | None = None, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object of a file.

    kinds: types of the values of some keys, which may be null or missing; required: keys that must be there
    cure: sentence that ends the message of Damaged
    """
    text = read_text(path, cure=cure)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "empty" if not text.strip() else f"not JSON: {str(error)[:80]}"
        raise Damaged(f"{path}: damaged ({reason}). {cure}") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: damaged (not a JSON object). {cure}")
    for key in required:
        if content.get(key) is None:
            raise Damaged(f"{path}: damaged (it has no {key!r}). {cure}")
    for key, kind in (kinds or {}).items():
        value = content.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise Damaged(f"{path}: damaged ({key} is {str(value)[:40]!r}). {cure}")
    return content


def read_yaml(path: Path, *, cure: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises Damaged if it holds none."""
    try:
        content = yaml_content(read_text(path, cure=cure))
    except ValueError as error:
        raise Damaged(f"{path}: damaged ({error}). {cure}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise Damaged(f"{path}: damaged ({'empty' if content is None else 'no keys and values'}). {cure}")
    return content


def read_array(path: Path, *, cure: str, rows: int | None = None) -> np.ndarray:
    """The array of numbers in a .npy file, mapped; rows: its expected length."""
    import numpy as np

    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, KeyError, TypeError, MemoryError, OverflowError) as error:
        reason = "missing" if not os.path.lexists(path) else "damaged (not a whole array of numbers)"
        raise Damaged(f"{path}: {reason}. {cure}") from error
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu" or (rows is not None and len(array) != rows):
        raise Damaged(f"{path}: damaged (shape {list(array.shape)}, type {array.dtype}). {cure}")
    return array


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to a hidden name beside it, where nothing reads or deletes it; the new path."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{SET_ASIDE}{path.name}{f'-{number}' if number > 1 else ''}")):
        number += 1
    os.rename(path, aside)
    return aside


@contextlib.contextmanager
def writing(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of writing at or below `path` into CannotWrite, one sentence.

    kinds: exceptions beside OSError that a library raises for a write that failed
    """
    failures: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise  # not a lack of space: something else lies there
    except failures as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turn a file where a folder belongs, or a folder where a file does, below `folder` into Damaged."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        if error.filename is None or not Path(error.filename).is_relative_to(folder):
            raise
        kind = (
            "a folder, a file belongs there" if os.path.isdir(error.filename) else "not the folder that belongs there"
        )
        raise Damaged(f"{error.filename}: {kind}. Remove it, and the same command continues.") from error


def cannot_write(path: Path, error: Exception) -> CannotWrite:
    """The error for a write that failed: where, why and how much space is left."""
    known = isinstance(error, OSError) and error.errno is not None and error.errno not in FULL
    free = free_space(path)
    if known:
        reason = str(getattr(error, "strerror", None) or error)
    elif isinstance(error, OSError) and error.errno == errno.EFBIG:
        reason = f"the file would be larger than this process may write, {free} free on the disk"
    else:
        reason = f"the disk is full or the file larger than allowed, {free} free"
    cure = "correct this" if known else "make room"
    return CannotWrite(
        f"{path}: cannot be written ({reason}). Everything saved before is intact: {cure}, and the same command continues."
    )


def free_space(path: Path) -> str:
    """The space that is left on the disk of `path`, in words."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        free = float(shutil.disk_usage(path).free)
    except OSError:
        return "unknown space"
    for unit in ("bytes", "kB", "MB", "GB"):
        if free < 1000 or unit == "GB":
            break
        free /= 1000
    return f"{free:.0f} {unit}" if free >= 10 or unit == "bytes" else f"{free:.1f} {unit}"
