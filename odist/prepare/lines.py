"""Blocks of whole lines of a text file, plain or gzip, read ahead by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import BinaryIO, TypeVar

from odist.errors import UserError
from odist.prepare.inputs import InputFile
from odist.prepare.unpack import CHUNK, unpack

T = TypeVar("T")
SNIFF_BYTES = 1 << 18


@dataclass
class TextBlock:
    """Whole lines of one source.

    text: lines, each ended by a newline
    offset: where the source goes on after them (unpacked bytes, or rows of a Parquet file)
    done: bytes of the file itself read so far
    """

    text: bytes | bytearray
    offset: int
    done: int


def read_start(source: InputFile) -> bytes:
    """Return the first unpacked bytes of a text file, at most SNIFF_BYTES."""
    start = bytearray()
    with open(source.path, "rb") as file:
        for piece in _unpacked(source, file):
            start += piece
            if len(start) >= SNIFF_BYTES:
                break
    return bytes(start[:SNIFF_BYTES])


def _unpacked(source: InputFile, file: BinaryIO) -> Iterator[bytes]:
    # The content in pieces; UserError, naming the place, where gzip data break off or are wrong.
    done = 0

    def refuse(_: int, kind: str) -> None:
        what = "breaks off" if kind.startswith("truncated") else f"is damaged ({kind})"
        raise UserError(
            f"{source.path}: the gzip data {what} near byte {file.tell():,} of {source.bytes:,}, after {done:,} "
            "unpacked bytes. Fetch the file again; `gzip -t` tests it."
        )

    for piece in unpack(file, note=refuse, salvage=False):
        yield piece
        done += len(piece)


def read_blocks(source: InputFile, *, offset: int, block_bytes: int) -> Iterator[TextBlock]:
    """Yield blocks of whole lines of a text file, from unpacked byte `offset`, which begins a line.

    block_bytes: unpacked bytes of a block, about; no line may be longer
    A missing last newline is added. Raises UserError for damaged gzip data.
    """
    with open(source.path, "rb") as file:
        pieces = _from(source, file, offset)
        held = bytearray()
        position = offset  # of the first byte of `held`
        for piece in pieces:
            held += piece
            begin = 0
            while len(held) - begin >= block_bytes:
                cut = held.rfind(b"\n", begin, begin + block_bytes) + 1
                if not cut:
                    raise UserError(
                        f"{source.path}: a line longer than {block_bytes:,} bytes at byte {position:,}; not a text "
                        "file of rows."
                    )
                position += cut - begin
                yield TextBlock(held[begin:cut], position, file.tell())
                begin = cut
            del held[:begin]
        if held:
            ending = b"" if held.endswith(b"\n") else b"\n"
            yield TextBlock(held + ending, position + len(held), file.tell())


def _from(source: InputFile, file: BinaryIO, offset: int) -> Iterator[bytes]:
    if source.kind != "gzip":
        file.seek(offset)
        return iter(partial(file.read, CHUNK), b"")
    pieces, left = _unpacked(source, file), offset
    while left > 0:  # gzip has no index: unpack and drop
        piece = next(pieces, None)
        if piece is None:
            raise UserError(f"{source.path}: ends before byte {offset:,}, where the last attempt had stopped.")
        left -= len(piece)
        if left < 0:
            return chain([piece[left:]], pieces)
    return pieces


def read_ahead(items: Iterator[T], *, depth: int) -> Generator[T, None, None]:
    """Yield the same items, produced by a thread up to `depth` ahead; its errors are raised here."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        waiting = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, items, None))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def first_lines(start: bytes) -> list[bytes]:
    """Return the whole lines at the start of a text (the only one even if unended), without line ends."""
    complete = start.rpartition(b"\n")[0] if len(start) == SNIFF_BYTES else start
    return [line.rstrip(b"\r") for line in complete.split(b"\n")]
