"""What `odist prepare imagenet` may be asked for, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odist.data.images import ImageStore
from odist.errors import UserError
from odist.prepare.criteo.options import splitting

MAX_SIDE = 4096
DEFAULTS: dict[str, Any] = {"validation_fraction": 0.05, "split_seed": 0}
FORM = ("short_side", "decode")  # options that give pixels their scale: with `like` the other store's


@dataclass(frozen=True)
class ImageOptions:
    """Choices of a preparation; None takes the value in brackets, or that of the store named by `like`."""

    labels: Path | None = None  # classes of validation images that lie in no class folder
    synsets: Path | None = None  # class names in the order of the devkit's numbers; [meta.mat beside the labels]
    validation_fraction: float | None = None  # [0.05] share of images, drawn by content, where no validation part is
    split_seed: int | None = None  # [0] of that draw
    short_side: int | None = None  # larger images are resized to this short side in pixels and encoded again; [off]
    decode: int | None = None  # store pixels, resized to this short side and cut to the centre square; [off: JPEG]
    bad: str = "refuse"  # files that cannot be read: refuse: stop at the first | skip: count, list, go on
    processes: int | None = None  # null: one per core; never changes the result


@dataclass
class ImageReport:
    """What a preparation did. All but times and `reused` is kept in store.json under "report".

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
    seconds: float = 0.0
    images_per_second: float = 0.0  # of this call
    reused: bool = False  # the store was there already


def resolve(options: ImageOptions, other: ImageStore | None) -> dict[str, Any]:
    """Options with nothing left open, those of `other` (the `like` store) included; UserError for a wrong one."""
    given = {key: getattr(options, key) for key in DEFAULTS}
    if other is None:
        chosen = {key: DEFAULTS[key] if value is None else value for key, value in given.items()}
    else:
        chosen = splitting(given, list(DEFAULTS), DEFAULTS)
    if chosen["validation_fraction"] is not None and not 0 <= chosen["validation_fraction"] < 1:
        raise UserError(f"validation_fraction={chosen['validation_fraction']}: expected a share from 0 to below 1.")
    if options.short_side is not None and options.decode is not None:
        raise UserError("--short-side is about JPEG, --decode about pixels. Leave one out.")
    for key in FORM:
        chosen[key] = getattr(options, key)
        if other is not None:
            theirs = other.meta["options"].get(key)
            if chosen[key] not in (None, theirs):
                raise UserError(f"{key}={chosen[key]} contradicts {other.path}, which has {theirs}. With --like leave it out.")  # fmt: skip
            chosen[key] = theirs
        if chosen[key] is not None and not 8 <= chosen[key] <= MAX_SIDE:
            raise UserError(f"{key}={chosen[key]}: expected a number of pixels from 8 to {MAX_SIDE}.")
    if options.bad not in ("refuse", "skip"):
        raise UserError(f"bad={options.bad!r}: expected one of refuse, skip.")
    chosen["bad"] = options.bad
    return chosen
