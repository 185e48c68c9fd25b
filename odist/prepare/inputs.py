"""Input files of a preparation: which they are, plain or gzip by their first bytes, and whole lines of them.

Knows files, compression and lines; what a line means is left to the preparation.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import queue
import re
import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from odist.errors import UserError

T = TypeVar("T")
SNIFF_BYTES = 1 << 18
PARQUET = b"PAR1"
GZIP = b"\x1f\x8b"
OTHER_PACKED = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"ARROW1": "Arrow",
}


@dataclass(frozen=True)
class InputFile:
    """One input file; its size and time tell whether it is still the same."""

    path: Path
    bytes: int
    modified_ns: int
    kind: str  # plain | gzip | parquet

    def identity(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.bytes, "modified_ns": self.modified_ns}


@dataclass
class Block:
    """Whole lines of one source.

    text: lines, each ended by a newline
    offset: where the source goes on after them (unpacked bytes, or rows of a Parquet file)
    done: bytes of the file itself read so far
    """

    text: bytes | bytearray
    offset: int
    done: int


def natural(path: str) -> list[Any]:
    """Sort key that puts day_2 before day_10: order of files is order of time."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def find_files(inputs: list[str]) -> list[InputFile]:
    """The files that `inputs` name, in the order given.

    inputs: files, glob patterns, folders of Parquet files; what a pattern or folder finds is put in
        natural order of names
    Raises UserError for what is missing, empty, named twice, or packed in a way that is not read.
    """
    if not inputs:
        raise UserError("no input files given. Name files, patterns such as 'day_*.gz', or a folder of Parquet files.")
    paths = [path for text in inputs for path in _expand(text)]
    seen: set[Path] = set()
    sources = []
    for path in paths:
        resolved = path.resolve()
        if resolved in seen:
            raise UserError(f"{path}: named twice; its rows would count twice. Name every file once.")
        seen.add(resolved)
        sources.append(_source(resolved, path))
    return sources


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted((p for p in path.rglob("*.parquet") if p.is_file()), key=lambda p: natural(str(p)))
        if not found:
            raise UserError(
                f"{text}: a folder without *.parquet files. For text files name a pattern, such as '{path}/*.gz'."
            )
        return found
    return files_named(text)


def files_named(text: str) -> list[Path]:
    """The file of that name, or those that a pattern matches, in natural order; UserError if there is none."""
    path = Path(text).expanduser()
    if path.exists():
        return [path]
    if glob.has_magic(text):
        found = glob.glob(str(path), recursive=True)
        names = [name for name in found if Path(name).is_file()]
        if not names and found:
            raise UserError(f"{text}: only folders match this pattern, such as {min(found, key=natural)}. Name the files in "
                            f"them: '{_deeper(text)}'.")  # fmt: skip
        if not names:
            raise UserError(f"{text}: no file matches this pattern.")
        return [Path(name) for name in sorted(names, key=natural)]
    raise UserError(f"{text}: no such file or folder.")


def passed_over(text: str) -> str:
    """What a pattern matches and `files_named` does not read: folders with files that it does not name; "" if none.

    The same for all data sets. Says how to read them too.
    """
    path = Path(text).expanduser()
    if not glob.has_magic(text) or path.exists():
        return ""
    found = glob.glob(str(path), recursive=True)
    files = [name for name in found if Path(name).is_file()]
    folders = [name.rstrip("/") for name in found if Path(name).is_dir()]
    read: set[str] = set()
    for name in files:
        while (name := os.path.dirname(name)) not in read:
            read.add(name)
    skipped = [folder for folder in folders if folder not in read and any(inside for _, _, inside in os.walk(folder))]
    skipped.sort(key=natural)
    if not files or not skipped:
        return ""
    shown = ", ".join(folder + "/" for folder in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    many, them = (f"{len(skipped):,} folders match", "them") if len(skipped) > 1 else ("a folder matches", "it")
    return f"{text}: {many} too, and the files in {them} are not read: {shown}. To read them: --input '{_deeper(text)}'"


def _deeper(text: str) -> str:
    head, _, last = text.rpartition("/")
    return (f"{head}/**/*" if head else "**/*") if last == "*" else f"{text.rstrip('/')}/**/*"


def _source(path: Path, shown: Path) -> InputFile:
    if not path.is_file():
        raise UserError(f"{shown}: not a regular file; write it to a file first.")
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
            status = os.fstat(file.fileno())
    except PermissionError:
        raise UserError(f"{shown}: no permission to read it.") from None
    if not magic:
        raise UserError(f"{shown}: the file is empty.")
    for start, name in OTHER_PACKED.items():
        if magic.startswith(start):
            raise UserError(f"{shown}: a {name} file, which is not read. Unpack it, or pack it with gzip.")
    kind = "parquet" if magic.startswith(PARQUET) else "gzip" if magic.startswith(GZIP) else "plain"
    return InputFile(path, status.st_size, status.st_mtime_ns, kind)


@contextmanager
def _opened(source: InputFile) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    # (unpacked stream, file itself)
    with open(source.path, "rb") as raw:
        if source.kind != "gzip":
            yield raw, raw
            return
        try:
            from isal import igzip

            unpacked: Any = igzip.IGzipFile(fileobj=raw, mode="rb")
        except ImportError:  # the same bytes at about a third of the speed
            unpacked = gzip.GzipFile(fileobj=raw, mode="rb")
        with unpacked:
            yield unpacked, raw


def _gzip_errors() -> tuple[type[Exception], ...]:
    errors: list[type[Exception]] = [EOFError, zlib.error, gzip.BadGzipFile]
    with suppress(ImportError):
        from isal import isal_zlib

        errors.append(isal_zlib.error)  # type: ignore[arg-type]  # its stub says: an instance
    return tuple(errors)


def read_start(source: InputFile) -> bytes:
    """The first unpacked bytes of a text source, at most SNIFF_BYTES."""
    with _opened(source) as (stream, raw):
        return _read(source, stream, raw, SNIFF_BYTES, 0)


def read_blocks(source: InputFile, *, offset: int, block_bytes: int) -> Iterator[Block]:
    """Blocks of whole lines of a text source, from unpacked byte `offset`, which begins a line.

    block_bytes: unpacked bytes read at once; no line may be longer
    A missing last newline is added. UserError, naming the place, where gzip data break off or are wrong.
    """
    with _opened(source) as (stream, raw):
        _skip(source, stream, raw, offset)
        rest = b""
        position = offset  # of the first byte after the last whole line
        while True:
            data = _read(source, stream, raw, block_bytes, position + len(rest))
            if not data:
                break
            cut = data.rfind(b"\n") + 1
            if cut == 0:
                rest += data
                if len(rest) > block_bytes:
                    raise UserError(f"{source.path}: a line longer than {block_bytes:,} bytes at byte {position:,}; not a text file of rows.")  # fmt: skip
                continue
            text = rest + data[:cut] if rest else data if cut == len(data) else data[:cut]
            rest = data[cut:]
            position += len(text)
            yield Block(text, position, raw.tell())
        if rest:
            yield Block(rest + b"\n", position + len(rest), raw.tell())


def _skip(source: InputFile, stream: BinaryIO, raw: BinaryIO, offset: int) -> None:
    if stream is raw:
        raw.seek(offset)
        return
    done = 0
    while done < offset:  # gzip has no index: unpack and drop
        data = _read(source, stream, raw, min(1 << 22, offset - done), done)
        if not data:
            raise UserError(f"{source.path}: ends before byte {offset:,}, where the last attempt had stopped.")
        done += len(data)


def _read(source: InputFile, stream: BinaryIO, raw: BinaryIO, count: int, done: int) -> bytes:
    try:
        return stream.read(count)
    except _gzip_errors() as error:
        what = "breaks off" if isinstance(error, EOFError) else f"is damaged ({error})"
        place = min(raw.tell(), source.bytes)
        raise UserError(
            f"{source.path}: the gzip data {what} near byte {place:,} of {source.bytes:,}, after {done:,} unpacked bytes. "
            "Fetch the file again; `gzip -t` tests it."
        ) from None


def read_ahead(items: Iterator[T], *, depth: int) -> Generator[T, None, None]:
    """The same items, produced by a thread up to `depth` ahead; its errors are raised here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, None)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def first_lines(start: bytes) -> list[bytes]:
    """Whole lines at the start of a text (the only one even if unended), without line ends."""
    complete, _, _ = start.rpartition(b"\n") if len(start) == SNIFF_BYTES else (start, b"", b"")
    return [line.rstrip(b"\r") for line in io.BytesIO(complete).read().split(b"\n")]
