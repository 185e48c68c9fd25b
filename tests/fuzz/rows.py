"""Hostile Criteo rows, through the preparation: refused with one message, or counted, and the good rows kept."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fuzz.campaign import WrongUse
from odist.data.rows import RowStore
from odist.errors import UserError
from odist.prepare.criteo.prepare import CriteoOptions, prepare_criteo

GOOD = 40
BOMB = 300 << 20  # bytes that a small file unpacks to


def good_rows(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "\t".join([
            str(rng.randrange(2)),
            *(str(rng.randrange(-2, 5000)) if rng.random() < 0.9 else "" for _ in range(13)),
            *(f"{rng.getrandbits(32):08x}" if rng.random() < 0.9 else "" for _ in range(26)),
        ])
        for _ in range(count)
    ]  # fmt: skip


def bomb(unit: bytes, *, repeat: int) -> bytes:
    """A gzip file of so many units, made without holding them."""
    output = io.BytesIO()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=1, mtime=0) as file:
        block = unit * (1 << 16)
        for _ in range(max(1, repeat * len(unit) // len(block))):
            file.write(block)
    return output.getvalue()


def _cells(rng: random.Random, value: str) -> bytes:
    """Good rows, some of whose cells hold `value`."""
    rows = [row.split("\t") for row in good_rows(20, rng.getrandbits(32))]
    for row in rng.sample(rows, rng.randint(1, 5)):
        row[rng.randrange(40)] = value
    return "\n".join("\t".join(row) for row in rows).encode("utf-8", "surrogateescape") + b"\n"


def _text(rng: random.Random) -> bytes:
    return "".join(f"{row}\n" for row in good_rows(20, rng.getrandbits(32))).encode()


def _flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 4, 64])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(1, len(content))]


def _columns(rng: random.Random) -> bytes:
    rows = [row.split("\t") for row in good_rows(20, rng.getrandbits(32))]
    for row in rng.sample(rows, rng.randint(1, 9)):
        row[:] = (row * 3000)[: rng.choice([0, 1, 38, 39, 41, 80, 100_000])]
    return "\n".join("\t".join(row) for row in rows).encode() + b"\n"


def _tar(rng: random.Random) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        info = tarfile.TarInfo(rng.choice(["../../../beside", "/tmp/beside", "a"]))
        content = _text(rng)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return output.getvalue()


NUMBERS = [
    "9" * 400,
    "-" * 9,
    "1e999",
    "nan",
    "inf",
    "0x10",
    "١٢",
    "1_000",
    "+5",
    "-0",
    "2147483648",
    "-2147483649",
    "1.5",
    " 1",
]
WORDS = ["g" * 8, "0" * 9, "00", "\x00", "é", "\udcff", "x" * 10**6, '"', '"\t"', "\r", "0000000G", "-1", "ffffffff "]
MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "numbers that are none": lambda rng: _cells(rng, rng.choice(NUMBERS)),
    "words that are none": lambda rng: _cells(rng, rng.choice(WORDS)),
    "labels that are none": lambda rng: "".join(
        f"{rng.choice(['2', '-1', '', 'x', '0.5', '1.0', 'nan'])}{row[1:]}\n"
        for row in good_rows(9, rng.getrandbits(32))
    ).encode(),
    "rows without label": lambda rng: "".join(row[2:] + "\n" for row in good_rows(9, rng.getrandbits(32))).encode(),
    "columns too few or many": _columns,
    "flipped bits": lambda rng: _flipped(rng, _text(rng)),
    "cut": lambda rng: _cut(rng, _text(rng)),
    "empty": lambda rng: b"",
    "line ends": lambda rng: _text(rng).replace(
        b"\n", rng.choice([b"\r", b"\r\n", b"\n\n\n", b"\0", b"\x0b", b"\n\r"])
    ),
    "one endless line": lambda rng: rng.choice([b"1", b"\t", b"a", b"\0", b" "]) * (8 << 20),
    "newlines alone": lambda rng: b"\n" * rng.randint(1, 99_999),
    "random bytes": lambda rng: rng.randbytes(rng.randint(1, 99_999)),
    "another encoding": lambda rng: _text(rng).decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"])),
    "gzip cut": lambda rng: _cut(rng, gzip.compress(_text(rng))),
    "gzip with flipped bits": lambda rng: _flipped(rng, gzip.compress(_text(rng))),
    "gzip with a tail": lambda rng: gzip.compress(_text(rng)) + rng.randbytes(rng.randint(1, 999)),
    "gzip in gzip": lambda rng: gzip.compress(gzip.compress(_text(rng))),
    "parquet that is none": lambda rng: b"PAR1" + rng.randbytes(rng.randint(0, 999)) + rng.choice([b"", b"PAR1"]),
    "zip or tar": lambda rng: rng.choice([b"PK\3\4" + rng.randbytes(99), _tar(rng)]),
    "a table with a head": lambda rng: b"label,I1,I2\n1,2,3\n" * rng.randint(1, 9),
}
BOMBS = {"gzip bomb of zeros": b"\0", "gzip bomb of lines": b"\n", "gzip bomb of one line": b"1\t"}
KINDS = [*MAKERS, *BOMBS]


class Target:
    """Good rows as they are stored alone, and bombs, which take a while to make."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.good = root / "good.txt"
        self.good.write_text("".join(f"{row}\n" for row in good_rows(GOOD, 1)))
        prepare_criteo([str(self.good)], output=root / "store", options=self._options("refuse"))
        self.stored = _stored(root / "store")
        self.bombs = {kind: bomb(unit, repeat=BOMB // len(unit)) for kind, unit in BOMBS.items()}

    def _options(self, bad_rows: str) -> CriteoOptions:
        return CriteoOptions(buckets=1009, split="random", bad_rows=bad_rows, threads=1)

    def run(self, kind: str, rng: random.Random, folder: Path) -> str:
        hostile, output, bad_rows = folder / "hostile", folder / "store", rng.choice(["refuse", "skip"])
        hostile.write_bytes(self.bombs[kind] if kind in self.bombs else MAKERS[kind](rng))
        inputs = [str(self.good), str(hostile)]
        rng.shuffle(inputs)
        try:
            report = prepare_criteo(inputs, output=output, options=self._options(bad_rows))
        except UserError as error:
            if "\n" in str(error).strip() or len(str(error)) > 2000:
                raise WrongUse(f"no message for a user: {str(error)[:2000]}") from error
            if output.exists() or list(folder.glob("*.partial")):
                raise WrongUse(f"left behind: {[path.name for path in folder.iterdir()]}") from error
            return "rejected"
        if not self.stored <= _stored(output):
            raise WrongUse("rows of the good file are not in the store")
        bad = sum(report.bad_rows.values())
        if bad and bad_rows == "refuse":
            raise WrongUse(f"{report.bad_rows} with bad_rows=refuse")
        return "rejected" if bad else "harmless"


def _stored(store: Path) -> set[bytes]:
    opened = RowStore.open(store)
    return {
        row.tobytes()
        for split in ("train", "validation")
        for row in opened.gather(split, np.arange(opened.num_rows(split)))
    }
