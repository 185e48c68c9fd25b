"""The bytes of a packed file, gzip or zstd, out of sound and damaged ones, and the members of tar archives.

Gzip is unpacked member by member and read on after a damaged one; every fault goes to `note(place, kind)`.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, Self, cast

from odist.errors import UserError

Note = Callable[[int, str], None]  # (byte offset, kind of damage)
CHUNK = 1 << 15
MAX_PIECE = 1 << 20  # unpacked bytes at once, however well they were packed
ZSTD_STEP = 128  # packed bytes at once: four may stand for 128 kB, and the unpacker takes no limit
MAX_WINDOW = 1 << 31  # of zstd --long=31, in which large collections of text are packed
GZIP = b"\x1f\x8b"
GZIP_MEMBER = b"\x1f\x8b\x08"  # deflate is the only method there is
MAX_LONG_NAME = 1 << 20
_IN_MEMORY = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
ZSTD = b"\x28\xb5\x2f\xfd"


class TarMember(tarfile.TarInfo):
    """A member of an archive; a damaged header is an error instead of the end, and the length of names is limited."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header as tarfile does; ReadError for damage, which tarfile takes for the end, and for long names."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None
        if member.type in _IN_MEMORY and member.size > MAX_LONG_NAME:
            raise tarfile.ReadError(f"a name of {member.size:,} bytes")
        return member


def begins_tar(start: bytes) -> bool:
    """Tell whether bytes begin with the header of a tar archive."""
    try:
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive opened with `tarinfo=TarMember`, and keep none; TarError for any damage."""
    while True:
        try:
            member = archive.next()
        except (ValueError, OverflowError, RecursionError, EOFError) as error:  # numbers in extended headers, for one
            raise tarfile.ReadError(str(error)) from None
        if member is None:
            return
        archive.members.clear()  # type: ignore[attr-defined]
        yield member


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def unpack(file: BinaryIO, *, note: Note, salvage: bool = True) -> Iterator[bytes]:
    """Yield the unpacked content of a file in pieces of a few MB at most; faults are noted with their place.

    file: seekable; its first bytes tell gzip and zstd from plain
    salvage: give what a damaged gzip member holds up to the damage, before that is noted
    """
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if start.startswith(GZIP):
        return _unpack_gzip(file, note, salvage=salvage)
    if start.startswith(ZSTD):
        return _unpack_zstd(file, note)
    return iter(lambda: file.read(CHUNK), b"")


def _unpack_gzip(file: BinaryIO, note: Note, *, salvage: bool) -> Iterator[bytes]:
    create, errors = _inflate()
    data, end = file.read(CHUNK), False  # data: packed bytes not yet taken; end: of the file
    position = 0  # of data in the file
    while True:
        while not end and len(data) < len(GZIP_MEMBER):
            more = file.read(CHUNK)
            data, end = data + more, not more
        if not data:
            return
        if not data.startswith(GZIP_MEMBER):
            found = _next_member(file, position + 1)
            if data[: found - position].strip(b"\0"):  # padding with zeros is allowed
                note(position, "garbage between gzip members")
            file.seek(found)
            position, data, end = found, file.read(CHUNK), False
            continue
        member, emitted, unpacker = position, 0, create()
        try:
            while True:
                piece = unpacker.decompress(data, MAX_PIECE)
                emitted += len(piece)
                if piece:
                    yield piece
                left = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                position, data = position + len(data) - len(left), left
                if unpacker.eof:
                    break
                if data or len(piece) == MAX_PIECE:  # the unpacker has more
                    continue
                data = file.read(CHUNK)
                if not data:
                    note(position, "truncated gzip")
                    return
        except errors:
            if salvage:
                yield from _salvage(file, member, emitted)
            note(member, "damaged gzip member")
            position = _next_member(file, member + 1)
            file.seek(position)
            data, end = file.read(CHUNK), False


def _inflate() -> tuple[Callable[[], _Unpacker], tuple[type[Exception], ...]]:
    try:
        from isal import isal_zlib
    except ImportError:  # the same bytes at about a third of the speed
        return lambda: zlib.decompressobj(31), (zlib.error,)
    return lambda: cast(_Unpacker, isal_zlib.decompressobj(31)), (zlib.error, cast(type[Exception], isal_zlib.error))


def _salvage(file: BinaryIO, member: int, skip: int) -> Iterator[bytes]:
    # What a damaged member holds up to the damage, less `skip` bytes: at the end byte by byte, as a step that fails
    # gives nothing. The line ends behind it let a reader of records or lines find the next one.
    file.seek(member)
    unpacker = zlib.decompressobj(31)
    while data := file.read(4096):
        before = unpacker.copy()
        try:
            piece = unpacker.decompress(data)
        except zlib.error:
            piece = _bytewise(before, data)
            data = b""
        if len(piece) > skip:
            yield piece[skip:]
        skip = max(0, skip - len(piece))
        if not data:
            break
    yield b"\n\n"


def _bytewise(unpacker: _Unpacker, data: bytes) -> bytes:
    pieces = []
    try:
        for at in range(len(data)):
            pieces.append(unpacker.decompress(data[at : at + 1]))
    except zlib.error:
        pass
    return b"".join(pieces)


def _next_member(file: BinaryIO, position: int) -> int:
    # Where the next gzip header may begin, or the end of the file.
    file.seek(position)
    rest = b""
    while data := file.read(CHUNK):
        found = (rest + data).find(GZIP_MEMBER)
        if found >= 0:
            return position - len(rest) + found
        position += len(data)
        rest = (rest + data)[-2:]
    return position


def _unpack_zstd(file: BinaryIO, note: Note) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            "a zstd file is read with zstandard, which is not installed. Type: pip install zstandard"
        ) from None

    def create() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()

    unpacker, position, data, held = create(), 0, memoryview(file.read(CHUNK)), bytearray()
    try:
        while data:
            step = data[:ZSTD_STEP]
            held += unpacker.decompress(step)
            taken = len(step) - len(unpacker.unused_data)
            position, data = position + taken, data[taken:] or memoryview(file.read(CHUNK))
            if len(held) >= MAX_PIECE or not data:
                yield bytes(held)
                held.clear()
            if unpacker.eof:
                unpacker = create()
            elif not data:
                note(position, "truncated zstd")
    except zstandard.ZstdError:
        yield bytes(held)
        note(position, "damaged zstd")
