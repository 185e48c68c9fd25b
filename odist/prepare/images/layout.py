"""The split and the class folder of every file, by its path.

train/CLASS/..., val/CLASS/...      one level of other folders around it, or none; either may be a tar of its own
CLASS/...                           no split: training images, of which a share is drawn for validation
train.tar of CLASS.tar, val.tar     as ILSVRC2012 is shipped
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odist.prepare.images.files import ImageFile, ImageSource

TRAIN = ("train", "ILSVRC2012_img_train")
VALIDATION = ("val", "validation", "valid", "ILSVRC2012_img_val", "test")  # the first of them that is there is used
SPLITS = (*TRAIN, *VALIDATION)
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
OUTSIDE, HIDDEN, UNUSED, UNLABELLED = "outside a class folder", "hidden", "unused part", "no label"


@dataclass(frozen=True, slots=True)
class DroppedFile:
    """A file that is not stored."""

    file: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file that may be an image.

    place: for messages
    split: "train" | "validation", None where the input says nothing about it
    path: names of its folders within the split, and its own
    """

    place: str
    file: ImageFile
    split: str | None
    path: list[str]

    @property
    def in_folder(self) -> bool:
        return len(self.path) > 1

    @property
    def looks_like_an_image(self) -> bool:
        return self.place.lower().endswith(SUFFIXES)


def place_files(source: ImageSource, files: list[ImageFile]) -> tuple[list[PlacedFile], list[DroppedFile]]:
    """Return the files of a source that may be images, with their splits, and those that are not."""
    placed: list[PlacedFile] = []
    dropped: list[DroppedFile] = []
    for file in files:
        place = readable(f"{Path(source.name).name}/{file.path}")
        path = [name for name in file.path.split("/") if name not in ("", ".")]
        if any(name.startswith(".") for name in path):
            dropped.append(DroppedFile(place, HIDDEN))
        else:
            above = [source.stem] if source.stem in SPLITS else []
            placed.append(PlacedFile(place, file, None, above + path))
    placed = _without_outer_folders(placed)
    tops = {entry.path[0] for entry in placed if entry.in_folder}
    if not tops & set(SPLITS):
        return placed, dropped
    used = next((name for name in VALIDATION if name in tops), None)
    splits = {**dict.fromkeys(TRAIN, "train"), **({} if used is None else {used: "validation"})}
    found = []
    for entry in placed:
        top = entry.path[0]
        if entry.in_folder and top in splits:
            found.append(PlacedFile(entry.place, entry.file, splits[top], entry.path[1:]))
        else:
            dropped.append(DroppedFile(entry.place, UNUSED if entry.in_folder and top in SPLITS else OUTSIDE))
    return found, dropped


def _without_outer_folders(files: list[PlacedFile]) -> list[PlacedFile]:
    # Folders around everything say nothing; the last level of folders is the classes.
    while files and max(len(file.path) for file in files) > 2:
        tops = {file.path[0] for file in files}
        if len(tops) > 1 or tops & set(SPLITS):
            break
        files = [PlacedFile(file.place, file.file, None, file.path[1:]) for file in files if file.in_folder]
    return files


def readable(path: str) -> str:
    """Return a name as text: names in archives and on disks may be any bytes; what is not UTF-8 becomes numbers."""
    return path.encode("utf-8", "backslashreplace").decode()
