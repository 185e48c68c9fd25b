"""Images and archives that claim or unpack to far more than they are: refused or counted before they cost anything."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_prepare_imagenet as images

from odist.errors import Interrupted, UserError
from odist.prepare.images import files as imagenet_sources
from odist.prepare.images.prepare import ImageOptions, prepare_imagenet

MB = 1 << 20


def resized_header(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size than its data have."""
    at = next(place for marker in (b"\xff\xc0", b"\xff\xc2") if (place := data.find(marker)) > 0)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def png(width: int, height: int) -> bytes:
    """A PNG of one colour; a few bytes for any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes((width + 7) // 8 + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def small(**options: Any) -> bytes:
    return images.encode(images.pixels(3, height=64, width=64), **options)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "header of 12000 x 12000.jpg": (lambda: resized_header(small(), 12_000, 12_000), "too large"),
    "header of 9000 x 9000.jpg": (lambda: resized_header(small(), 9000, 9000), "damaged"),
    "header of 2000 x 3000, progressive.jpg": (lambda: resized_header(small(progressive=True), 2000, 3000), "damaged"),
    "13000 x 13000.png": (lambda: png(13_000, 13_000), "too large"),
    "60000 x 60000.jpg": (lambda: resized_header(small(), 60_000, 60_000), "too large"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_image_that_claims_too_many_pixels_is_dropped(tmp_path: Path, name: str) -> None:
    make, reason = HOSTILE[name]
    root = images.write_folder(tmp_path / "images", {**images.files(), f"train/n01/{name}": make()})
    with pytest.raises(UserError, match=f"{name}: {reason}"):
        images.prepare(tmp_path / "s", root)
    tracemalloc.start()
    try:
        report = images.prepare(tmp_path / "s", root, bad="skip")
        assert tracemalloc.get_traced_memory()[1] < 30 * MB
    finally:
        tracemalloc.stop()
    assert report.dropped == {reason: 1}


def test_images_that_compress_best_are_sound(tmp_path: Path) -> None:
    flat = np.full((2048, 2048, 3), 77, dtype=np.uint8)
    content = {
        "n1/flat.jpg": images.encode(flat, quality=1, optimize=True),
        "n1/progressive.jpg": images.encode(flat, quality=1, progressive=True, optimize=True),
        "n1/grey.jpg": images.encode(flat[:, :, 0], quality=1, progressive=True, optimize=True),
        "n1/narrow.jpg": images.encode(flat[:1], quality=1),
    }
    root = images.write_folder(tmp_path / "images", content)
    assert images.prepare(tmp_path / "s", root).kept == 4


def prepare_tar(folder: Path, data: bytes, **options: Any) -> list[tuple[str, int, int, int]]:
    (folder / "images.tar.gz").write_bytes(data)
    told: list[tuple[str, int, int, int]] = []
    prepare_imagenet(
        [str(folder / "images.tar.gz")],
        output=folder / "s",
        options=ImageOptions(processes=1),
        progress=lambda *step: told.append(step),
        **options,
    )
    return told


def largest(folder: Path) -> int:
    return max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)


def test_what_is_no_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(imagenet_sources.shutil, "disk_usage", lambda _: written.append(largest(tmp_path)))
    with pytest.raises(UserError, match="not a packed tar archive"):
        prepare_tar(tmp_path, gzip.compress(b"\x01" * 300 * MB, 1))
    assert written == []
    assert [path.name for path in tmp_path.iterdir()] == ["images.tar.gz"]


def bomb(size: int) -> bytes:
    info = tarfile.TarInfo("n1/a.bmp")
    info.size = size
    return gzip.compress(info.tobuf() + bytes(size), 1)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_sources, "SMALL_ARCHIVE", 8 * MB)
    with pytest.raises(UserError, match="unpacks to more than 100 times its"):
        prepare_tar(tmp_path, bomb(64 * MB))
    assert [path.name for path in tmp_path.iterdir()] == ["images.tar.gz"]


def test_unpacking_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_sources, "SPACE_STEP", MB)

    class Usage:
        free = MB - 1

    monkeypatch.setattr(imagenet_sources.shutil, "disk_usage", lambda _: Usage())
    with pytest.raises(UserError, match="no space left on the disk"):
        prepare_tar(tmp_path, bomb(4 * MB))
    assert [path.name for path in tmp_path.iterdir()] == ["images.tar.gz"]


def test_unpacking_tells_how_far_it_is_and_can_be_stopped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = {
        path: data + rng.bytes(60_000) for path, data in images.files().items()
    }  # bytes behind the end of a JPEG
    data = gzip.compress(images.tar_bytes(content))
    told = prepare_tar(tmp_path, data)
    unpacked = [(done, total) for step, done, total, _ in told if step == "unpack"]
    assert len(unpacked) > 3
    assert unpacked == sorted(unpacked)
    assert unpacked[-1] == (len(data), len(data))
    left = iter(range(3))
    with pytest.raises(Interrupted, match="while an archive was unpacked"):
        prepare_imagenet([str(tmp_path / "images.tar.gz")], output=tmp_path / "t", options=ImageOptions(processes=1),
                         stop=lambda: next(left, None) is None)  # fmt: skip
    images.prepare(tmp_path / "t", tmp_path / "images.tar.gz")


def test_archives_with_hostile_headers_are_refused(tmp_path: Path) -> None:
    nested = images.tar_bytes({"a.jpg": images.encode(images.pixels(0))})
    for _ in range(12):
        nested = images.tar_bytes({"a.tar": nested})
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 64 * MB
    sound = images.tar_bytes(images.files())
    damaged = bytearray(sound)
    with tarfile.open(fileobj=io.BytesIO(sound)) as archive:
        damaged[archive.getmembers()[5].offset] ^= 255
    cases = {
        "archives in archives": nested,
        "a name of": long_name.tobuf(tarfile.GNU_FORMAT) + b"a" * 64 * MB,
        "bad checksum": bytes(damaged),
    }
    for words, data in cases.items():
        (tmp_path / "images.tar").write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=f"damaged or not whole.*{words}"):
                images.prepare(tmp_path / "s", tmp_path / "images.tar")
            assert tracemalloc.get_traced_memory()[1] < 30 * MB
        finally:
            tracemalloc.stop()
