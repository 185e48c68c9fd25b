"""Hostile images, through the preparation: refused by name or left out and counted, and the good images kept."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.campaign import WrongUse
from fuzz.rows import bomb
from odist.errors import UserError
from odist.prepare.images.prepare import ImageOptions, prepare_imagenet

GOOD = 6
BOMB = 300 << 20
NO_IMAGES = {"outside a class folder", "hidden", "unused part", "no label"}  # left out under bad=refuse too


def picture(rng: random.Random, kind: str = "JPEG", *, side: int = 24, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 255, (side // 4, side // 4, 3), dtype=np.uint8)
    output = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).convert(mode).save(output, kind)
    return output.getvalue()


def png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """A PNG of this head, whatever its data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _resized_head(rng: random.Random) -> bytes:
    """A JPEG whose head says another size."""
    content = bytearray(picture(rng))
    place = content.find(b"\xff\xc0")
    struct.pack_into(">HH", content, place + 5, *rng.choices([0, 1, 23, 25, 4000, 12_000, 65_535], k=2))
    return bytes(content)


def _flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 4, 64])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(1, len(content))]


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return output.getvalue()


def _any(rng: random.Random) -> bytes:
    return picture(rng, rng.choice(["JPEG", "JPEG", "PNG"]))


def _outside(rng: random.Random) -> bytes:
    name = rng.choice(["../../../beside.JPEG", "/tmp/beside.JPEG", "train/../../n01/a.JPEG", "train/n01/" + "a" * 300 + ".JPEG", "train//n01//a.JPEG", "./train/n01/a.JPEG", "train/n\udcff/a.JPEG", ""])  # fmt: skip
    return tar_of((name, picture(rng)), ("train/n01/z.JPEG", picture(rng)))


def _links(rng: random.Random) -> bytes:
    kind = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
    return tar_of(("train/n01/a.JPEG", b""), kind=kind)


# What lies in a class folder beside good images
PICTURES: dict[str, Callable[[random.Random], bytes]] = {
    "flipped bits": lambda rng: _flipped(rng, _any(rng)),
    "cut": lambda rng: _cut(rng, _any(rng)),
    "longer": lambda rng: _any(rng) + rng.randbytes(rng.randint(1, 9999)),
    "empty": lambda rng: b"",
    "random bytes": lambda rng: rng.randbytes(rng.randint(1, 9999)),
    "text": lambda rng: b"<html>not found</html>",
    "head of another size": _resized_head,
    "PNG of another size": lambda rng: png(
        *rng.choices([0, 1, 7, 13_000, 60_000, 2**31 - 1, 2**32 - 1], k=2), data=b"\0" * rng.choice([0, 99, 10**6])
    ),
    "PNG of another depth": lambda rng: png(
        8, 8, depth=rng.choice([0, 1, 3, 16, 255]), color=rng.choice([0, 1, 2, 3, 4, 6, 7]), data=b"\0" * 400
    ),
    "other modes": lambda rng: picture(rng, *rng.choice([("PNG",), ("TIFF",), ("GIF",), ("BMP",), ("WEBP",)])),
    "CMYK, gray, one bit": lambda rng: picture(
        rng, "TIFF" if (mode := rng.choice(["CMYK", "L", "1"])) == "1" else "JPEG", mode=mode
    ),
    "tiny": lambda rng: picture(rng, side=4),
    "start alone": lambda rng: rng.choice(
        [
            b"\xff\xd8",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"RIFF\0\0\0\0WEBP",
            b"II*\0",
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
        ]
    ),
    "a gzip of one": lambda rng: gzip.compress(_any(rng)),
}
# An archive of its own, the only input
ARCHIVES: dict[str, Callable[[random.Random], bytes]] = {
    "tar cut": lambda rng: _cut(rng, tar_of(*((f"train/n01/{i}.JPEG", _any(rng)) for i in range(4)))),
    "tar with flipped bits": lambda rng: _flipped(rng, tar_of(*((f"train/n01/{i}.JPEG", _any(rng)) for i in range(4)))),
    "tar with names outside": _outside,
    "tar with links and devices": _links,
    "tar of tars": lambda rng: tar_of(("n01.tar", tar_of(("n02.tar", tar_of(("a.JPEG", _any(rng))))))),
    "tar with a name twice": lambda rng: tar_of(*(("train/n01/a.JPEG", _any(rng)) for _ in range(3))),
    "tar of random bytes": lambda rng: rng.randbytes(rng.randint(1, 99_999)),
    "parquet that is none": lambda rng: b"PAR1" + rng.randbytes(99) + b"PAR1",
}
BOMBS = {"gzip bomb": b"\0"}
KINDS = [*PICTURES, *ARCHIVES, *BOMBS]


class Target:
    """A folder of good images, and a bomb, which takes a while to make."""

    def __init__(self, root: Path) -> None:
        rng = random.Random(1)
        self.images = {
            f"train/{name}/{number}.JPEG": picture(rng) for name in ("n01", "n02") for number in range(GOOD // 2)
        }
        self.bombs = {kind: bomb(unit, repeat=BOMB // len(unit)) for kind, unit in BOMBS.items()}

    def run(self, kind: str, rng: random.Random, folder: Path) -> str:
        root, output = folder / "images", folder / "store"
        for name, content in self.images.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        inputs = [str(root)]
        if kind in PICTURES:
            for number in range(rng.choice([1, 2])):
                name = rng.choice(["JPEG", "jpg", "png", "JPEG"])
                (root / "train" / rng.choice(["n01", "n02"]) / f"x{number}.{name}").write_bytes(PICTURES[kind](rng))
        else:
            hostile = folder / rng.choice(["x.tar", "x.tar.gz", "x.tgz"] if kind in ARCHIVES else ["x.tar.gz"])
            hostile.write_bytes(self.bombs[kind] if kind in self.bombs else ARCHIVES[kind](rng))
            inputs.append(str(hostile))
        options = ImageOptions(
            validation_fraction=0.2,
            decode=rng.choice([None, 16]),
            bad=rng.choice(["refuse", "skip", "skip"]),
            processes=1,
        )
        try:
            report = prepare_imagenet(inputs, output=output, options=options)
        except UserError as error:
            if len(str(error).strip().splitlines()) > 2 or len(str(error)) > 2000:
                raise WrongUse(f"no message for a user: {str(error)[:2000]}") from error
            if output.exists() or list(folder.glob("*.partial")):
                raise WrongUse(f"left behind: {[path.name for path in folder.iterdir()]}") from error
            return "rejected"
        if report.files != report.kept + sum(report.dropped.values()) or report.kept < GOOD:
            raise WrongUse(f"the counts do not add up: {report}")
        if set(report.dropped) - NO_IMAGES and options.bad == "refuse":
            raise WrongUse(f"{report.dropped} with bad=refuse")
        return "rejected" if report.dropped else "harmless"
