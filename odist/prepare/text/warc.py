"""WARC, WET and WAT records out of sound and damaged files.

Frames by Content-Length and checks that a record or the end follows; where not, the next record header is
searched. Every fault goes to `note(place, kind)`, and what is readable is returned.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from odist.prepare.unpack import CHUNK, GZIP, Note

MAX_HEADER = 1 << 16
MAX_BLOCK = 1 << 26  # 64 MB; Common Crawl cuts payloads at 5 MB

_HEADER_END = re.compile(rb"\n\r?\n")
_TAIL = re.compile(rb"(?:\r\n\r\n|\n\n)WARC/[01]\.")
_NEXT = re.compile(
    rb"WARC/(?<=\nWARC/)[01]\.\d+\r?\n[A-Za-z][A-Za-z-]*:"
)  # a letter first: line ends without number are fast
_LINE_ENDS = re.compile(rb"(?:\r?\n){1,8}\Z")
_FIRST = re.compile(rb"WARC/[01]\.\d+\r?\n[A-Za-z][A-Za-z-]*:")
_TYPE = re.compile(rb"^WARC-Type:[ \t]*([\w-]+)", re.I | re.M)
_LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d+)[ \t]*\r?$", re.I | re.M)
_NO_LINE_END = re.compile(rb"[^\r\n]")
_BLANK_TO_END = re.compile(rb"\s*\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
MAX_DIGITS = 18  # of a length; a longer number leads nowhere, and Python refuses to convert very long ones


@dataclass(slots=True)
class WarcRecord:
    """One record.

    kind: WARC-Type in lower case, "" without one
    header: the header lines as they are
    block: what follows them, without the line ends that close the record
    offset: unpacked bytes before the record
    """

    kind: str
    header: bytes
    block: bytes
    offset: int

    def field(self, name: str) -> str:
        """Return the value of a header field, "" without it; angle brackets, as wget writes them, are removed."""
        found = re.search(rb"^" + re.escape(name.encode()) + rb":[ \t]*(.*?)\s*$", self.header, re.I | re.M)
        return "" if found is None else found.group(1).decode("utf-8", "replace").strip("<>")


class _Buffer:
    """A window on the unpacked stream: grows at the end by `need`, shrinks at the front by `advance`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.data = bytearray()
        self.at = 0  # read position in data
        self.base = 0  # unpacked bytes before data
        self.ended = False

    def need(self, stop: int) -> bool:
        """Make data[:stop] present; False when the stream ends before."""
        data = self.data
        while len(data) < stop and not self.ended:
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
            else:
                data += piece
        return len(data) >= stop

    def whole_record(self) -> WarcRecord | None:
        """The next piece where it is one sound record, as in a file of one gzip member a record.

        Only with nothing unread. Else the piece is put into `data`, and None returned.
        """
        piece = next(self._pieces, None)
        if piece is None:
            self.ended = True
            return None
        end = piece.find(b"\r\n\r\n", 0, MAX_HEADER)
        if end > 0 and piece.startswith(b"WARC/") and piece.endswith(b"\r\n\r\n"):
            at = piece.find(b"\r\nContent-Length: ", 0, end) + 18  # the usual spelling; others go the slower way
            length = piece[at : piece.find(b"\r\n", at)]
            if at > 18 and length.isdigit() and end + 8 + _number(length) == len(piece):
                offset = self.base + len(self.data)
                self.base += len(piece)
                return _record(piece[: end + 2], piece[end + 4 : -4], offset)
        self.data += piece
        return None

    def advance(self, at: int) -> None:
        self.at = at
        if at > 1 << 20:
            del self.data[:at]
            self.base += at
            self.at = 0

    def search(self, pattern: re.Pattern[bytes], start: int, *, limit: int) -> re.Match[bytes] | None:
        """Find the first match from `start` on, reading up to `limit` bytes behind it."""
        checked = start
        while True:
            found = pattern.search(self.data, checked)
            if found is not None or len(self.data) - start >= limit:
                return found
            checked = max(start, len(self.data) - 256)  # longer than any match
            if not self.need(len(self.data) + CHUNK) and len(self.data) <= checked + 256:
                return pattern.search(self.data, checked)


def read_records(pieces: Iterator[bytes], *, note: Note, max_block: int = MAX_BLOCK) -> Iterator[WarcRecord]:
    """Yield the records of an unpacked WARC, WET or WAT stream; memory is one record.

    pieces: as `unpack` gives them
    note: told the unpacked offset of "bytes outside records", "wrong Content-Length", "truncated record"
        and "record too long", which is left out
    max_block: bytes from which on it is
    """
    buffer = _Buffer(pieces)
    data = buffer.data
    while True:
        if buffer.at == len(data):
            while (record := buffer.whole_record()) is not None:
                yield record
        while buffer.need(buffer.at + 1) and data[buffer.at] in b"\r\n":
            text = _NO_LINE_END.search(data, buffer.at)
            buffer.advance(len(data) if text is None else text.start())
        if not buffer.need(buffer.at + 1):
            return
        head = buffer.search(_HEADER_END, buffer.at, limit=MAX_HEADER) if _at_record(buffer) else None
        if head is None:
            note(buffer.base + buffer.at, "bytes outside records")
            if not _skip_to_record(buffer, max_block):
                return
            continue
        header, start = bytes(data[buffer.at : head.start() + 1]), head.end()
        length = _LENGTH.search(header)
        offset = buffer.base + buffer.at
        told = -1 if length is None else _number(length.group(1))
        stop, resume = _block_end(buffer, start, told, offset, note=note, max_block=max_block)
        if stop >= 0:
            yield _record(header, bytes(data[start:stop]), offset)
        buffer.advance(resume)


def _record(header: bytes, block: bytes, offset: int) -> WarcRecord:
    if b"\r\nWARC-Type: conversion\r\n" in header:  # nearly all there are
        return WarcRecord("conversion", header, block, offset)
    kind = _TYPE.search(header)
    return WarcRecord("" if kind is None else kind.group(1).decode().lower(), header, block, offset)


def _number(digits: bytes) -> int:
    digits = digits.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= MAX_DIGITS else 10**MAX_DIGITS


def _at_record(buffer: _Buffer) -> bool:
    buffer.need(buffer.at + 128)
    return _FIRST.match(buffer.data, buffer.at) is not None


def _skip_to_record(buffer: _Buffer, max_block: int) -> bool:
    # To the next record header after the position; False at the end of the stream.
    buffer.advance(buffer.at + 1)
    while True:
        found = buffer.search(_NEXT, buffer.at, limit=max_block)
        if found is not None:
            buffer.advance(found.start())
            return True
        if buffer.ended:
            buffer.advance(len(buffer.data))
            return False
        buffer.advance(len(buffer.data) - 256)


def _block_end(buffer: _Buffer, start: int, length: int, offset: int, *, note: Note, max_block: int) -> tuple[int, int]:
    # (end of the block, where to read on); the end is -1 where the record is left out.
    data, stop = buffer.data, start + length
    if 0 <= length <= max_block:
        if buffer.need(stop + 4) and len(data) == stop + 4 and data.endswith(b"\r\n\r\n"):
            return stop, stop + 4  # the piece ends with the record: what follows is looked at by itself
        whole = buffer.need(stop + 9)
        if data.startswith(b"\r\n\r\nWARC/", stop):
            return stop, stop + 4
        if whole or len(data) >= stop:
            buffer.need(stop + 32)
            follows = _TAIL.match(data, stop)
            if follows is not None or (buffer.ended and _BLANK_TO_END.match(data, stop) is not None):
                return stop, stop
    # The length leads nowhere: the block ends where the next record begins. It may begin right behind the header.
    found = buffer.search(_NEXT, start - 1, limit=max_block)
    end = -1 if found is None else _before_line_ends(data, found.start())
    if found is not None and end - start <= max_block:
        note(offset, "wrong Content-Length")
        return max(start, end), found.start()
    if found is not None or not buffer.ended:
        note(offset, "record too long")
        buffer.advance(len(data) - 256 if found is None else found.start() - 1)
        _skip_to_record(buffer, max_block)
        return -1, buffer.at
    note(offset, "truncated record" if len(data) < stop else "wrong Content-Length")
    return len(data), len(data)


def _before_line_ends(data: bytearray, stop: int) -> int:
    first = max(0, stop - 16)
    found = _LINE_ENDS.search(data[first:stop])
    return stop if found is None else first + found.start()


@dataclass
class Response:
    """An HTTP response of a WARC record: status 0 without an HTTP header; type and charset in lower case."""

    status: int
    content_type: str
    charset: str
    body: bytes


def read_response(block: bytes) -> Response:
    """Split a response block; chunked and gzip bodies that were stored as sent are undone where they are sound."""
    if not block.startswith(b"HTTP/"):
        return Response(0, "", "", block)
    head = _HEADER_END.search(block)
    header, body = (block, b"") if head is None else (block[: head.start()], block[head.end() :])
    lines = header.decode("latin-1").splitlines()
    status = lines[0].split(" ", 2)[1:2]
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _unchunk(body)
    if body.startswith(GZIP):
        body = zlib.decompressobj(31).decompress(body, MAX_BLOCK)
    kind, _, rest = fields.get("content-type", "").partition(";")
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", rest, re.I)
    code = int(status[0]) if status and re.fullmatch(r"[0-9]{1,9}", status[0]) else 0
    return Response(code, kind.strip().lower(), "" if charset is None else charset.group(1).lower(), body)


def _unchunk(body: bytes) -> bytes:
    # Common Crawl keeps the header but undoes the chunks: a body that is not chunked is returned as it is.
    joined = bytearray()
    at = 0
    while (found := _CHUNK_SIZE.match(body, at)) is not None:
        size = int(found.group(1), 16)
        if size == 0:
            return bytes(joined)
        joined += body[found.end() : found.end() + size]
        at = found.end() + size + 2
    return bytes(joined) if at >= len(body) > 0 else body
