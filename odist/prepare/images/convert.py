"""One image file of any kind -> the bytes that a store holds: a JPEG that every decoder reads as RGB, or pixels.

Pillow does all of it, whichever faster decoders are installed, so that a store depends on the options alone.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # without those that start other programs
JPEG_START = b"\xff\xd8"
MAX_PIXELS = 89_478_485  # of an image; where Pillow begins to warn of a decompression bomb, half of where it refuses
QUALITY = 95  # of images that are encoded again; JPEG's usual "best" setting


class BadImage(Exception):
    """A file that is not stored; `reason` is one of a few, the text says more."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Converted:
    """What is stored of an image.

    data: JPEG file, or with `decode` the pixels, uint8 [size, size, 3]
    was: what it was if it had to be encoded again for that: cmyk, png, ...; "" if not
    """

    data: bytes
    was: str
    grayscale: bool
    resized: bool


def convert(data: bytes, *, short_side: int | None, decode: int | None) -> Converted:
    """Check that a file is a whole image, and bring it to the form of the store; BadImage if it is not.

    short_side: larger images are resized to it, in pixels
    decode: side of the pixels to give instead of a JPEG; the centre square after a resize of the short side

    A sound JPEG, RGB or grey, that needs no resize is kept byte for byte. As in torchvision's ImageFolder, an
    orientation in the EXIF data is not applied and transparency is left out. A TIFF's orientation is not EXIF data;
    Pillow applies it there and here.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImage("empty", "no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(data, *image.size, is_jpeg=image.format == "JPEG")
                image.load()
                return _converted(image, data, short_side=short_side, decode=decode)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        known = data.startswith((JPEG_START, b"\x89PNG"))
        reason, text = ("truncated", "ends in its header") if known else ("not an image", f"begins with {data[:8]!r}")
        raise BadImage(reason, text) from None
    except Image.DecompressionBombError as error:
        raise BadImage("too large", str(error)) from None
    except Exception as error:  # Pillow's readers have no common error
        text = str(error) or type(error).__name__
        raise BadImage("truncated" if "truncated" in text.lower() else "damaged", text) from None


def _check_size(data: bytes, width: int, height: int, *, is_jpeg: bool) -> None:
    # Before any pixel is decoded: a few bytes may claim to be any number of pixels.
    if width * height > MAX_PIXELS:
        raise BadImage("too large", f"{width} x {height} pixels; at most {MAX_PIXELS:,} are read")
    # Huffman coding has a bit at least for each block of 8 x 8; a decoder would fill up what is missing.
    if is_jpeg and 8 * len(data) < (width // 8) * (height // 8) and not _is_arithmetic(data):
        raise BadImage(
            "damaged", f"{len(data):,} bytes cannot hold the {width} x {height} pixels that the header claims"
        )


def _is_arithmetic(data: bytes) -> bool:
    # Whether a JPEG has a frame header (SOF9 to SOF15) of arithmetic coding, which may take less.
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
            return True
        if marker == 0xDA:
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _converted(image: Any, data: bytes, *, short_side: int | None, decode: int | None) -> Converted:
    kind, mode = image.format, image.mode
    if mode in ("I", "F") or mode.startswith("I;"):
        raise BadImage("unsupported", f"{kind} of more than 8 bits ({mode})")
    width, height = image.size
    shortest = min(width, height)
    is_jpeg = data.startswith(JPEG_START) and mode in ("RGB", "L")
    was = "" if is_jpeg else "cmyk" if mode == "CMYK" else "png" if kind == "PNG" else str(kind).lower()
    grayscale = mode in ("1", "L", "LA")
    if decode is not None:
        resized = (width, height) != (decode, decode)
        rgb = image.convert("RGB")
        return Converted((_square(rgb, decode) if resized else rgb).tobytes(), was, grayscale, resized)
    resized = short_side is not None and shortest > short_side
    if is_jpeg and not resized:
        return Converted(data, was, grayscale, resized)
    rgb = image if is_jpeg else image.convert("RGB")  # a grey JPEG stays grey
    if resized:
        assert short_side is not None
        rgb = _resize(rgb, short_side)
    output = io.BytesIO()
    rgb.save(output, "JPEG", quality=QUALITY)
    return Converted(output.getvalue(), was, grayscale, resized)


def _resize(image: Any, short_side: int) -> Any:
    from PIL import Image

    width, height = image.size
    shortest = min(width, height)

    def scaled(side: int) -> int:
        return short_side if side == shortest else max(short_side, round(side * short_side / shortest))

    return image.resize((scaled(width), scaled(height)), Image.Resampling.BICUBIC)


def _square(image: Any, side: int) -> Any:
    resized = _resize(image, side)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    return resized.crop((left, top, left + side, top + side))
