"""JPEG to crops of a wanted size, by the fastest installed decoder or by Pillow.

Fast: simplejpeg (libjpeg-turbo), which decodes at half the size or less where that is enough, no further down than the
crop, and OpenCV's resize; Pillow: the whole image, resized with antialiasing, as torchvision does on PIL images.
Both give nearly the same pixels.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple, Protocol

import numpy as np

from odist.errors import UserError

DECODERS = ("auto", "fast", "pillow")
MCU = 16  # pixels; the largest unit that JPEG codes as one


class Box(NamedTuple):
    """Part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Decoder(Protocol):
    """Crops out of JPEG files; all results are uint8 [size, size, 3]. Safe to use from threads."""

    def shape(self, data: bytes) -> tuple[int, int]:
        """Height and width in pixels. Raises ValueError for data that are not JPEG."""
        ...

    def crop(self, data: bytes, box: Box, *, size: int) -> np.ndarray:
        """The box of the image, resized."""
        ...

    def centre(self, data: bytes, *, resize: int, size: int) -> np.ndarray:
        """The centre of the image after a resize of its short side to `resize`."""
        ...

    def resize(self, pixels: np.ndarray, box: Box, *, size: int) -> np.ndarray:
        """The box of decoded pixels, uint8 [h, w, 3], resized."""
        ...


def find_decoder(name: str) -> Decoder:
    """The decoder of that name: fast, pillow, or auto, which is fast where simplejpeg and OpenCV are installed.

    Raises UserError for another name, and for fast where these are not installed.
    """
    if name not in DECODERS:
        raise UserError(f"decoder={name!r}: expected one of {', '.join(DECODERS)}.")
    if name != "pillow":
        try:
            return FastDecoder()
        except ImportError as error:
            if name == "fast":
                raise UserError(
                    f"decoder=fast needs {error.name}, which is not installed. Type: pip install 'odist[images]'"
                ) from None
    return PillowDecoder()


class FastDecoder:
    """simplejpeg and OpenCV; ImportError where one is missing."""

    def __init__(self) -> None:
        import cv2
        import simplejpeg

        # A batch is shared out to our own threads; OpenCV's would take cores that the run has not been given.
        cv2.setNumThreads(1)
        self._cv2: Any = cv2
        self._jpeg: Any = simplejpeg

    def shape(self, data: bytes) -> tuple[int, int]:
        height, width, _, _ = self._jpeg.decode_jpeg_header(data, strict=False)
        return height, width

    def crop(self, data: bytes, box: Box, *, size: int) -> np.ndarray:
        height, width = self.shape(data)
        # One unit below the crop is decoded too, as upsampled colours depend on the next row.
        stop = -(-(box.top + box.height) // MCU) * MCU + MCU
        source: bytes | bytearray = data
        if stop < height and (at := _height_position(data)) is not None:
            source = bytearray(data)
            source[at : at + 2] = stop.to_bytes(2, "big")
            height = stop
        pixels, scale = self._decode(
            source, (height, width), least=(-(-height * size // box.height), -(-width * size // box.width))
        )
        part = pixels[
            round(box.top * scale) : round((box.top + box.height) * scale),
            round(box.left * scale) : round((box.left + box.width) * scale),
        ]
        return self._resize(part, size, size, area=2.0)

    def centre(self, data: bytes, *, resize: int, size: int) -> np.ndarray:
        shape = self.shape(data)
        height, width = _resized(*shape, resize=resize)
        pixels, scale = self._decode(data, shape, least=(height, width))
        pixels = self._resize(pixels[: round(shape[0] * scale), : round(shape[1] * scale)], height, width, area=1.0)
        box = _centre(height, width, size=size)
        return pixels[box.top : box.top + size, box.left : box.left + size]

    def resize(self, pixels: np.ndarray, box: Box, *, size: int) -> np.ndarray:
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        return self._resize(part, size, size, area=1.0)

    def _decode(
        self, data: bytes | bytearray, shape: tuple[int, int], *, least: tuple[int, int]
    ) -> tuple[np.ndarray, float]:
        # Pixels of at least the size `least`, and how many of them one pixel of the image is in either direction.
        # Between the powers of 2 libjpeg-turbo's scaled transforms are slower than the full one.
        pixels: np.ndarray = self._jpeg.decode_jpeg(
            data, "RGB", min_height=least[0], min_width=least[1], min_factor=2, strict=False
        )
        # Sizes are rounded up to whole pixels, so they alone would give a slightly larger scale.
        scales = (
            eighths
            for eighths in range(8, 0, -1)
            if all(-(-side * eighths // 8) == found for side, found in zip(shape, pixels.shape, strict=False))
        )
        return pixels, next(scales, 8) / 8

    def _resize(self, pixels: np.ndarray, height: int, width: int, *, area: float) -> np.ndarray:
        # area: factor from which each output pixel averages all it covers; below it, two by two are interpolated,
        # which is faster and for a factor under 2 skips no input pixel.
        factors = pixels.shape[0] / height, pixels.shape[1] / width
        averages = min(factors) >= 1 and max(factors) > area
        how = self._cv2.INTER_AREA if averages else self._cv2.INTER_LINEAR
        result: np.ndarray = self._cv2.resize(pixels, (width, height), interpolation=how)
        return result


class PillowDecoder:
    """Pillow alone."""

    def __init__(self) -> None:
        from PIL import Image

        self._image: Any = Image

    def shape(self, data: bytes) -> tuple[int, int]:
        with self._open(data) as image:
            return image.height, image.width

    def crop(self, data: bytes, box: Box, *, size: int) -> np.ndarray:
        with self._open(data) as image:
            return self._resize(image.convert("RGB"), box, size=size)

    def centre(self, data: bytes, *, resize: int, size: int) -> np.ndarray:
        with self._open(data) as image:
            height, width = _resized(image.height, image.width, resize=resize)
            resized = image.convert("RGB").resize((width, height), self._image.Resampling.BILINEAR)
            box = _centre(height, width, size=size)
            return np.asarray(resized.crop((box.left, box.top, box.left + size, box.top + size)))

    def resize(self, pixels: np.ndarray, box: Box, *, size: int) -> np.ndarray:
        return self._resize(self._image.fromarray(pixels), box, size=size)

    def _open(self, data: bytes) -> Any:
        try:
            return self._image.open(io.BytesIO(data), formats=("JPEG",))
        except OSError as error:
            raise ValueError(str(error)) from None

    def _resize(self, image: Any, box: Box, *, size: int) -> np.ndarray:
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        return np.asarray(image.crop(edges).resize((size, size), self._image.Resampling.BILINEAR))


def _resized(height: int, width: int, *, resize: int) -> tuple[int, int]:
    # The short side becomes `resize`; the long one is cut to whole pixels, as in torchvision.
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _centre(height: int, width: int, *, size: int) -> Box:
    return Box(round((height - size) / 2), round((width - size) / 2), size, size)


def _height_position(data: bytes) -> int | None:
    # Where a baseline JPEG (SOF0, SOF1; ITU T.81, annex B.2.2) keeps its height. With a smaller one a decoder stops
    # there. None for progressive files, whose scans each hold the whole image, and for what is not understood.
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1):
            return at + 5
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
