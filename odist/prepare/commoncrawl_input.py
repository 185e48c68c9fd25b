"""Records of text out of every kind of input: WET, WARC, JSON lines, plain text, tar of these, data sets.

Tells kinds apart by content, then by name. Yields every record, with its text or with why it has none, so
that kept and dropped add up; what text is worth keeping is left to commoncrawl_clean.py.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from odist.errors import UserError
from odist.prepare.commoncrawl_lines import decode_lines, paragraphs, passages
from odist.prepare.commoncrawl_sources import TextSource, fetched, load_dataset
from odist.prepare.unpack import unpack
from odist.prepare.warc import Record, Response, read_records, read_response

HTML = ("text/html", "application/xhtml+xml")
MAX_JSON_LINE = 1 << 26
_WARC_NAME = re.compile(r"\.(warc|wet|wat)(\.|$)")
_JSON_NAME = re.compile(r"\.(jsonl?|ndjson)(\.|$)")

NoteAt = Callable[[str, str], None]  # (place within the source, kind of damage)


@dataclass
class Raw:
    """One record: its paragraphs, or why it has none.

    origin: "web" | "json" | "text", which decides the filters
    position: bytes of the input read so far
    """

    origin: str
    lines: list[str]
    reason: str = ""
    position: int = 0


@dataclass(frozen=True)
class Reading:
    """Options of reading. field: of JSON lines and data sets; passage_words: of plain text; main_content: of HTML."""

    field: str
    passage_words: int
    main_content: bool


def read_source(source: TextSource, *, reading: Reading, folder: Path, note: NoteAt) -> Iterator[Raw]:
    """Every record of a source, in order; memory is one record (of plain text: one passage).

    folder: for downloads
    note: told every fault of the input
    """
    if source.kind == "datasets":
        yield from _read_dataset(source, reading)
        return
    with fetched(source, folder) as path, open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        if not start:
            note("byte 0", "empty file")
            return
        pieces = unpack(file, start=start, note=lambda place, kind: note(f"packed byte {place}", kind))
        for raw in _read_stream(pieces, source.name, reading=reading, note=note, nested=False):
            raw.position = file.tell()
            yield raw


def _read_stream(pieces: Iterator[bytes], name: str, *, reading: Reading, note: NoteAt, nested: bool) -> Iterator[Raw]:
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


def _read_warc(pieces: Iterator[bytes], *, reading: Reading, note: NoteAt) -> Iterator[Raw]:
    count = 0

    def locate(offset: int, kind: str) -> None:
        note(f"record {count + 1}, unpacked byte {offset}", kind)

    to_text = None
    for record in read_records(pieces, note=locate):
        if record.kind == "conversion":
            yield Raw("web", _decode(record.block, record.offset, locate).split("\n"))
        elif record.kind in ("response", "resource"):
            to_text = to_text or _html_to_text(main_content=reading.main_content)
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


def _read_page(record: Record, to_text: Callable[[Response], str], locate: Callable[[int, str], None]) -> Raw:
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
        return Raw("web", to_text(page).split("\n"))
    if kind == "text/plain":
        return Raw("web", page.body.decode(page.charset if _is_codec(page.charset) else "utf-8", "replace").split("\n"))
    return Raw("web", [], "neither HTML nor plain text")


def _is_codec(charset: str) -> bool:
    try:
        return codecs.lookup(charset)._is_text_encoding  # "hex" is a codec too
    except (LookupError, ValueError):
        return False


def _html_to_text(*, main_content: bool) -> Callable[[Response], str]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    except ImportError:
        raise UserError("WARC files hold HTML, which is read with resiliparse; it is not installed. "
                        "Type: pip install resiliparse; WET files need no HTML.") from None  # fmt: skip

    def convert(page: Response) -> str:
        encoding = page.charset
        if not _is_codec(encoding):
            encoding = detect_encoding(page.body, from_html_meta=True) or "utf-8"
        html = bytes_to_str(page.body, encoding, errors="replace")
        return str(
            extract_plain_text(
                html, preserve_formatting=True, main_content=main_content, list_bullets=False, alt_texts=False
            )
        )

    return convert


def _read_json(pieces: Iterator[bytes], *, reading: Reading, note: NoteAt) -> Iterator[Raw]:
    for number, line in enumerate(_lines(pieces), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one
            note(f"line {number}", "not JSON")
            yield Raw("json", [], "not JSON")
            continue
        text = row.get(reading.field) if isinstance(row, dict) else None
        if isinstance(text, str):
            yield Raw("json", text.split("\n"))
        else:
            note(f"line {number}", f"no text in field {reading.field!r}")
            yield Raw("json", [], f"no text in field {reading.field!r}")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        *lines, rest = piece.split(b"\n")
        if lines:
            held.append(lines[0])
            yield b"".join(held)
            yield from lines[1:]
            held, size = [], 0
        held.append(rest)
        size += len(rest)
        if size > MAX_JSON_LINE:  # no line of text; it ends as one that is not JSON
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


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


def _read_tar(pieces: Iterator[bytes], *, reading: Reading, note: NoteAt) -> Iterator[Raw]:
    name = "the first member"
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Pieces(pieces), 1 << 20), mode="r|") as archive:
            for member in archive:
                name = member.name
                file = archive.extractfile(member) if member.isfile() else None
                if file is None:
                    continue

                def locate(place: str, kind: str, member: str = name) -> None:
                    note(f"{member}, {place}", kind)

                parts = iter(partial(file.read, 1 << 17), b"")
                yield from _read_stream(parts, name, reading=reading, note=locate, nested=True)
    except (tarfile.TarError, EOFError) as error:
        note(f"behind {name}", f"damaged tar ({error})")


def _read_dataset(source: TextSource, reading: Reading) -> Iterator[Raw]:
    data = load_dataset(source.name)
    if reading.field not in data.column_names:
        raise UserError(f"{source.name}: no column {reading.field!r}; it has {', '.join(data.column_names)}. Use --field.")  # fmt: skip
    for start in range(source.start, source.stop, 1000):
        for text in data[start : min(start + 1000, source.stop)][reading.field]:
            known = isinstance(text, str)
            yield Raw("json", text.split("\n") if known else [], "" if known else f"no text in field {reading.field!r}")
