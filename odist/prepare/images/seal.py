"""The finished files of one split of an image store, its rows ordered by what the images hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from odist.files import save_array
from odist.prepare.images.pieces import HASH, KEY, LABEL, SIZE

CHUNK_IMAGES = 512  # copied at once


def seal_images(folder: Path, split: str, table: np.ndarray, *, raw: Path, side: int | None) -> str:
    """Order the rows of a split and write its labels and offsets, or pixels; return the digest of the rows.

    table: int64 [n, 5], a row for each image in the order in which they lie in `raw`, see pieces.py
    side: of the squares of pixels in `raw`; None where it holds JPEG
    """
    order = np.lexsort((table[:, LABEL], table[:, KEY].view(np.uint64)))
    labels = np.ascontiguousarray(table[order, LABEL])
    save_array(folder / f"labels-{split}.npy", labels)
    if side is None:
        ends = np.cumsum(table[:, SIZE])
        save_array(folder / f"offsets-{split}.npy", np.stack([ends - table[:, SIZE], ends], axis=1)[order])
    else:
        _save_pixels(folder / f"images-{split}.npy", raw, order, side=side)
    sha = hashlib.sha256(np.ascontiguousarray(table[order, HASH]).data.cast("B") if len(table) else b"")
    sha.update(labels.tobytes())
    return sha.hexdigest()


def _save_pixels(target: Path, raw: Path, order: np.ndarray, *, side: int) -> None:
    shape = (len(order), side, side, 3)
    if not len(order):
        save_array(target, np.empty(shape, dtype=np.uint8))
        return
    source = np.memmap(raw, dtype=np.uint8, mode="r", shape=shape)
    pixels = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(order), CHUNK_IMAGES):
        pixels[start : start + CHUNK_IMAGES] = source[order[start : start + CHUNK_IMAGES]]
    pixels.flush()
