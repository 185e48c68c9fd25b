"""One part of an ImageNet preparation: some hundred images, read and checked, to files of the work folder.

Each part writes its record last, so that it is done or begun again. Which images there are is left to
imagenet_plan.py, how one is brought to the form of the store to imagenet_image.py, what becomes of all parts to
imagenet.py.

    N.bin     what is stored of the part's images, one after the other
    N.npy     int64 [k, 5]: key of the original bytes, hash of the stored ones, stored size, label, split (0 or 1)
    N.json    counts and dropped files; its presence says that the part is done
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.images import SPLITS
from odist.errors import UserError
from odist.files import save_array, write_atomically
from odist.prepare.images.convert import BadImage, convert
from odist.prepare.images.files import WHOLE, open_rows, row_bytes
from odist.prepare.images.plan import Dropped, Item
from odist.prepare.text.clean import draw

KEY, HASH, SIZE, LABEL, SPLIT = range(5)
TELL = 32  # images between two reports of progress

Tell = Callable[[int, int, int], None]  # bytes read, images, 0 since the last call; may raise to stop


@dataclass
class PartCounts:
    """What a part found."""

    dropped: list[Dropped] = field(default_factory=list)
    grayscale: int = 0
    resized: int = 0
    converted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PartJob:
    """Some images and where their part goes.

    rows: they are rows of a data set
    border: of the draw of the validation part, instead of the share that was asked for
    """

    part: int
    items: list[Item]
    folder: Path
    chosen: dict[str, Any]
    rows: bool
    border: float | None = None

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.part:06d}.{ending}"

    def __str__(self) -> str:
        return f"images {self.items[0].place} to {self.items[-1].place}"


def read_part(job: PartJob, tell: Tell) -> None:
    """Read, check and convert the images of a part; UserError for a bad one if these are refused."""
    chosen, counts, table = job.chosen, PartCounts(), []
    read = told = 0
    with open(job.path("bin"), "wb") as file:
        for number, (item, data) in enumerate(_contents(job)):
            if number % TELL == 0:
                tell(read, number - told, 0)
                read, told = 0, number
            try:
                if isinstance(data, OSError):
                    raise BadImage("unreadable", data.strerror or str(data))
                read += len(data)
                image = convert(data, short_side=chosen["short_side"], decode=chosen["decode"])
            except BadImage as error:
                if chosen["bad"] == "refuse":
                    raise UserError(f"{item.place}: {error.reason}: {error}. --bad skip leaves out such files, and counts "
                                    "and lists them.") from None  # fmt: skip
                counts.dropped.append(Dropped(item.place, error.reason, str(error)))
                continue
            key = _hash(data)
            split = item.split or _drawn(key, job)
            table.append([key, _hash(image.data), len(image.data), item.label, SPLITS.index(split)])
            file.write(image.data)
            counts.grayscale += image.grayscale
            counts.resized += image.resized
            if image.was:
                counts.converted[image.was] = counts.converted.get(image.was, 0) + 1
        file.flush()
        os.fsync(file.fileno())
    save_array(job.path("npy"), np.array(table, dtype=np.int64).reshape(-1, 5))
    write_atomically(job.path("json"), json.dumps(asdict(counts)))
    tell(read, len(job.items) - told, 0)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _drawn(key: int, job: PartJob) -> str:
    # By content, so that equal images never lie in both parts.
    border = job.chosen["validation_fraction"] if job.border is None else job.border
    return SPLITS[draw(key, seed=job.chosen["split_seed"]) < border]


def _contents(job: PartJob) -> Iterator[tuple[Item, bytes | OSError]]:
    if job.rows:
        yield from _rows(job)
        return
    with ExitStack() as stack:
        opened: dict[str, int] = {}
        for item in job.items:
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


def _rows(job: PartJob) -> Iterator[tuple[Item, bytes | OSError]]:
    name = ""
    for item in job.items:
        if item.file.holder != name:
            name = item.file.holder
            data, column, _ = open_rows(name)
        try:
            yield item, row_bytes(data[item.file.offset][column])
        except OSError as error:
            yield item, error
