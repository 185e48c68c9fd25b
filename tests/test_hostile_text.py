"""Text that is damaged, deeply nested, or unpacks to far more than it seems: counted, in bounded memory, and stoppable."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from test_prepare_text import story, write_json

from odist.data.tokens import TokenStore
from odist.errors import Interrupted, UserError
from odist.prepare.text.prepare import TextOptions, TextReport, prepare_text
from odist.prepare.text.warc import read_response

MB = 1 << 20


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json(tmp_path_factory.mktemp("sound") / "sound.jsonl.gz", [story(seed) for seed in range(20)])


def prepare(folder: Path, *inputs: Path, **options: Any) -> TextReport:
    stop = options.pop("stop", None)
    chosen = TextOptions(**{"processes": 1, "vocabulary": 120, "validation_fraction": 0.2, **options})
    return prepare_text([str(path) for path in inputs], output=folder / "store", options=chosen, stop=stop)


def packed(path: Path, *pieces: bytes) -> Path:
    """Write pieces packed with gzip; a large piece need not be joined with the others."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)
    return path


def response(body: str, content_type: str = "text/html") -> bytes:
    block = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n{body}".encode()
    return b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (len(block), block)


def page(seed: int) -> str:
    return "".join(f"<p>{line}</p>" for line in story(seed).split("\n"))


@pytest.mark.parametrize("row", ["[" * 100_000, '{"text": ' * 50_000, '{"text": ' + "9" * 5000 + "}"])
def test_a_row_of_json_that_cannot_be_parsed_is_one_bad_row(tmp_path: Path, sound: Path, row: str) -> None:
    good = json.dumps({"text": story(50)})
    (tmp_path / "rows.jsonl").write_text(f"{good}\n\n{row}\n{json.dumps({'text': story(51)})}\n")
    report = prepare(tmp_path, sound, tmp_path / "rows.jsonl")
    assert (report.kept, report.dropped, report.damage) == (22, {"not JSON": 1}, {"not JSON": 1})
    assert report.damage_located == [f"{tmp_path / 'rows.jsonl'}: line 3: not JSON"]


@pytest.mark.parametrize("packing", ["plain", "members"])
@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000 + "7", str(2**70)])
def test_a_length_of_thousands_of_digits_is_a_wrong_length(
    tmp_path: Path, sound: Path, digits: str, packing: str
) -> None:
    records = [
        f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {length}\r\n\r\n{text}\r\n\r\n".encode()
        for text in (story(60), story(61), story(62))
        for length in [digits if text == story(61) else len(text)]
    ]
    data = b"".join(map(gzip.compress, records)) if packing == "members" else b"".join(records)
    (tmp_path / "a.wet").write_bytes(data)
    report = prepare(tmp_path, sound, tmp_path / "a.wet")
    assert (report.kept, report.damage) == (23, {"wrong Content-Length": 1})


@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "idna", "punycode", "utf-7", "hex", "../x", "é"])
@pytest.mark.parametrize("kind", ["text/html", "text/plain"])
def test_a_page_of_any_encoding_is_read(tmp_path: Path, sound: Path, charset: str, kind: str) -> None:
    body = page(70) if kind == "text/html" else story(70)
    path = packed(tmp_path / "a.warc.gz", response(body, f"{kind}; charset={charset}"))
    assert prepare(tmp_path, sound, path).kept == 21


def test_a_status_that_is_no_number() -> None:
    for status in ("\u00b2\u00b2\u00b2", "9" * 5000, "", "-200"):
        assert read_response(f"HTTP/1.1 {status} OK\r\n\r\nx".encode("latin-1")).status == 0


def test_a_deeply_nested_page_is_dropped_and_located(tmp_path: Path, sound: Path) -> None:
    def nested(depth: int) -> bytes:
        return response("<div>" * depth + page(80) + "</div>" * depth)

    path = packed(tmp_path / "a.warc.gz", nested(30), nested(8000), nested(100_000), response("<p>x" * 3 * MB))
    report = prepare(tmp_path, sound, path)
    reasons = ("page too deeply nested", "page with too many tags", "page too large")
    assert report.kept == 21
    assert report.dropped == report.damage == dict.fromkeys(reasons, 1)
    assert report.damage_located[0].startswith(f"{path}: record 2, unpacked byte ")
    with pytest.raises(UserError, match="page too deeply nested"):
        prepare(tmp_path / "again", sound, path, damaged="refuse")


def test_formatting_that_is_never_closed_changes_no_text(tmp_path: Path, sound: Path) -> None:
    # A parser opens each of the elements again in every paragraph, 10 million in all; it keeps three of equal ones.
    lines = [line for seed in range(200) for line in story(seed).split("\n")][:2300]
    texts = [
        "".join(f"<b{attribute(i)}><p>{line}" for i, line in enumerate(lines))
        for attribute in (" id={}".format, lambda _: "")
    ]
    for name, text in zip("ab", texts, strict=True):
        packed(tmp_path / f"{name}.warc.gz", response(text))
        prepare(tmp_path / name, sound, tmp_path / f"{name}.warc.gz")
    a, b = (TokenStore.open(tmp_path / name / "store") for name in "ab")
    assert a.fingerprint == b.fingerprint
    assert a.num_documents("train") + a.num_documents("validation") == 21
    names = ["b", "big", "code", "em", "font", "i", "s", "small", "strike", "strong", "tt", "u"]
    worst = "".join(f"<{name}>" for name in names) * 3
    report = prepare(tmp_path / "c", sound, packed(tmp_path / "c.warc.gz", response(f"<p>{worst}" + "</p>x" * 59_900)))
    assert (report.kept, report.dropped) == (20, {"page too deeply nested": 1})


def test_a_record_of_a_million_lines_is_dropped(tmp_path: Path, sound: Path) -> None:
    path = write_json(tmp_path / "a.jsonl.gz", ["ab\n" * MB, story(90)])
    report = prepare(tmp_path, sound, path)
    assert (report.kept, report.dropped) == (21, {"too many lines": 1})


def test_a_word_of_megabytes_is_dropped(tmp_path: Path, sound: Path) -> None:
    path = write_json(tmp_path / "a.jsonl.gz", [story(90) + "\n" + "a" * 3 * MB, story(91), "x" * 17 * MB])
    report = prepare(tmp_path, sound, path, language="any")
    assert (report.kept, report.dropped) == (21, {"word too long": 1, "line too long": 1})


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data)


BOMBS = {
    "a.txt.gz": lambda: gzip.compress(b"a" * 64 * MB, 1),
    "lines.txt.gz": lambda: gzip.compress(b"\n" * 64 * MB, 1),
    "lines.jsonl.gz": lambda: gzip.compress(b"\n" * 64 * MB, 1),
    "lines.warc.gz": lambda: gzip.compress(b"WARC/1.0\r\nContent-Length: 0\r\n\r\n" + b"\n" * 64 * MB, 1),
    "a.txt.zst": lambda: zstd(b"a" * 64 * MB),
    "lists.jsonl.gz": lambda: gzip.compress(b"[" + b"[]," * 21 * MB, 1),
    "name.tar.gz": lambda: gzip.compress(long_name(64 * MB), 1),
}


def long_name(size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"a" * size


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_bounded(tmp_path: Path, sound: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BOMBS[name]())
    assert (tmp_path / name).stat().st_size < MB
    tracemalloc.start()
    try:
        report = prepare(tmp_path, sound, tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < (90 if name == "lines.warc.gz" else 40) * MB  # a record of 64 MB
    finally:
        tracemalloc.stop()
    assert report.kept == 20


def test_text_without_records_can_be_stopped(tmp_path: Path) -> None:
    left = iter(range(20))
    with pytest.raises(Interrupted, match="the same command continues"):
        prepare(tmp_path, packed(tmp_path / "a.txt.gz", b"\n" * 64 * MB), stop=lambda: next(left, None) is None)


def test_a_damaged_header_in_a_tar_is_noted(tmp_path: Path, sound: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for seed in range(3):
            text = story(100 + seed).encode()
            info = tarfile.TarInfo(f"{seed}.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
            place = archive.offset
            if seed == 1:
                second = place
    damaged = bytearray(data.getvalue())
    damaged[second + 5] ^= 255
    (tmp_path / "books.tar").write_bytes(damaged)
    report = prepare(tmp_path, sound, tmp_path / "books.tar")
    assert report.kept == 22
    assert report.damage == {"damaged tar (bad checksum)": 1}


# Lists of paths


def listed(path: Path, lines: str) -> Path:
    path.write_bytes(gzip.compress(lines.encode()))
    return path


def test_a_list_names_nothing_outside_its_base(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "mirror").mkdir()
    for line in (f"file://{sound}", f"FILE://{sound}", f"ftp://{sound}", "http://[x/y"):
        with pytest.raises(UserError, match="nor an http address"):
            prepare(tmp_path, listed(tmp_path / "wet.paths.gz", f"{line}\n"), base_url="http://127.0.0.1:9/")
    for line in (f"../{sound.name}", str(sound)):
        with pytest.raises(UserError, match="lead out of"):
            prepare(tmp_path, listed(tmp_path / "wet.paths.gz", line), base_url=str(tmp_path / "mirror"))
    (tmp_path / "mirror" / sound.name).write_bytes(sound.read_bytes())
    assert (
        prepare(tmp_path, listed(tmp_path / "wet.paths.gz", sound.name), base_url=str(tmp_path / "mirror")).kept == 20
    )


def test_a_list_is_bounded(tmp_path: Path) -> None:
    names = packed(tmp_path / "wet.paths.gz", b"a\n" * 1_000_001)
    with pytest.raises(UserError, match="more than 1,000,000 paths"):
        prepare(tmp_path, names, base_url=str(tmp_path))
    with pytest.raises(UserError, match="more than 128 MB unpacked"):
        prepare(tmp_path, packed(tmp_path / "wet.paths.gz", *[bytes(8 * MB)] * 17), base_url=str(tmp_path))


def test_random_damage_never_ends_a_preparation(tmp_path: Path, sound: Path) -> None:
    rng = random.Random(0)
    rows = "".join(json.dumps({"text": story(seed, 2)}) + "\n" for seed in range(4)).encode()
    web = b"".join(response(page(seed)) for seed in range(4))
    for number in range(12):
        data = bytearray(gzip.compress(rows) if number % 3 == 0 else gzip.compress(web) if number % 3 == 1 else web)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(4, len(data))] = rng.randrange(256)
        path = tmp_path / f"{number}.{'jsonl' if number % 3 == 0 else 'warc'}"
        path.write_bytes(data[: rng.randint(len(data) // 2, len(data))])
    report = prepare(tmp_path, sound, *sorted(tmp_path.iterdir()))
    assert report.records == report.kept + sum(report.dropped.values())
    assert report.kept >= 20
