"""Images in classes (ImageNet, CIFAR-10, ...): raw files -> a memory-mapped image store (odist.data.images).

Files are listed where they lie, in folders or archives; processes read, check and convert them part by part, and
parts are appended in order. Then rows get their order, drawn by content. Work lies in `<output>.partial` until it is
whole, and what is done of it is not done again. The result does not depend on the number of processes, nor on
interruptions; a folder and a tar of it give the same rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from odist.data.images import CLASSES, SPLITS, ImageStore, store_record
from odist.errors import Interrupted, UserError
from odist.files import save_array, write_atomically
from odist.prepare.images.files import ImageSource, find_image_sources, list_files
from odist.prepare.images.options import ImageOptions, ImageReport, resolve
from odist.prepare.images.parts import HASH, KEY, LABEL, SIZE, SPLIT, PartJob, read_part
from odist.prepare.images.plan import UNLABELLED, Known, Plan, plan_dataset, plan_files, read_labels
from odist.prepare.partial import Partial, finished_record
from odist.prepare.pool import default_processes, run_jobs
from odist.prepare.text.clean import draw

__all__ = ["ImageOptions", "ImageReport", "prepare_imagenet"]

DROPPED = "dropped.jsonl"
PART_IMAGES = 512
PART_ROWS = 4096  # of a data set, which takes long to open
ROUND_PARTS = 32  # parts of each process before they are appended; bounds what lies on the disk twice
LOCATED = 10  # dropped files that the report names

Progress = Callable[[str, int, int, int], None]  # "unpack" or "read", bytes done, in all (0: unknown), images


def prepare_imagenet(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: ImageOptions,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> ImageReport:
    """Turn images into a store; the same call continues an interrupted one, to the same bytes.

    inputs: see find_image_sources; layouts: see imagenet_plan.py
    output: folder to make; done already by the same request: nothing happens and the report says so
    like: a prepared store whose classes are used; then every image is a validation image, unless
        options.validation_fraction is given
    progress: called with (step, bytes unpacked or bytes of images read, in all, images)
    stop: polled; once true, what is done is kept and Interrupted raised
    Raises UserError for wrong input, with nothing left behind, and Interrupted.
    """
    began = time.monotonic()
    other = None if like is None else ImageStore.open(like)
    chosen = resolve(options, other)
    sources = find_image_sources(inputs)
    kinds = {source.kind == "datasets" for source in sources}
    if len(kinds) > 1 or (True in kinds and options.labels is not None):
        raise UserError("a data set has its own labels and stands alone. Leave out the other inputs and --labels.")
    if options.synsets is not None and options.labels is None:
        raise UserError("--synsets says what the numbers of --labels mean. Give both.")
    lists = {"labels": options.labels, "synsets": options.synsets}
    request: dict[str, Any] = {"task": "imagenet", "options": chosen}
    request |= {key: None if path is None else _digest_file(path) for key, path in lists.items()}
    request["like"] = None if other is None else other.fitted_fingerprint
    request["sources"] = [source.identity() for source in sources]
    output = output.expanduser().absolute()
    done = finished_record(output, request)
    if done is not None:
        return ImageReport(**done["report"], reused=True)
    full_disk = "A store of JPEG is as large as its images. Give --short-side, or name an output on another disk."
    with Partial(output, request=request, full_disk=full_disk) as folder:
        if folder.complete:
            folder.publish()
            return ImageReport(**ImageStore.open(output).meta["report"], reused=True)
        return _Preparation(folder, sources, options, chosen, other, progress=progress, stop=stop, began=began).run()


def _digest_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None


def _nothing_appended() -> dict[str, Any]:
    return {"parts": 0, "bytes": dict.fromkeys(SPLITS, 0)}


class _Preparation:
    """One call; everything that lasts is in the folder and its journal."""

    def __init__(
        self,
        folder: Partial,
        sources: list[ImageSource],
        options: ImageOptions,
        chosen: dict[str, Any],
        other: ImageStore | None,
        *,
        progress: Progress | None,
        stop: Callable[[], bool] | None,
        began: float,
    ) -> None:
        self.folder, self.sources, self.options, self.chosen, self.other = folder, sources, options, chosen, other
        self.progress, self.stop, self.began = progress or (lambda *_: None), stop or (lambda: False), began
        self.work = folder.work
        self.processes = options.processes or default_processes()
        self.read = 0  # images of this call
        # what is appended: parts, and bytes of each split; border: see PartJob
        self.state: dict[str, Any] = {"border": None} | (folder.journal or _nothing_appended())

    def run(self) -> ImageReport:
        """List, read, append, order, commit."""
        self.folder.save(self.state)
        self.work.mkdir(exist_ok=True)
        plan = self._plan()
        if self.chosen["bad"] == "refuse":
            for entry in plan.dropped:
                if entry.reason == UNLABELLED:
                    raise UserError(f"{entry.file}: {entry.reason}. --bad skip leaves out such files, and counts and lists them.")  # fmt: skip
        jobs = self._jobs(plan)
        try:
            self._read(jobs)
            border = self._moved_border(plan, jobs)
            if border is not None:
                self.state = {**_nothing_appended(), "border": border}
                self.folder.save(self.state)
                jobs = self._jobs(plan)
                self._read(jobs)
        except Interrupted:
            kept = self.state["parts"] + sum(job.path("json").is_file() for job in jobs[self.state["parts"] :])
            raise Interrupted(f"{kept} of {len(jobs)} parts of the images are kept in {self.folder.path}; "
                              "the same command continues.") from None  # fmt: skip
        return self._commit(plan, jobs)

    def _plan(self) -> Plan:
        known = None
        if self.other is not None:
            known = Known(self.other.path, self.other.classes, validation=self.chosen["validation_fraction"] is None)
        if self.sources[0].kind == "datasets":
            return plan_dataset(self.sources, known=known)
        labels = None if self.options.labels is None else read_labels(self.options.labels, self.options.synsets)

        def files(position: int, source: ImageSource) -> list[Any]:
            return list_files(source, position=position, work=self.work, tell=tell)

        def tell(done: int, total: int) -> None:
            if self.stop():
                raise Interrupted(f"while an archive was unpacked, into {self.folder.path}; the same command continues.")  # fmt: skip
            self.progress("unpack", done, total, 0)

        return plan_files(self.sources, files=files, labels=labels, known=known)

    def _jobs(self, plan: Plan) -> list[PartJob]:
        rows = self.sources[0].kind == "datasets"
        size = PART_ROWS if rows else PART_IMAGES
        starts, border = range(0, len(plan.items), size), self.state["border"]
        folder = self.work if border is None else self.work / "moved"  # apart from what was read with another border
        folder.mkdir(exist_ok=True)
        return [
            PartJob(number, plan.items[start : start + size], folder, self.chosen, rows, border)
            for number, start in enumerate(starts)
        ]

    def _moved_border(self, plan: Plan, jobs: list[PartJob]) -> float | None:
        # A drawn part of few images may be empty: the image that was nearest to it goes there, by reading again.
        if (
            self.state["border"] is not None
            or not self.chosen["validation_fraction"]
            or plan.items[0].split is not None
        ):
            return None
        splits = np.concatenate([np.load(job.path("npy"), allow_pickle=False)[:, SPLIT] for job in jobs])
        if not len(splits) or splits.min() != splits.max():
            return None
        keys = np.unique(np.concatenate([np.load(job.path("npy"), allow_pickle=False)[:, KEY] for job in jobs]))
        draws = sorted(draw(int(key), seed=self.chosen["split_seed"]) for key in keys)
        if len(draws) < 2:
            return None
        return math.nextafter(draws[0], 1) if SPLITS[splits[0]] == "train" else draws[-1]

    def _read(self, jobs: list[PartJob]) -> None:
        sizes = [sum(item.file.size for item in job.items) for job in jobs]
        waiting = [job for job in jobs[self.state["parts"] :] if not job.path("json").is_file()]
        done = sum(sizes) - sum(sizes[job.part] for job in waiting)

        def advance(num_bytes: int, images: int, _: int) -> None:
            nonlocal done
            done, self.read = done + num_bytes, self.read + images
            self.progress("read", done, sum(sizes), self.read)

        each = ROUND_PARTS * self.processes
        for start in range(self.state["parts"], len(jobs), each):
            part = jobs[start : start + each]
            left = [job for job in part if not job.path("json").is_file()]
            run_jobs(read_part, left, processes=self.processes, progress=advance, stop=self.stop)
            self._append(part)

    def _raw(self, split: str) -> Path:
        return (self.work if self.chosen["decode"] else self.folder.path) / f"images-{split}.bin"

    def _append(self, jobs: list[PartJob]) -> None:
        files: dict[str, BinaryIO] = {}
        try:
            for split in SPLITS:
                path = self._raw(split)
                path.touch()
                files[split] = open(path, "r+b")  # noqa: SIM115 - closed below
                files[split].truncate(self.state["bytes"][split])  # what an interrupted call had appended
                files[split].seek(0, os.SEEK_END)
            for job in jobs:
                data, at = job.path("bin").read_bytes(), 0
                for row in np.load(job.path("npy"), allow_pickle=False):
                    files[SPLITS[row[SPLIT]]].write(data[at : at + row[SIZE]])
                    at += int(row[SIZE])
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            ends = {split: file.tell() for split, file in files.items()}
        finally:
            for file in files.values():
                file.close()
        self.state |= {"parts": jobs[-1].part + 1, "bytes": ends}
        self.folder.save(self.state)
        for job in jobs:
            job.path("bin").unlink()

    def _commit(self, plan: Plan, jobs: list[PartJob]) -> ImageReport:
        tables = [np.load(job.path("npy"), allow_pickle=False) for job in jobs]
        counts = [json.loads(job.path("json").read_text(encoding="utf-8")) for job in jobs]
        table = np.concatenate(tables) if tables else np.empty((0, 5), dtype=np.int64)
        dropped = [asdict(entry) for entry in plan.dropped] + [entry for part in counts for entry in part["dropped"]]
        reasons = Counter(str(entry["reason"]) for entry in dropped)
        splits = {split: self._seal(split, table[table[:, SPLIT] == number]) for number, split in enumerate(SPLITS)}
        self._check(splits, reasons)
        folder = self.folder.path
        write_atomically(folder / CLASSES, json.dumps(plan.classes, ensure_ascii=False, indent=0) + "\n")
        write_atomically(folder / DROPPED, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped))
        record = store_record(classes=plan.classes, decoded=self.chosen["decode"], splits=splits, options=self.chosen)
        located = [entry for entry in dropped if entry["detail"] or entry["reason"] == UNLABELLED]
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(("journal", "."))]
        converted = sum((Counter(part["converted"]) for part in counts), Counter[str]())
        report = ImageReport(
            files=len(plan.items) + len(plan.dropped),
            kept=len(table),
            dropped=dict(reasons.most_common()),
            dropped_located=[f"{entry['file']}: {entry['reason']}" for entry in located[:LOCATED]],
            images={split: entry["images"] for split, entry in splits.items()},
            classes=len(plan.classes),
            grayscale=sum(part["grayscale"] for part in counts),
            converted=dict(converted.most_common()),
            resized=sum(part["resized"] for part in counts),
            duplicates=len(table) - len(np.unique(table[:, KEY])),
            input_bytes=sum(source.bytes for source in self.sources),
            store_bytes=sum(path.stat().st_size for path in files),
            sources=[source.identity() for source in self.sources],
            fingerprint=record["fingerprint"],
            fitted_fingerprint=record["fitted_fingerprint"],
        )
        kept = {key: value for key, value in asdict(report).items() if key not in (
            "seconds", "images_per_second", "reused")}  # fmt: skip
        self.folder.commit({**record, "report": kept})
        report.seconds = round(time.monotonic() - self.began, 3)
        report.images_per_second = round(self.read / report.seconds, 1)
        return report

    def _check(self, splits: dict[str, dict[str, Any]], reasons: Counter[str]) -> None:
        share = self.chosen["validation_fraction"]
        wanted = {"train": share is not None, "validation": share != 0}
        for split, needed in wanted.items():
            if needed and not splits[split]["images"]:
                why = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common()) or "none"
                raise UserError(f"no image is left for the {split} part; dropped: {why}. Give more images; two different "
                                "ones at least are divided, one is not unless with --validation-fraction 0.")  # fmt: skip

    def _seal(self, split: str, table: np.ndarray) -> dict[str, Any]:
        # Orders the rows by content, writes labels and offsets or pixels; returns the entry of store.json.
        folder, side = self.folder.path, self.chosen["decode"]
        order = np.lexsort((table[:, LABEL], table[:, KEY].view(np.uint64)))
        labels = np.ascontiguousarray(table[order, LABEL])
        ends = np.cumsum(table[:, SIZE])
        save_array(folder / f"labels-{split}.npy", labels)
        if side is None:
            save_array(folder / f"offsets-{split}.npy", np.stack([ends - table[:, SIZE], ends], axis=1)[order])
        else:
            self._save_pixels(split, order, side)
        sha = hashlib.sha256(np.ascontiguousarray(table[order, HASH]).data.cast("B") if len(table) else b"")
        sha.update(labels.tobytes())
        return {"images": len(table), "bytes": int(self.state["bytes"][split]), "sha256": sha.hexdigest()}

    def _save_pixels(self, split: str, order: np.ndarray, side: int) -> None:
        target, shape = self.folder.path / f"images-{split}.npy", (len(order), side, side, 3)
        if not len(order):
            save_array(target, np.empty(shape, dtype=np.uint8))
            return
        source = np.memmap(self._raw(split), dtype=np.uint8, mode="r", shape=shape)
        pixels = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, len(order), PART_IMAGES):
            pixels[start : start + PART_IMAGES] = source[order[start : start + PART_IMAGES]]
        pixels.flush()
