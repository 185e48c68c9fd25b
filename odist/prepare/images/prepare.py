"""Images in classes (ImageNet, CIFAR-10, ...): raw files -> a memory-mapped image store (odist.data.images).

Files are listed where they lie, in folders or archives; processes read, check and convert them piece by piece, and
pieces are appended in order. Then rows get their order, drawn by content. The result does not depend on the number of
processes, nor on interruptions; a folder and a tar of it give the same rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.images import CLASSES, SPLITS, ImageStore, store_record
from odist.errors import UserError
from odist.files import write_atomically
from odist.prepare.images.files import ImageFile, ImageSource, find_image_sources, list_files
from odist.prepare.images.labels import read_labels
from odist.prepare.images.layout import UNLABELLED, DroppedFile
from odist.prepare.images.options import ImageOptions, ImageReport
from odist.prepare.images.pieces import KEY, SIZE, SPLIT, ImagePiece, PieceCounts, convert_piece
from odist.prepare.images.plan import Known, Plan, plan_dataset, plan_files
from odist.prepare.images.seal import seal_images
from odist.prepare.job import Preparation, ShowProgress, Stop
from odist.prepare.options import draw
from odist.prepare.pool import run_jobs
from odist.run.provenance import num_cores

__all__ = ["ImageOptions", "ImageReport", "prepare_imagenet"]

DROPPED = "dropped.jsonl"
PIECE_IMAGES = 512
PIECE_ROWS = 4096  # of a data set, which takes long to open
ROUND_PIECES = 32  # pieces of each process before they are appended; bounds what lies on the disk twice
LOCATED = 10  # dropped files that the report names


def prepare_imagenet(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: ImageOptions,
    progress: ShowProgress | None = None,
    stop: Stop | None = None,
) -> ImageReport:
    """Turn images into a store; the same call continues an interrupted one, to the same bytes.

    inputs: see find_image_sources; see layout.py
    output: folder to make; done already by the same request: nothing happens and the report says so
    like: a prepared store whose classes are used; then every image is a validation image, unless
        options.validation_fraction is given
    progress: told the bytes unpacked or read and in all, and the images
    stop: polled; once true, what is done is kept and Interrupted raised
    Raises UserError for wrong input, with nothing left behind, and Interrupted.
    """
    return ImagePreparation(inputs, like=like, options=options, progress=progress, stop=stop).run(output)


@dataclass
class ImageState:
    """What is appended: pieces, and bytes of each split. border: see ImagePiece"""

    parts: int = 0  # as the journal of earlier versions has it
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    border: float | None = None


class ImagePreparation(Preparation[ImageOptions, ImageReport]):
    """One call; everything that lasts is in the folder and its journal."""

    full_disk = "A store of JPEG is as large as its images. Give --short-side, or name an output on another disk."
    report_type = ImageReport

    def find(self, inputs: list[str], like: Path | None) -> None:
        options = self.options
        self.other = None if like is None else ImageStore.open(like)
        self.choices = options.resolve(self.other)
        self.sources = find_image_sources(inputs)
        self.processes = options.processes or num_cores()
        kinds = {source.kind == "datasets" for source in self.sources}
        if len(kinds) > 1 or (True in kinds and options.labels is not None):
            raise UserError("a data set has its own labels and stands alone. Leave out the other inputs and --labels.")
        if options.synsets is not None and options.labels is None:
            raise UserError("--synsets says what the numbers of --labels mean. Give both.")
        self.state = ImageState()
        self.plan = Plan([], [], [])  # until the input is listed
        self.pieces: list[ImagePiece] = []
        self.images = 0  # read by this call

    def request(self) -> dict[str, Any]:
        return {
            "task": "imagenet",
            "options": asdict(self.choices),
            "labels": _digest(self.options.labels),
            "synsets": _digest(self.options.synsets),
            "like": None if self.other is None else self.other.fitted_fingerprint,
            "sources": [source.identity() for source in self.sources],
        }

    def start(self, journal: dict[str, Any] | None) -> None:
        if journal is not None:
            self.state = ImageState(**journal)

    def journal(self) -> dict[str, Any]:
        return asdict(self.state)

    def steps(self) -> dict[str, Callable[[], None]]:
        return {"list": self._list, "read": self._read, "split": self._split}

    def kept(self, step: str) -> str:
        if not self.pieces:
            return "while an archive was unpacked; the archives before it are"
        done = self.state.parts + sum(piece.done for piece in self.pieces[self.state.parts :])
        return f"{done} of {len(self.pieces)} pieces of the input are"

    def _list(self) -> None:
        known = None
        if self.other is not None:
            known = Known(self.other.path, self.other.classes, validation=self.choices.validation_fraction is None)
        if self.sources[0].kind == "datasets":
            self.plan = plan_dataset(self.sources, known=known)
        else:
            labels = None if self.options.labels is None else read_labels(self.options.labels, self.options.synsets)
            self.plan = plan_files(self.sources, files=self._files, labels=labels, known=known)
        unlabelled = next((entry for entry in self.plan.dropped if entry.reason == UNLABELLED), None)
        if self.choices.bad == "refuse" and unlabelled is not None:
            raise UserError(
                f"{unlabelled.file}: {unlabelled.reason}. --bad skip leaves such files out, and counts and lists them."
            )
        self.pieces = self._cut()

    def _files(self, position: int, source: ImageSource) -> list[ImageFile]:
        def tell(done: int, total: int) -> None:
            self.poll()
            self.progress("unpack", done, total, {})

        return list_files(source, position=position, work=self.work, tell=tell)

    def _cut(self) -> list[ImagePiece]:
        rows = self.sources[0].kind == "datasets"
        size, items, border = PIECE_ROWS if rows else PIECE_IMAGES, self.plan.items, self.state.border
        folder = self.work if border is None else self.work / "moved"  # apart from what was read with another border
        folder.mkdir(exist_ok=True)
        return [
            ImagePiece(number, items[start : start + size], folder, self.choices, rows, border)
            for number, start in enumerate(range(0, len(items), size))
        ]

    def _read(self) -> None:
        sizes = [sum(item.file.size for item in piece.items) for piece in self.pieces]
        left = [piece.number for piece in self.pieces[self.state.parts :] if not piece.done]
        total, done = sum(sizes), sum(sizes) - sum(sizes[number] for number in left)

        def advance(num_bytes: int, images: int, _: int) -> None:
            nonlocal done
            done, self.images = done + num_bytes, self.images + images
            self.progress("read", done, total, {"images": self.images})

        each = ROUND_PIECES * self.processes
        for start in range(self.state.parts, len(self.pieces), each):
            some = self.pieces[start : start + each]
            waiting = [piece for piece in some if not piece.done]
            run_jobs(convert_piece, waiting, processes=self.processes, progress=advance, stop=self.stop)
            self._append(some)

    def _split(self) -> None:
        border = self._moved_border()
        if border is not None:
            self.state = ImageState(border=border)
            self.save()
            self.pieces = self._cut()
            self._read()

    def _moved_border(self) -> float | None:
        # A drawn part of few images may be empty: the image that was nearest to it goes there, by reading again.
        drawn = self.choices.validation_fraction and self.plan.items and self.plan.items[0].split is None
        if not drawn or self.state.border is not None:
            return None
        table = self._table()
        splits = table[:, SPLIT]
        if not len(splits) or splits.min() != splits.max():
            return None
        draws = sorted(draw(int(key), seed=self.choices.split_seed or 0) for key in np.unique(table[:, KEY]))
        if len(draws) < 2:
            return None
        return math.nextafter(draws[0], 1) if SPLITS[splits[0]] == "train" else draws[-1]

    def _table(self) -> np.ndarray:
        # One row for each kept image; see pieces.py
        return np.concatenate([np.empty((0, 5), dtype=np.int64), *(piece.table() for piece in self.pieces)])

    def _raw(self, split: str) -> Path:
        return (self.work if self.choices.decode else self.folder) / f"images-{split}.bin"

    def _append(self, pieces: list[ImagePiece]) -> None:
        with ExitStack() as stack:
            files = {}
            for split in SPLITS:
                path = self._raw(split)
                path.touch()
                files[split] = stack.enter_context(open(path, "r+b"))
                files[split].truncate(self.state.bytes[split])  # what an interrupted call had appended
                files[split].seek(0, os.SEEK_END)
            for piece in pieces:
                data, at = piece.path("bin").read_bytes(), 0
                for row in piece.table():
                    files[SPLITS[row[SPLIT]]].write(data[at : at + row[SIZE]])
                    at += int(row[SIZE])
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            self.state.bytes = {split: file.tell() for split, file in files.items()}
        self.state.parts = pieces[-1].number + 1
        self.save()
        for piece in pieces:
            piece.path("bin").unlink()

    def finish(self) -> tuple[dict[str, Any], ImageReport]:
        table, counts = self._table(), [PieceCounts.load(piece) for piece in self.pieces]
        dropped = [*self.plan.dropped, *(entry for piece in counts for entry in piece.dropped)]
        reasons = Counter(entry.reason for entry in dropped)
        splits = {}
        for number, split in enumerate(SPLITS):
            rows, num_bytes = table[table[:, SPLIT] == number], self.state.bytes[split]
            sealed = seal_images(self.folder, split, rows, raw=self._raw(split), side=self.choices.decode)
            splits[split] = {"images": len(rows), "bytes": num_bytes, "sha256": sealed}
        self._check(splits, reasons)
        classes = json.dumps(self.plan.classes, ensure_ascii=False, indent=0)
        lines = (json.dumps(asdict(entry), ensure_ascii=False) for entry in dropped)
        write_atomically(self.folder / CLASSES, classes + "\n")
        write_atomically(self.folder / DROPPED, "".join(f"{line}\n" for line in lines))
        options = asdict(self.choices)
        record = store_record(classes=self.plan.classes, decoded=self.choices.decode, splits=splits, options=options)
        return record, self._report(record, table, counts, dropped=dropped, reasons=reasons)

    def _report(
        self,
        record: dict[str, Any],
        table: np.ndarray,
        counts: list[PieceCounts],
        *,
        dropped: list[DroppedFile],
        reasons: Counter[str],
    ) -> ImageReport:
        located = [entry for entry in dropped if entry.detail or entry.reason == UNLABELLED]
        converted = sum((Counter(piece.converted) for piece in counts), Counter[str]())
        return ImageReport(
            files=len(self.plan.items) + len(self.plan.dropped),
            kept=len(table),
            dropped=dict(reasons.most_common()),
            dropped_located=[f"{entry.file}: {entry.reason}" for entry in located[:LOCATED]],
            images={split: entry["images"] for split, entry in record["splits"].items()},
            classes=len(self.plan.classes),
            grayscale=sum(piece.grayscale for piece in counts),
            converted=dict(converted.most_common()),
            resized=sum(piece.resized for piece in counts),
            duplicates=len(table) - len(np.unique(table[:, KEY])),
            input_bytes=sum(source.bytes for source in self.sources),
            store_bytes=self.partial.num_bytes(),
            sources=[source.identity() for source in self.sources],
            fingerprint=record["fingerprint"],
            fitted_fingerprint=record["fitted_fingerprint"],
            images_per_second=round(self.images / self.seconds, 1),
        )

    def _check(self, splits: dict[str, dict[str, Any]], reasons: Counter[str]) -> None:
        share = self.choices.validation_fraction
        wanted = {"train": share is not None, "validation": share != 0}
        for split, needed in wanted.items():
            if needed and not splits[split]["images"]:
                why = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common()) or "none"
                raise UserError(
                    f"no image is left for the {split} part; dropped: {why}. Give more images: it takes two different "
                    "ones at least to divide them, or --validation-fraction 0 for training images alone."
                )


def _digest(path: Path | None) -> str | None:
    # Of a list, to tell whether it is still the same.
    if path is None:
        return None
    try:
        return hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
