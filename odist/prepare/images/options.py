"""Options and report of an image preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.config.key import BELOW_ONE, Bounds, key
from odist.errors import UserError
from odist.prepare.options import resolve

if TYPE_CHECKING:
    from odist.data.images import ImageStore

SIDE = Bounds(8, 4096)  # pixels
FORM = ("short_side", "decode")  # options that give pixels their scale: with --like those of the other store


@dataclass(frozen=True)
class ImageOptions:
    """What may be asked of a preparation; None is the default of `ImageChoices`, or what --like says.

    Images are drawn for validation by their content. processes never changes the result.
    """

    labels: Path | None = key(
        None, "Classes of validation images in no folder: ground truth, Kaggle's CSV, NAME CLASS."
    )
    synsets: Path | None = key(None, "Classes by the ground truth's number. [meta.mat beside it]")
    validation_fraction: float | None = key(
        None,
        "Share of images held out for validation if the input has no validation part, also with --like.",
        bounds=BELOW_ONE,
    )
    split_seed: int | None = key(None, "Seed of their draw.")
    short_side: int | None = key(None, "Resize larger images to this short side in pixels, as JPEG.", bounds=SIDE)
    decode: int | None = key(
        None, "Store squares of so many pixels a side instead of JPEG, for small images.", bounds=SIDE
    )
    bad: str | None = key(
        None,
        "What to do with damaged images: stop at the first, or count, list and skip them.",
        choices=("refuse", "skip"),
    )
    processes: int | None = key(None, "Pieces of the input read at once. [one per core]", bounds=Bounds(1))

    def resolve(self, other: ImageStore | None) -> ImageChoices:
        """Leave nothing open. other: the store named by --like. Raises UserError for a wrong option."""
        if self.short_side is not None and self.decode is not None:
            raise UserError("--short-side is about JPEG, --decode about pixels. Leave one out.")
        if other is None:
            return resolve(self, ImageChoices, like=None, fixed={})
        theirs = {name: other.meta["options"].get(name) for name in FORM}
        return resolve(self, ImageChoices, like=other.path, fixed=theirs)


@dataclass(frozen=True)
class ImageChoices:
    """Options with nothing left open, as they stand in store.json; without a share all images are for validation."""

    validation_fraction: float | None = 0.05
    split_seed: int | None = 0
    short_side: int | None = None
    decode: int | None = None
    bad: str = "refuse"


@dataclass
class ImageReport:
    """What a preparation did. Fields without a default are kept in store.json under "report".

    files = kept + the sum of dropped; every dropped file is a line of dropped.jsonl.
    """

    files: int
    kept: int
    dropped: dict[str, int]  # files by reason
    dropped_located: list[str]  # "file: reason" of the first few
    images: dict[str, int]  # by split; they sum to kept
    classes: int
    grayscale: int  # kept as they are; every reader gives three equal channels
    converted: dict[str, int]  # encoded again as RGB JPEG, or as pixels, by what they were: cmyk, png, ...
    resized: int
    duplicates: int  # kept images that another one equals byte for byte
    input_bytes: int
    store_bytes: int
    sources: list[dict[str, Any]]  # identity of each input
    fingerprint: str
    fitted_fingerprint: str
    seconds: float = 0.0  # of this call, as all below
    images_per_second: float = 0.0
    reused: bool = False  # the store was there already
