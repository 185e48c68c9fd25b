"""Batches of images, cropped and flipped, and how a network takes them, normalised; random by (seed, image) alone.

Training: a crop of 8 to 100 % of the image at a ratio of 3/4 to 4/3, resized (Szegedy et al. 2015, section 6), or for
small images the shift by up to 4 pixels of He et al. 2016, section 4.2; flipped in half of the cases. Evaluation: the
short side to size * 256/224, the centre. Both as in the recipe of Goyal et al. 2017, section 5.1, without its colour
changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from odist.data.images import ImageStore
from odist.data.jpeg import Box, find_decoder
from odist.errors import UserError
from odist.rng import derive, uniform

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)  # of ImageNet's training images, by channel, in [0, 1]
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
CROPS = ("auto", "resized", "shifted", "none")
SCALE = (0.08, 1.0)  # area of a random crop as a share of the image
RATIO = (3 / 4, 4 / 3)  # width by height of a random crop
TRIES = 10
SHIFT = 4  # pixels
DRAWS = 32  # random numbers of an image; 3 + 2 * TRIES are used
RESIZE = 256 / 224  # short side by crop of an evaluation


def train_batch(
    store: ImageStore,
    ids: np.ndarray,
    *,
    size: int,
    seed: int,
    split: str = "train",
    crop: str = "auto",
    num_threads: int = 1,
    decoder: str = "auto",
) -> np.ndarray:
    """Augmented images.

    ids: integers [n], row numbers within the split
    size: side of the result in pixels
    seed: fixes, with an image's id, what happens to it; nothing else does
    crop: resized | shifted (decoded stores, at their own size only) | auto: resized for JPEG, shifted for decoded |
        none: as evaluation_batch, without flips
    num_threads: never changes the result
    decoder: see find_decoder
    returns: uint8 [n, size, size, 3]; see `normalise`
    Raises UserError for a size or crop that the store cannot give, and where an image cannot be decoded.
    """
    if crop not in CROPS:
        raise UserError(f"task.crop={crop}: expected one of {', '.join(CROPS)}.")
    if crop == "auto":
        crop = "resized" if store.decoded is None else "shifted"
    if crop == "none":
        return evaluation_batch(store, ids, size=size, split=split, num_threads=num_threads, decoder=decoder)
    ids = np.asarray(ids, dtype=np.int64)
    draws = _draws(ids, seed)
    if crop == "shifted":
        _check_size(store, size)
        return _shifted(store.pixels(split, ids), draws)
    reader = find_decoder(decoder)
    pixels = None if store.decoded is None else store.pixels(split, ids)

    def one(at: int) -> np.ndarray:
        if pixels is not None:
            height, width = pixels.shape[1:3]
            image = reader.resize(pixels[at], _random_box(height, width, draws[at]), size=size)
        else:
            data = store.jpeg(split, int(ids[at]))
            height, width = reader.shape(data)
            image = reader.crop(data, _random_box(height, width, draws[at]), size=size)
        return image[:, ::-1] if draws[at, 0] < 0.5 else image

    return _gather(store, split, ids, one, size=size, num_threads=num_threads)


def evaluation_batch(
    store: ImageStore,
    ids: np.ndarray,
    *,
    size: int,
    split: str = "validation",
    num_threads: int = 1,
    decoder: str = "auto",
) -> np.ndarray:
    """Images as they are evaluated: the centre after a resize, or as they are in a decoded store.

    Arguments, result and errors as of train_batch.
    """
    ids = np.asarray(ids, dtype=np.int64)
    if store.decoded is not None:
        _check_size(store, size)
        return store.pixels(split, ids)
    reader, resize = find_decoder(decoder), round(size * RESIZE)

    def one(at: int) -> np.ndarray:
        return reader.centre(store.jpeg(split, int(ids[at])), resize=resize, size=size)

    return _gather(store, split, ids, one, size=size, num_threads=num_threads)


def _gather(
    store: ImageStore,
    split: str,
    ids: np.ndarray,
    one: Callable[[int], np.ndarray],
    *,
    size: int,
    num_threads: int,
) -> np.ndarray:
    # Each image goes to a place of its own, so that threads share nothing. Decoders leave Python's lock free.
    result = np.empty((len(ids), size, size, 3), dtype=np.uint8)

    def build(first: int) -> None:
        for at in range(first, len(ids), num_threads):
            try:
                result[at] = one(at)
            except (ValueError, OSError) as error:
                raise UserError(
                    f"{store.path}: image {ids[at]} of split {split} cannot be decoded ({error}). "
                    "Remove the folder and prepare it again."
                ) from None

    if num_threads <= 1:
        num_threads = 1
        build(0)
    else:
        list(store.threads(num_threads).map(build, range(num_threads)))
    return result


def normalise(images: Tensor) -> Tensor:
    """Images uint8 [n, height, width, 3] as a network takes them, float32 [n, 3, height, width]: (x / 255 - MEAN) / STD.

    They stay on their device. One multiplication and one subtraction, with the same bits on every device.
    """
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for channel, (scale, shift) in enumerate(zip((1 / (255 * STD)).tolist(), (MEAN / STD).tolist(), strict=True)):
        planes[:, channel].mul_(scale).sub_(shift)  # numbers, not tensors, which a GPU would have to wait for
    return planes


def _draws(ids: np.ndarray, seed: int) -> np.ndarray:
    # float64 [n, DRAWS], uniform in (0, 1): flip, top, left, then (area, ratio) of each try
    numbers = ids.astype(np.uint64)[:, None] * np.uint64(DRAWS) + np.arange(DRAWS, dtype=np.uint64)
    return uniform(numbers, key=derive(seed, "augmentation"))


def _random_box(height: int, width: int, draws: np.ndarray) -> Box:
    # Like torchvision's RandomResizedCrop: the first try that fits, else the largest centred box with a ratio in range.
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area, ratio in draws[3 : 3 + 2 * TRIES].reshape(TRIES, 2).tolist():
        wanted = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        box_width, box_height = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(draws[1] * (height - box_height + 1)), int(draws[2] * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    aspect = min(max(width / height, RATIO[0]), RATIO[1])
    box_width, box_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def _shifted(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    # uint8 [n, s, s, 3]: each within a black frame of SHIFT pixels, cut out at a drawn place, flipped or not
    num, height, width, _ = images.shape
    framed = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    top, left = (draws[:, 1:3] * (2 * SHIFT + 1)).astype(np.int64).T
    columns = np.broadcast_to(np.arange(width), (num, width))
    columns = np.where(draws[:, :1] < 0.5, columns[:, ::-1], columns) + left[:, None]
    rows = np.arange(height) + top[:, None]
    return framed[np.arange(num)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _check_size(store: ImageStore, size: int) -> None:
    if store.decoded is None:
        raise UserError(
            f"task.crop=shifted needs a decoded store; {store.path} holds JPEG. Type task.crop=resized, "
            f"or prepare it with --decode {size}."
        )
    if size != store.decoded:
        raise UserError(
            f"task.size={size}: the images of {store.path} are decoded at {store.decoded} pixels. "
            f"Leave task.size out, or prepare it with --decode {size}."
        )
