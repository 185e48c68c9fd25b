"""Reading WARC and WET: sound files against fastwarc, and every kind of damage against what was written."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from odist.prepare.text.warc import WarcRecord, read_records, read_response
from odist.prepare.unpack import unpack

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "commoncrawl"
TEXTS = [f"Page {i}\n" + f"line {i} of some text\n" * (3 + 7 * i) for i in range(12)]
SOUND = ("restored/filter_test_1.part1.warc.wet.gz", "restored/sparkwarc_sample.warc.wet.gz", "warcfile.warc.gz",
         "whirlwind.warc.gz", "whirlwind.warc.wet.gz", "whirlwind.warc.wat.gz", "not-cc/sample-0001.warc.gz")  # fmt: skip


def header(length: int | str, kind: str = "conversion") -> bytes:
    return (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.example/\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {length}\r\n\r\n").encode()  # fmt: skip


def wet(text: str, length: int | str | None = None) -> bytes:
    data = text.encode()
    return header(len(data) if length is None else length) + data + b"\r\n\r\n"


def read(data: bytes) -> tuple[list[WarcRecord], list[tuple[int, str]]]:
    notes: list[tuple[int, str]] = []

    def note(place: int, kind: str) -> None:
        notes.append((place, kind))

    return list(read_records(unpack(io.BytesIO(data), note=note), note=note)), notes


def texts(records: list[WarcRecord]) -> list[str]:
    return [record.block.decode() for record in records]


def members(records: list[bytes]) -> bytes:
    return b"".join(map(gzip.compress, records))


@pytest.mark.parametrize("packing", ["members", "one member", "plain"])
def test_sound_files(packing: str) -> None:
    records = [wet(text) for text in TEXTS]
    joined = b"".join(records)
    data = {"members": members(records), "one member": gzip.compress(joined), "plain": joined}[packing]
    found, notes = read(data)
    assert texts(found) == TEXTS
    assert notes == []
    assert [joined[record.offset :][:8] for record in found] == [b"WARC/1.0"] * len(TEXTS)
    assert {record.kind for record in found} == {"conversion"}
    assert found[0].field("warc-target-uri") == "http://a.example/"


@pytest.mark.parametrize("name", SOUND)
def test_real_files_against_fastwarc(name: str) -> None:
    path = REAL / name
    if not path.is_file():
        pytest.skip("real data not present: shared/data/commoncrawl")
    from fastwarc import warc

    found, notes = read(path.read_bytes())
    with open(path, "rb") as file:
        expected = [
            (record.headers["WARC-Type"], record.reader.read(), record.record_id)
            for record in warc.ArchiveIterator(file, parse_http=False)
        ]
    mine = [(record.kind, record.block, record.field("WARC-Record-ID")) for record in found]
    assert [(kind, block, name.strip("<>")) for kind, block, name in expected] == mine
    assert notes == []


def test_real_damaged_file() -> None:
    path = REAL / "sparkwarc" / "sample.wet.gz"
    if not path.is_file():
        pytest.skip("real data not present: shared/data/commoncrawl")
    found, notes = read(path.read_bytes())
    whole = gzip.decompress(path.read_bytes())
    assert len(found) == whole.count(b"WARC/1.0\n") == 69
    assert [kind for _, kind in notes] == ["wrong Content-Length"] * 21
    # Every byte that is neither header nor a line end between records is in some record.
    assert sum(len(r.block.strip()) + len(r.header.strip()) for r in found) == len(whole) - sum(
        len(gap) for gap in _gaps(whole, found)
    )


def _gaps(whole: bytes, found: list[WarcRecord]) -> Iterator[bytes]:
    # What is left of the file when the text of headers and blocks is taken out in order: nothing but line ends.
    at = 0
    for record in found:
        for part in (record.header.strip(), record.block.strip()):
            next_at = whole.index(part, at)
            yield whole[at:next_at]
            assert not whole[at:next_at].strip()
            at = next_at + len(part)
    yield whole[at:]
    assert not whole[at:].strip()


def test_line_feeds_only() -> None:
    data = b"".join(wet(text) for text in TEXTS).replace(b"\r\n", b"\n")
    assert texts(read(data)[0]) == TEXTS
    assert read(data)[1] == []


@pytest.mark.parametrize("wrong", [-7, 1, 5, 60, 10**4, 10**12])
def test_wrong_length_costs_nothing_else(wrong: int) -> None:
    records = [wet(text) for text in TEXTS]
    records[4] = wet(TEXTS[4], length=len(TEXTS[4]) + wrong)
    for data in (b"".join(records), members(records), gzip.compress(b"".join(records))):
        found, notes = read(data)
        assert [text.strip() for text in texts(found)] == [text.strip() for text in TEXTS]
        assert notes == [(sum(map(len, records[:4])), "wrong Content-Length")]


@pytest.mark.parametrize("length", ["", "many", "-3"])
def test_no_length(length: str) -> None:
    found, notes = read(b"".join([wet(TEXTS[0]), wet(TEXTS[1], length=length), wet(TEXTS[2])]))
    assert [text.strip() for text in texts(found)] == [text.strip() for text in TEXTS[:3]]
    assert [kind for _, kind in notes] == ["wrong Content-Length"]


def test_truncated_gzip_keeps_what_is_there() -> None:
    data = members([wet(text) for text in TEXTS])
    found, notes = read(data[: len(data) - 30])
    assert texts(found)[:-1] == TEXTS[:-1]
    assert TEXTS[-1].startswith(found[-1].block.decode())
    assert [kind for _, kind in notes] == ["truncated gzip", "truncated record"]
    assert notes[0][0] == len(data) - 30


def test_damaged_member_costs_one_record() -> None:
    packed = [gzip.compress(wet(text)) for text in TEXTS]
    at = len(packed[0]) + len(packed[1])
    packed[2] = packed[2][:40] + bytes([packed[2][40] ^ 255, packed[2][41] ^ 255]) + packed[2][42:]
    found, notes = read(b"".join(packed))
    assert texts(found)[-9:] == TEXTS[3:]
    assert texts(found)[:2] == TEXTS[:2]
    assert (at, "damaged gzip member") in notes


def test_checksum_error_keeps_the_text() -> None:
    packed = [bytearray(gzip.compress(wet(text))) for text in TEXTS[:3]]
    packed[1][-6] ^= 1  # of the CRC
    found, notes = read(b"".join(map(bytes, packed)))
    assert texts(found) == TEXTS[:3]
    assert [kind for _, kind in notes] == ["damaged gzip member"]


def test_garbage_is_stepped_over() -> None:
    packed = [gzip.compress(wet(text)) for text in TEXTS[:3]]
    found, notes = read(packed[0] + b"\0" * 512 + packed[1] + b"not gzip at all" + packed[2])
    assert texts(found) == TEXTS[:3]
    assert notes == [(len(packed[0]) + 512 + len(packed[1]), "garbage between gzip members")]
    found, notes = read(wet(TEXTS[0]) + b"some lines\nthat are no record\r\n\r\n" + wet(TEXTS[1]))
    assert texts(found)[1] == TEXTS[1]
    assert len(found) == 2
    assert [kind for _, kind in notes] == ["wrong Content-Length"]


def test_bytes_that_are_no_warc() -> None:
    noise = zlib.compress(b"".join(bytes([i % 251, i * 7 % 253]) for i in range(5000)))
    found, notes = read(noise)
    assert found == []
    assert notes == [(0, "bytes outside records")]
    assert read(b"") == ([], [])


def test_a_record_of_any_size_is_bounded() -> None:
    limit = 100_000
    for size in (limit + 1, 7 * limit):
        big = header(size) + b"x" * size + b"\r\n\r\n"
        joined = wet(TEXTS[0]) + big + wet(TEXTS[1])
        pieces = (joined[at : at + 10_000] for at in range(0, len(joined), 10_000))
        notes: list[tuple[int, str]] = []
        found = list(read_records(pieces, note=lambda *fault, notes=notes: notes.append(fault), max_block=limit))
        assert texts(found) == TEXTS[:2]
        assert notes == [(len(wet(TEXTS[0])), "record too long")]


def test_http_response() -> None:
    page = b"<html>\xc3\xa9</html>"
    chunks = b"5\r\n" + page[:5] + b"\r\n" + hex(len(page) - 5)[2:].encode() + b";x=1\r\n" + page[5:] + b"\r\n0\r\n\r\n"
    head = b'HTTP/1.1 200 OK\r\nContent-Type: Text/HTML; charset="UTF-8"\r\nTransfer-Encoding: chunked\r\n'
    for body in (chunks, page, gzip.compress(page)):  # Common Crawl keeps the header and undoes the chunks
        response = read_response(head + b"\r\n" + body)
        assert (response.status, response.content_type, response.charset) == (200, "text/html", "utf-8")
        assert response.body == page
    assert read_response(b"HTTP/1.0 404\r\n\r\n").status == 404
    assert read_response(page).body == page
