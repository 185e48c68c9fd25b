"""Memory-mapped image stores: JPEG bytes one after the other, or small images as pixels, with their labels.

A store is a folder: arrays and `store.json`, the commit record, which is written last.

    store.json            format, task, fingerprint, fitted_fingerprint, decoded, splits, options, report, ...
    splits                name -> {"images": n, "bytes": b, "sha256": of images and labels in order}
    classes.json          names of the classes; a label is the place in this list
    labels-NAME.npy       int64 [n]; NAME is train or validation
    images-NAME.bin       JPEG files (RGB or grey), nothing else
    offsets-NAME.npy      int64 [n, 2]: image i is bytes [offsets[i, 0], offsets[i, 1])
    images-NAME.npy       instead of these two in a decoded store: uint8 [n, S, S, 3]
    dropped.jsonl         files of the input that are not in the store, and why

Rows are in an order drawn by the images' content, so any first or last part of a split is a fair sample of it.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.arrays import check_size, load_array
from odist.data.store import Store, damaged, fingerprint_of, open_record

FORMAT = "odist-images-1"
SPLITS = ("train", "validation")
CLASSES = "classes.json"
COMMAND = "odist prepare imagenet"


def store_record(
    *, classes: list[str], decoded: int | None, splits: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of store.json with its fingerprints; callers may add keys such as "report".

    decoded: side of the square images of a decoded store in pixels, None for JPEG
    splits: name -> {"images", "bytes", "sha256"}
    """
    content = {"format": FORMAT, "decoded": decoded, "classes": classes, "splits": splits}
    return {
        "format": FORMAT,
        "task": "imagenet",
        "fingerprint": fingerprint_of(content)[:16],
        "fitted_fingerprint": fingerprint_of({"classes": classes})[:16],
        "decoded": decoded,
        "num_classes": len(classes),
        "splits": {name: dict(entry) for name, entry in splits.items()},
        "options": dict(options),
    }


class ImageStore(Store["_Split"]):
    """A finished store, opened by `ImageStore.open`, read-only. Safe to use from threads."""

    def __init__(self, path: Path, meta: dict[str, Any], classes: list[str], splits: dict[str, _Split]) -> None:
        super().__init__(path, meta, splits)
        self.classes = classes
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> ImageStore:
        """Open the store in folder `path`. Raises UserError when it is missing, not an image store, or damaged."""
        path = Path(path)
        meta = open_record(path, FORMAT, command=COMMAND)
        try:
            classes = json.loads((path / CLASSES).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise damaged(path / CLASSES, "the file is missing") from None
        except ValueError as error:
            raise damaged(path / CLASSES, f"not JSON ({error})") from None
        if not isinstance(classes, list) or len(classes) != meta["num_classes"]:
            raise damaged(path / CLASSES, f"expected a list of {meta['num_classes']} names")
        splits = {name: _Split(path, name, entry, meta["decoded"]) for name, entry in meta["splits"].items()}
        for name, split in splits.items():
            if len(split.labels) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(classes):
                raise damaged(path / f"labels-{name}.npy", f"a label outside [0, {len(classes)})")
        return cls(path, meta, classes, splits)

    def threads(self, number: int) -> ThreadPoolExecutor:
        """Threads that decode images of this store, the same ones for every batch."""
        with self._lock:
            if number not in self._pools:
                self._pools[number] = ThreadPoolExecutor(number, thread_name_prefix="images")
            return self._pools[number]

    @property
    def decoded(self) -> int | None:
        """Side of the images of a decoded store in pixels, None where they are JPEG."""
        return None if self.meta["decoded"] is None else int(self.meta["decoded"])

    def num_rows(self, split: str) -> int:
        """Images of a split. Raises UserError when there is no such split."""
        return len(self._split(split).labels)

    def labels(self, split: str) -> np.ndarray:
        """Classes of all images of a split, int64 [n], read-only."""
        return self._split(split).labels

    def jpeg(self, split: str, id: int) -> bytes:
        """The JPEG file of one image; IndexError outside [0, num_rows), TypeError for a decoded store."""
        part = self._split(split)
        if part.offsets is None:
            raise TypeError(f"{self.path}: a decoded store holds pixels, no JPEG")
        if not 0 <= id < len(part.labels):
            raise IndexError(f"{self.path}: image {id} asked for, split {split} has {len(part.labels):,} images")
        start, stop = map(int, part.offsets[id])
        data = os.pread(part.descriptor, stop - start, start)  # unlike a page fault, it lets other threads run
        if len(data) != stop - start:
            raise damaged(self.path / f"images-{split}.bin", f"image {id} breaks off")
        return data

    def pixels(self, split: str, ids: np.ndarray) -> np.ndarray:
        """Copy images out of a decoded store.

        ids: integers [n], row numbers within the split; IndexError outside [0, num_rows)
        returns: uint8 [n, S, S, 3], red, green, blue; TypeError for a store of JPEG
        """
        part = self._split(split)
        if part.pixels is None:
            raise TypeError(f"{self.path}: a store of JPEG holds no pixels; prepare it with --decode")
        ids = np.asarray(ids)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(part.labels):
            raise IndexError(
                f"{self.path}: images {ids.min()} to {ids.max()} asked for, split {split} has {len(part.labels):,}"
            )
        return np.take(part.pixels, ids, axis=0, mode="clip")  # checked above


class _Split:
    """The open files of one split."""

    def __init__(self, path: Path, name: str, entry: dict[str, Any], decoded: int | None) -> None:
        images = int(entry["images"])
        self.labels = load_array(path / f"labels-{name}.npy", shape=(images,), dtype="int64")
        self.offsets: np.ndarray | None = None
        self.pixels: np.ndarray | None = None
        if decoded is not None:
            self.pixels = load_array(path / f"images-{name}.npy", shape=(images, decoded, decoded, 3), dtype="uint8")
            return
        self.offsets = load_array(path / f"offsets-{name}.npy", shape=(images, 2), dtype="int64")
        file = path / f"images-{name}.bin"
        size = int(entry["bytes"])
        check_size(file, size)
        self.descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        if images and not (self.offsets.min() >= 0 and self.offsets.max() <= size):
            raise damaged(path / f"offsets-{name}.npy", f"an image outside the {size:,} bytes of {file.name}")
