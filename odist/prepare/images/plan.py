"""Which file or row of the input is which image: its class and its split, by folders, by lists, or by columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odist.errors import UserError
from odist.prepare.images.files import LABEL_FEATURE, ImageFile, ImageSource, open_rows
from odist.prepare.images.labels import Labels
from odist.prepare.images.layout import (
    OUTSIDE,
    UNLABELLED,
    UNUSED,
    VALIDATION,
    DroppedFile,
    PlacedFile,
    place_files,
    readable,
)
from odist.prepare.inputs import natural


@dataclass(frozen=True, slots=True)
class Item:
    """One image to read. place: for messages; split: None where it is still to be drawn."""

    place: str
    file: ImageFile
    label: int
    split: str | None


@dataclass
class Plan:
    """Images to read, and the files that are not stored."""

    classes: list[str]
    items: list[Item]
    dropped: list[DroppedFile]


@dataclass(frozen=True)
class Known:
    """What is taken from another store: its classes in their order. validation: every image is a validation image."""

    path: Path
    classes: list[str]
    validation: bool

    def check(self, names: set[str]) -> None:
        """Raise UserError if there is no class, or one that the other store does not have."""
        if not names:
            raise UserError("no image in a class folder in the input. Name a folder of class folders, or a tar of it.")
        missing = sorted(names - set(self.classes), key=natural)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"class {missing[0]!r}{more} is not among the {len(self.classes)} classes of {self.path}, such as "
                f"{self.classes[0]!r}. Take it out of the input, or prepare without --like for a model of its own."
            )


def plan_files(
    sources: list[ImageSource],
    *,
    files: Callable[[int, ImageSource], list[ImageFile]],
    labels: Labels | None,
    known: Known | None,
) -> Plan:
    """Find the classes and the splits of all files.

    files: lists those of a source, given its number
    known: the classes of another store, and whether all images are for validation
    Raises UserError where no class can be found, or the validation part has one that the training part has not.
    """
    found: list[tuple[PlacedFile, str | None, str]] = []  # file, split, class
    dropped: list[DroppedFile] = []
    for position, source in enumerate(sources):
        placed, others = place_files(source, files(position, source))
        dropped += others
        listed = {file.file.path: file for file in placed if labels is not None and _is_listed(file)}
        in_folders = placed if labels is None else [file for file in placed if not _is_listed(file)]
        dropped += _in_class_folders(in_folders, found)
        dropped += _from_list(listed, labels, found)
    if labels is not None and not any(split == "validation" for _, split, _ in found):
        raise UserError(
            f"{labels.path}: it names none of the images of the input, or all of them lie in class folders."
        )
    names = sorted({name for _, split, name in found if split != "validation"})
    if known is not None:
        names = known.classes
        known.check({name for _, _, name in found})
    elif not names:
        raise UserError("no training image in the input. Name the folder or the tar of the training part too.")
    else:
        _check_classes(names, {name for _, split, name in found if split == "validation"})
    numbers = {name: number for number, name in enumerate(names)}
    final = _final_split({split for _, split, _ in found}, known)
    return Plan(names, [Item(at.place, at.file, numbers[name], final(split)) for at, split, name in found], dropped)


def _is_listed(file: PlacedFile) -> bool:
    # Whether a list of labels is to name its class.
    return file.split == "validation" or (file.split is None and not file.in_folder)


def _in_class_folders(files: list[PlacedFile], found: list[tuple[PlacedFile, str | None, str]]) -> list[DroppedFile]:
    # Adds those in class folders to `found`; returns the others.
    sorted_splits = {file.split for file in files if file.in_folder}
    dropped = []
    for file in files:
        if file.in_folder:
            if file.path[0] != readable(file.path[0]):
                raise UserError(
                    f"{file.place}: its folder names the class, and that name is not UTF-8. Rename the folder."
                )
            found.append((file, file.split, file.path[0]))
        elif file.split not in sorted_splits and file.looks_like_an_image:
            raise UserError(
                f"{file.place}: an image in no class folder. Sort images into a folder for each class, or name a list "
                "of the classes of validation images by --labels."
            )
        else:
            dropped.append(DroppedFile(file.place, OUTSIDE))
    return dropped


def _from_list(
    files: dict[str, PlacedFile], labels: Labels | None, found: list[tuple[PlacedFile, str | None, str]]
) -> list[DroppedFile]:
    # Adds those that the list names to `found`, as validation images; returns the others. files: by path in the input
    if labels is None or not files:
        return []
    classes = labels.of([path for path, file in files.items() if file.looks_like_an_image])
    found += [(file, "validation", classes[path]) for path, file in files.items() if path in classes]
    others = [file for path, file in files.items() if path not in classes]
    return [DroppedFile(file.place, UNLABELLED if file.looks_like_an_image else OUTSIDE) for file in others]


def _final_split(present: set[str | None], known: Known | None) -> Callable[[str | None], str | None]:
    # What becomes of the split that an image lies in; None: it is drawn.
    if known is not None and known.validation:
        return lambda _: "validation"
    drawn = "validation" not in present
    return lambda split: None if drawn else split or "train"


def _check_classes(train: list[str], validation: set[str]) -> None:
    missing = sorted(validation - set(train))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the validation part has class {missing[0]!r}{more}, which the training part has not; it has "
            f"{len(train)}, such as {train[0]!r}. Name inputs of the same classes; a validation folder whose images "
            "are not sorted into classes needs --labels."
        )


def plan_dataset(sources: list[ImageSource], *, known: Known | None) -> Plan:
    """Find the classes and the splits of the rows of data sets; as plan_files."""
    splits = {source.name: _split_of(source.name) for source in sources}
    used = next((name for name in VALIDATION if name in splits.values()), None)
    found: list[tuple[Item, Any]] = []
    dropped: list[DroppedFile] = []
    names: list[str] | None = None
    for source in sources:
        data, _, column = open_rows(source.name)
        split = "train" if splits[source.name] not in VALIDATION else "validation"
        if split == "validation" and splits[source.name] != used:
            dropped += [DroppedFile(f"{source.name} row {row}", UNUSED) for row in range(len(data))]
            continue
        feature = data.features[column]
        if type(feature).__name__ == LABEL_FEATURE:
            if names is not None and names != feature.names:
                raise UserError(f"{source.name}: its classes differ from those of {sources[0].name}.")
            names = list(feature.names)
        for row, value in enumerate(data[column]):
            place = f"{source.name} row {row}"
            if value is None or (isinstance(value, int) and value < 0):
                dropped.append(DroppedFile(place, UNLABELLED))
            else:
                found.append((Item(place, ImageFile(f"{row}", source.name, row, 0), 0, split), value))
    final = _final_split({item.split for item, _ in found}, known)
    if known is not None:
        named = [names[value] if names is not None and isinstance(value, int) else str(value) for _, value in found]
        known.check(set(named))
        labels = {name: number for number, name in enumerate(known.classes)}
        items = [
            Item(item.place, item.file, labels[name], final(item.split))
            for (item, _), name in zip(found, named, strict=True)
        ]
        return Plan(known.classes, items, dropped)
    train = {value for item, value in found if item.split == "train"}
    if not train:
        raise UserError("no training row in the data set. Name it without ?split=, or with a training part.")
    order = list(range(len(names))) if names is not None else sorted(train, key=lambda value: natural(str(value)))
    classes = names if names is not None else [str(value) for value in order]
    numbers = {value: number for number, value in enumerate(order)}
    _check_classes(classes, {str(value) for _, value in found if value not in numbers})
    items = [Item(item.place, item.file, numbers[value], final(item.split)) for item, value in found]
    return Plan(classes, items, dropped)


def _split_of(name: str) -> str:
    return name.partition("split=")[2].partition("&")[0].partition("[")[0] or "train"
