"""Raw images as batches: found in folders and tar files, with or without classes, and brought to the form of the run's data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from odist.data.augment import RESIZE
from odist.data.jpeg import find_decoder
from odist.errors import UserError
from odist.prepare.images.convert import BadImage, convert
from odist.prepare.images.files import WHOLE, ImageFile, find_image_sources, list_files
from odist.prepare.images.layout import SUFFIXES
from odist.tasks.imagenet import ImageNetTask, PreparedSource, batch_of

if TYPE_CHECKING:
    from odist.deploy.predict import Examples, Reading

LARGEST_BATCH = 256  # images at once, whatever the run's evaluation takes


def examples(reading: Reading) -> Iterator[Examples]:
    """Every image that can be read, in the order of the files.

    columns: `file`, its path within the input
    """
    from odist.deploy.predict import Examples

    assert isinstance(reading.task, ImageNetTask)
    found = _images(reading, reading.task)
    while some := list(islice(found, min(reading.batch_rows, LARGEST_BATCH))):
        names, pixels = zip(*some, strict=True)
        yield Examples(batch_of(np.stack(pixels), np.zeros(len(pixels), dtype=np.int64)), {"file": np.array(names)})


def _images(reading: Reading, task: ImageNetTask) -> Iterator[tuple[str, np.ndarray]]:
    """Paths and pixels uint8 [size, size, 3]."""
    assert isinstance(task.source, PreparedSource)
    store, size = task.source.store, task.source.size
    short_side = store.meta["options"].get("short_side")
    decoder = find_decoder(task.source.options.decoder)
    files = list(_files(reading))
    if not files:
        raise UserError(f"{', '.join(reading.inputs)}: no images. Name a folder of images, or a tar file of them.")
    total, done = sum(file.size for file in files), 0
    for place, file in enumerate(files):
        try:
            converted = convert(_content(file), short_side=short_side, decode=store.decoded)
            if store.decoded is not None:
                pixels = np.frombuffer(converted.data, dtype=np.uint8).reshape(store.decoded, store.decoded, 3)
            else:
                pixels = decoder.centre(converted.data, resize=round(size * RESIZE), size=size)
            yield file.path, pixels
        except (BadImage, OSError, ValueError) as error:
            reason = error.reason if isinstance(error, BadImage) else "unreadable"
            reading.bad.add(file.path, reason, detail=f"{reason}: {error}")
            if reading.refuse:
                raise UserError(f"{reading.bad.located[0]}. Leave bad images out with --bad-rows skip.") from None
        done += file.size
        reading.progress("read", done, total, {"images": place + 1})
        reading.poll()


def _files(reading: Reading) -> Iterator[ImageFile]:
    for position, source in enumerate(find_image_sources(reading.inputs)):
        if source.kind == "datasets":
            raise UserError(f"{source.name}: a data set. Name a folder of images, or a tar file of them.")
        for file in list_files(source, position=position, work=reading.work, tell=lambda *_: None):
            if file.path.lower().endswith(SUFFIXES):
                yield file


def _content(file: ImageFile) -> bytes:
    if file.offset == WHOLE:
        return Path(file.holder).read_bytes()
    descriptor = os.open(file.holder, os.O_RDONLY)
    try:
        return os.pread(descriptor, file.size, file.offset)
    finally:
        os.close(descriptor)
