"""Records of text out of every kind of input: WET, WARC, JSON lines, plain text, tar of these, data sets.

Tells kinds apart by content, then by name. Yields every record, with its text or with why it has none, so
that kept and dropped add up.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from odist.errors import UserError
from odist.prepare.datasets import load_dataset
from odist.prepare.text.html import RefusedPage, is_text_encoding, page_reader
from odist.prepare.text.paragraphs import decode_lines, paragraphs, passages
from odist.prepare.text.sources import TextSource, fetched
from odist.prepare.text.warc import Response, WarcRecord, read_records, read_response
from odist.prepare.unpack import TarMember, members, unpack

HTML = ("text/html", "application/xhtml+xml")
MAX_JSON_LINE = 1 << 24  # bytes; parsed it may take twenty times as much
MAX_LINES = 1_000_000  # of one record
_WARC_NAME = re.compile(r"\.(warc|wet|wat)(\.|$)")
_JSON_NAME = re.compile(r"\.(jsonl?|ndjson)(\.|$)")

NoteAt = Callable[[str, str], None]  # (place within the source, kind of damage)
At = Callable[[int], None]  # bytes of the input read so far; may raise to stop


@dataclass
class Raw:
    """One record: its paragraphs, or why it has none.

    origin: "web" | "json" | "text", which decides the filters
    """

    origin: str
    lines: list[str]
    reason: str = ""


@dataclass(frozen=True)
class RecordOptions:
    """Options of reading. field: of JSON lines and data sets; passage_words: of plain text; main_content: of HTML."""

    field: str
    passage_words: int
    main_content: bool


def read_source(source: TextSource, *, reading: RecordOptions, folder: Path, note: NoteAt, at: At) -> Iterator[Raw]:
    """Yield every record of a source, in order; memory is one record (of plain text: one passage).

    folder: for downloads
    note: called with every fault of the input
    at: called after every piece of the input, also where no record is found in it
    """
    if source.kind == "datasets":
        yield from _read_dataset(source, reading, at)
        return
    with fetched(source, folder, poll=lambda: at(0)) as path, open(path, "rb") as file:
        if not file.read(1):
            note("byte 0", "empty file")
            return
        pieces = unpack(file, note=lambda place, kind: note(f"packed byte {place}", kind))
        yield from _read_stream(_told(pieces, file, at), source.name, reading=reading, note=note, nested=False)


def _told(pieces: Iterator[bytes], file: BinaryIO, at: At) -> Iterator[bytes]:
    for piece in pieces:
        at(file.tell())
        yield piece


def _raw(origin: str, text: str) -> Raw:
    if text.count("\n") >= MAX_LINES:  # before they are objects of their own
        return Raw(origin, [], "too many lines")
    return Raw(origin, text.split("\n"))


def _read_stream(
    pieces: Iterator[bytes], name: str, *, reading: RecordOptions, note: NoteAt, nested: bool
) -> Iterator[Raw]:
    start = b""
    while len(start) < 512 and (piece := next(pieces, None)) is not None:
        start += piece
    stream = _prepend(start, pieces)
    content = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not nested and start[257:262] == b"ustar":
        yield from _read_tar(stream, reading=reading, note=note)
    elif content.startswith(b"WARC/") or _WARC_NAME.search(name):
        yield from _read_warc(stream, reading=reading, note=note)
    elif content.startswith(b'{"') or _JSON_NAME.search(name):
        yield from _read_json(stream, reading=reading, note=note)
    else:
        for number, passage in enumerate(
            passages(paragraphs(decode_lines(stream)), words=reading.passage_words), start=1
        ):
            if any("�" in text for text in passage):
                note(f"passage {number}", "invalid UTF-8")
            yield Raw("text", passage)


def _prepend(start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield start
    yield from pieces


def _read_warc(pieces: Iterator[bytes], *, reading: RecordOptions, note: NoteAt) -> Iterator[Raw]:
    count = 0

    def locate(offset: int, kind: str) -> None:
        note(f"record {count + 1}, unpacked byte {offset}", kind)

    to_text = None
    for record in read_records(pieces, note=locate):
        if record.kind == "conversion":
            yield _raw("web", _decode(record.block, record.offset, locate))
        elif record.kind in ("response", "resource"):
            to_text = to_text or page_reader(main_content=reading.main_content)
            yield _read_page(record, to_text, locate)
        else:
            yield Raw("web", [], f"{record.kind or 'untyped'} record")
        count += 1


def _decode(data: bytes, offset: int, locate: Callable[[int, str], None]) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        locate(offset, "invalid UTF-8")
        return data.decode("utf-8", "replace")


def _read_page(record: WarcRecord, to_text: Callable[[Response], str], locate: Callable[[int, str], None]) -> Raw:
    try:
        page = read_response(record.block)
    except zlib.error:
        locate(record.offset, "damaged HTTP body")
        return Raw("web", [], "damaged HTTP body")
    if record.kind == "resource":
        page.content_type = record.field("Content-Type").partition(";")[0].strip().lower()
    if page.status not in (0, 200):
        return Raw("web", [], "HTTP status not 200")
    kind = page.content_type or record.field("WARC-Identified-Payload-Type")
    if kind in HTML:
        try:
            return _raw("web", to_text(page))
        except RefusedPage as error:
            locate(record.offset, str(error))
            return Raw("web", [], str(error))
    if kind == "text/plain":
        return _raw("web", page.body.decode(page.charset if is_text_encoding(page.charset) else "utf-8", "replace"))
    return Raw("web", [], "neither HTML nor plain text")


def _read_json(pieces: Iterator[bytes], *, reading: RecordOptions, note: NoteAt) -> Iterator[Raw]:
    for number, line in _lines(pieces):
        if line.isspace():
            continue
        raw = _from_json(line, reading.field)
        if raw.reason:
            note(f"line {number}", raw.reason)
        yield raw


def _from_json(line: bytes, field: str) -> Raw:
    if len(line) > MAX_JSON_LINE:
        return Raw("json", [], "line too long")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError; lists in lists in lists ...
        return Raw("json", [], "not JSON")
    text = row.get(field) if isinstance(row, dict) else None
    return _raw("json", text) if isinstance(text, str) else Raw("json", [], f"no text in field {field!r}")


def _lines(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    # (number, line) of lines that are not empty; of one that is too long a beginning that is too long too.
    held: list[bytes] = []
    size, number = 0, 1
    for piece in pieces:
        if not held and not piece.strip(b"\n"):
            number += len(piece)
            continue
        *lines, rest = piece.split(b"\n")
        for line in lines:
            if held:
                line = b"".join((*held, line))
                held, size = [], 0
            if line:
                yield number, line
            number += 1
        if rest and size <= MAX_JSON_LINE:
            held.append(rest)
            size += len(rest)
    if held:
        yield number, b"".join(held)


class _Pieces(io.RawIOBase):
    # An iterator of bytes as a file, for tarfile.
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _read_tar(pieces: Iterator[bytes], *, reading: RecordOptions, note: NoteAt) -> Iterator[Raw]:
    name = "the first member"
    try:
        file = io.BufferedReader(_Pieces(pieces), 1 << 20)
        with tarfile.open(fileobj=file, mode="r|", tarinfo=TarMember) as archive:
            for member in members(archive):
                name = member.name
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    continue

                def locate(place: str, kind: str, member: str = name) -> None:
                    note(f"{member}, {place}", kind)

                parts = iter(partial(content.read, 1 << 17), b"")
                yield from _read_stream(parts, name, reading=reading, note=locate, nested=True)
    except tarfile.TarError as error:
        note(f"behind {name}", f"damaged tar ({error})")


def _read_dataset(source: TextSource, reading: RecordOptions, at: At) -> Iterator[Raw]:
    data = load_dataset(source.name)
    if reading.field not in data.column_names:
        columns = ", ".join(data.column_names)
        raise UserError(f"{source.name}: no column {reading.field!r}; it has {columns}. Use --field.")
    for start in range(source.start, source.stop, 1000):
        at(0)
        for text in data[start : min(start + 1000, source.stop)][reading.field]:
            missing = Raw("json", [], f"no text in field {reading.field!r}")
            yield _raw("json", text) if isinstance(text, str) else missing
