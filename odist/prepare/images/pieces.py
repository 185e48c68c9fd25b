"""One piece of an image preparation: some hundred images, read and checked, to files of the work folder.

Each piece writes its record last, so that it is done or begun again.

    N.bin     what is stored of the piece's images, one after the other
    N.npy     int64 [k, 5]: key of the original bytes, hash of the stored ones, stored size, label, split (0 or 1)
    N.json    counts and dropped files; its presence says that the piece is done
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from odist.data.images import SPLITS
from odist.errors import UserError
from odist.files import save_array, write_atomically
from odist.prepare.images.convert import BadImage, convert
from odist.prepare.images.files import WHOLE, open_rows, row_bytes
from odist.prepare.images.layout import DroppedFile
from odist.prepare.images.options import ImageChoices
from odist.prepare.images.plan import Item
from odist.prepare.options import draw
from odist.prepare.pool import Tell

KEY, HASH, SIZE, LABEL, SPLIT = range(5)
TELL = 32  # images between two reports of progress


@dataclass
class PieceCounts:
    """What a piece found."""

    dropped: list[DroppedFile] = field(default_factory=list)
    grayscale: int = 0
    resized: int = 0
    converted: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, piece: ImagePiece) -> PieceCounts:
        """Read what `convert_piece` wrote."""
        content = json.loads(piece.path("json").read_text(encoding="utf-8"))
        return cls(**{**content, "dropped": [DroppedFile(**entry) for entry in content["dropped"]]})


@dataclass(frozen=True)
class ImagePiece:
    """Some images and where their files go.

    rows: they are rows of a data set
    border: of the draw of the validation part, instead of the share that was asked for
    """

    number: int
    items: list[Item]
    folder: Path
    choices: ImageChoices
    rows: bool
    border: float | None = None

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.number:06d}.{ending}"

    @property
    def done(self) -> bool:
        """Whether its record was written."""
        return self.path("json").is_file()

    def table(self) -> np.ndarray:
        """What N.npy says."""
        return np.load(self.path("npy"), allow_pickle=False)

    def __str__(self) -> str:
        return f"images {self.items[0].place} to {self.items[-1].place}"


def convert_piece(piece: ImagePiece, tell: Tell) -> None:
    """Read, check and convert the images of a piece; UserError for a bad one if these are refused."""
    choices, counts, table = piece.choices, PieceCounts(), []
    read = told = 0
    with open(piece.path("bin"), "wb") as file:
        for number, (item, data) in enumerate(_contents(piece)):
            if number % TELL == 0:
                tell(read, number - told, 0)
                read, told = 0, number
            try:
                if isinstance(data, OSError):
                    raise BadImage("unreadable", data.strerror or str(data))
                read += len(data)
                image = convert(data, short_side=choices.short_side, decode=choices.decode)
            except BadImage as error:
                if choices.bad == "refuse":
                    raise UserError(
                        f"{item.place}: {error.reason}: {error}. --bad skip leaves such files out, and counts and "
                        "lists them."
                    ) from None
                counts.dropped.append(DroppedFile(item.place, error.reason, str(error)))
                continue
            key = _hash(data)
            split = item.split or _drawn(key, piece)
            table.append([key, _hash(image.data), len(image.data), item.label, SPLITS.index(split)])
            file.write(image.data)
            counts.grayscale += image.grayscale
            counts.resized += image.resized
            if image.was:
                counts.converted[image.was] = counts.converted.get(image.was, 0) + 1
        file.flush()
        os.fsync(file.fileno())
    save_array(piece.path("npy"), np.array(table, dtype=np.int64).reshape(-1, 5))
    write_atomically(piece.path("json"), json.dumps(asdict(counts)))
    tell(read, len(piece.items) - told, 0)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _drawn(key: int, piece: ImagePiece) -> str:
    # By content, so that equal images never lie in both parts.
    border = piece.choices.validation_fraction if piece.border is None else piece.border
    assert border is not None
    return SPLITS[draw(key, seed=piece.choices.split_seed or 0) < border]


def _contents(piece: ImagePiece) -> Iterator[tuple[Item, bytes | OSError]]:
    if piece.rows:
        yield from _rows(piece)
        return
    with ExitStack() as stack:
        opened: dict[str, int] = {}
        for item in piece.items:
            file = item.file
            data: bytes | OSError
            try:
                if file.offset == WHOLE:
                    data = Path(file.holder).read_bytes()
                else:
                    if file.holder not in opened:
                        opened[file.holder] = os.open(file.holder, os.O_RDONLY)
                        stack.callback(os.close, opened[file.holder])
                    data = os.pread(opened[file.holder], file.size, file.offset)
            except OSError as error:
                data = error
            yield item, data


def _rows(piece: ImagePiece) -> Iterator[tuple[Item, bytes | OSError]]:
    name = ""
    for item in piece.items:
        if item.file.holder != name:
            name = item.file.holder
            data, column, _ = open_rows(name)
        try:
            yield item, row_bytes(data[item.file.offset][column])
        except OSError as error:
            yield item, error
