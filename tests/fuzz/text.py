"""Hostile text, WET, WARC and JSON lines, through the preparation: what cannot be read is counted, good text is kept."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

from fuzz.campaign import WrongUse
from fuzz.rows import bomb
from odist.errors import UserError
from odist.prepare.text.prepare import TextOptions, prepare_text

GOOD = 24
BOMB = 60 << 20
SENTENCE = "the old house stood by the river and people came there to see what the men had made of it in those years ."


def story(seed: int) -> str:
    rng = random.Random(seed)
    words = SENTENCE.split()
    return "\n".join(
        " ".join([*rng.choices(words, k=60), str(rng.getrandbits(64)), "end."]).capitalize() for _ in range(3)
    )


def record(content: bytes, *, kind: str = "conversion", length: object = None, **fields: str) -> bytes:
    head = {"WARC-Type": kind, **fields, "Content-Length": str(len(content) if length is None else length)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return b"WARC/1.0\r\n" + lines.encode("utf-8", "surrogateescape") + b"\r\n" + content + b"\r\n\r\n"


def page(body: bytes, *, head: bytes = b"Content-Type: text/html", status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A page as a crawler stored it."""
    return record(status + b"\r\n" + head + b"\r\n\r\n" + body, kind="response", **{"WARC-Target-URI": "http://x/", "Content-Type": "application/http; msgtype=response"})  # fmt: skip


def _wet(rng: random.Random) -> bytes:
    return b"".join(record(story(rng.getrandbits(32)).encode()) for _ in range(4))


def _json(rng: random.Random) -> bytes:
    return "".join(json.dumps({"text": story(rng.getrandbits(32))}) + "\n" for _ in range(4)).encode()


def _any(rng: random.Random) -> bytes:
    return rng.choice([_wet, _json])(rng)


def _flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 4, 64])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    a, b = sorted(rng.sample(range(1, len(content)), 2))
    return rng.choice([content[:a], content[a:], content[:a] + content[b:]])


def _lengths(rng: random.Random) -> bytes:
    length = rng.choice(["-5", "abc", "", 2**32, 2**63, 10**22, "9" * 5000, 0, 10, "1e3", "٣", " 7", "7 7", "+9"])
    return _wet(rng) + record(story(3).encode(), length=length) + _wet(rng)


def _heads(rng: random.Random) -> bytes:
    fields = rng.choice([{"X": "y" * (3 << 20)}, {f"X{i}": "y" for i in range(20_000)}, {"": "x"}, {"A\nB": "c"}, {"WARC-Type": "\udcff"}, {"Content-Length": "7"}])  # fmt: skip
    return _wet(rng) + record(story(4).encode(), **fields) + _wet(rng)


def _pages(rng: random.Random) -> bytes:
    body = rng.choice(
        [
            b"<div>" * 30_000,
            b"<" * 200_000,
            b"<!--" * 50_000,
            b"<table>" * 20_000,
            b"<a href=" + b"x" * 10**6,
            b"<script>" + b"a" * 10**6,
            b"&#" + b"9" * 10**5 + b";",
            b"<p>\0\xff\xfe" * 999,
            b"",
            b"<html>" + story(5).encode(),
            b"<b><i>" * 30_000,
            b"<select><option>" * 9_000,
            b"<svg><math>" * 9_000,
        ]
    )
    head = rng.choice([b"Content-Type: text/html", b"Content-Type: text/html; charset=" + rng.choice([b"utf-16", b"x", b"utf-7", b"\xff", b"idna", b"zlib", b"rot13", b"undefined"]), b"Content-Encoding: gzip", b"Transfer-Encoding: chunked", b"", b"X" * 10**5])  # fmt: skip
    return page(body, head=head, status=rng.choice([b"HTTP/1.1 200 OK", b"HTTP/9", b"", b"HTTP/1.1 " + b"2" * 5000]))


def _lines(rng: random.Random) -> bytes:
    line = rng.choice(
        [
            "[" * 100_000,
            '{"text":' * 50_000,
            '{"text": 5}',
            '{"text": null}',
            '{"text": ["a"]}',
            "{}",
            "null",
            "NaN",
            '"x"',
            '{"text": "\\ud800"}',
            '{"text": "' + "a" * (3 << 20) + '"}',
            '{"text": "a", "text": "b"}',
            '{"text": 1' + "0" * 5000 + "}",
            '{"text": "\\u0000"}',
            "{'text': 'a'}",
            '{"body": "a"}',
        ]
    )
    return _json(rng) + (line + "\n").encode() * rng.choice([1, 3]) + _json(rng)


def _plain(rng: random.Random) -> bytes:
    unit = rng.choice([b"a", b" ", b"\0", b"\xff", "é".encode(), "字".encode(), "\u202e".encode(), b".\n", "\u0301".encode(), "\u2028".encode()])  # fmt: skip
    return unit * rng.randint(1, 999_999)


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "flipped bits": lambda rng: _flipped(rng, _any(rng)),
    "cut": lambda rng: _cut(rng, _any(rng)),
    "lengths that are none": _lengths,
    "heads that are none": _heads,
    "hostile pages": _pages,
    "hostile JSON": _lines,
    "hostile characters": _plain,
    "random bytes": lambda rng: rng.randbytes(rng.randint(1, 99_999)),
    "empty": lambda rng: b"",
    "gzip cut": lambda rng: _cut(rng, gzip.compress(_any(rng))),
    "gzip with flipped bits": lambda rng: _flipped(rng, gzip.compress(_any(rng))),
    "gzip members with rubbish between": lambda rng: rng.randbytes(99).join(gzip.compress(_wet(rng)) for _ in range(3)),
    "gzip in gzip": lambda rng: gzip.compress(gzip.compress(_any(rng))),
    "records of one kind in another": lambda rng: _json(rng) + _wet(rng) + _json(rng),
    "versions that are none": lambda rng: _wet(rng).replace(
        b"WARC/1.0", rng.choice([b"WARC/9.9", b"WARC/", b"HTTP/1.1 200", b"warc/1.0", b"WARC/1.0" * 999])
    ),
    "line ends": lambda rng: _wet(rng).replace(b"\r\n", rng.choice([b"\n", b"\r", b"\r\r\n", b""])),
    "zstd that is none": lambda rng: b"\x28\xb5\x2f\xfd" + rng.randbytes(rng.randint(0, 999)),
    "tar that is none": lambda rng: rng.randbytes(257) + b"ustar\x0000" + rng.randbytes(999),
}
BOMBS = {"gzip bomb of one word": b"a", "gzip bomb of newlines": b"\n", "gzip bomb of words": b"the men "}
NAMES = (".txt", ".json", ".jsonl", ".warc.wet", ".warc", ".warc.wet.gz", ".warc.gz", ".json.gz", ".txt.gz", ".zst", ".tar", ".tar.gz", ".tgz")  # fmt: skip
KINDS = [*MAKERS, *BOMBS]


class Target:
    """Good documents, a tokenizer trained on them, and bombs, which take a while to make."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.good = root / "good.jsonl"
        self.good.write_text("".join(json.dumps({"text": story(seed)}) + "\n" for seed in range(GOOD)))
        options = TextOptions(vocabulary=60, validation_fraction=0.3, language="any", processes=1)
        prepare_text([str(self.good)], output=root / "store", options=options)
        self.tokenizer = root / "store" / "tokenizer.model"
        self.bombs = {kind: bomb(unit, repeat=BOMB // len(unit)) for kind, unit in BOMBS.items()}

    def run(self, kind: str, rng: random.Random, folder: Path) -> str:
        ending = ".txt.gz" if kind in self.bombs else rng.choice(NAMES)
        hostile, output = folder / f"hostile{ending}", folder / "store"
        hostile.write_bytes(self.bombs[kind] if kind in self.bombs else MAKERS[kind](rng))
        inputs = [str(self.good), str(hostile)]
        rng.shuffle(inputs)
        options = TextOptions(
            tokenizer=self.tokenizer,
            validation_fraction=0.3,
            language=rng.choice(["any", "any", "en"]),
            duplicates=rng.choice(["auto", "keep"]),
            damaged=rng.choice(["keep", "keep", "refuse"]),
            processes=1,
        )
        try:
            report = prepare_text(inputs, output=output, options=options)
        except UserError as error:
            if len(str(error).strip().splitlines()) > 2 or len(str(error)) > 2000:
                raise WrongUse(f"no message for a user: {str(error)[:2000]}") from error
            if output.exists() or list(folder.glob("*.partial")):
                raise WrongUse(f"left behind: {[path.name for path in folder.iterdir()]}") from error
            return "rejected"
        if (
            report.records != report.kept + sum(report.dropped.values())
            or sum(report.documents.values()) != report.kept
        ):
            raise WrongUse(f"the counts do not add up: {report}")
        if report.kept < GOOD and options.language == "any":
            raise WrongUse(f"good documents are lost: {report}")
        return "rejected" if report.dropped or report.damage or report.dropped_paragraphs else "harmless"
