"""Which file of the input is which image: its class and its split, by folders, by lists, or by columns.

train/CLASS/..., val/CLASS/...      one level of other folders around it, or none; a part may be a tar of its own
CLASS/...                           no parts: training images, of which a share is drawn for validation
train.tar of CLASS.tar, val.tar     as ILSVRC2012 is shipped; images of no folder need `labels`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odist.errors import UserError
from odist.prepare.images.files import LABEL_FEATURE, ImageFile, ImageSource, open_rows
from odist.prepare.images.labels import Labels
from odist.prepare.inputs import natural

TRAIN = ("train", "ILSVRC2012_img_train")
VALIDATION = ("val", "validation", "valid", "ILSVRC2012_img_val", "test")  # the first of them that is there is used
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
OUTSIDE, HIDDEN, UNUSED, UNLABELLED = "outside a class folder", "hidden", "unused part", "no label"


@dataclass(frozen=True, slots=True)
class Item:
    """One image to read. place: for messages; split: None where it is still to be drawn"""

    place: str
    file: ImageFile
    label: int
    split: str | None


@dataclass(frozen=True, slots=True)
class DroppedFile:
    """A file that is not stored."""

    file: str
    reason: str
    detail: str = ""


@dataclass
class Plan:
    """Images to read, and the files that are none."""

    classes: list[str]
    items: list[Item]
    dropped: list[DroppedFile]


@dataclass(frozen=True)
class Known:
    """What is taken from another store: its classes in their order. validation: every image is a validation image"""

    path: Path
    classes: list[str]
    validation: bool

    def check(self, names: set[str]) -> None:
        """UserError where a class is none of them, or there is none."""
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
    """Classes and parts of all files.

    files: lists those of a source, given its number
    known: the classes of another store, and whether all images are for validation
    Raises UserError where no class can be found, or the validation part has one that the training part has not.
    """
    found: list[tuple[str, ImageFile, str | None, str]] = []  # place, file, split, class
    dropped: list[DroppedFile] = []
    for position, source in enumerate(sources):
        flat: dict[str, tuple[str, ImageFile]] = {}
        loose: list[tuple[str, str | None]] = []
        sorted_parts = set()
        for place, file, split, parts in _placed(source, files(position, source), dropped):
            if labels is not None and (split == "validation" or (split is None and len(parts) == 1)):
                flat[file.path] = (place, file)
            elif len(parts) > 1:
                if parts[0] != _readable(parts[0]):
                    raise UserError(
                        f"{place}: its folder names the class, and that name is not UTF-8. Rename the folder."
                    )
                found.append((place, file, split, parts[0]))
                sorted_parts.add(split)
            else:
                loose.append((place, split))
        for place, split in loose:
            if split not in sorted_parts and place.lower().endswith(SUFFIXES):
                raise UserError(
                    f"{place}: an image in no class folder. Sort images into a folder for each class, or name a list of "
                    "the classes of validation images by --labels."
                )
            dropped.append(DroppedFile(place, OUTSIDE))
        found += _labelled(flat, labels, dropped)
    if labels is not None and not any(split == "validation" for _, _, split, _ in found):
        raise UserError(
            f"{labels.path}: no image of the input is named in it, or there is none without a class folder."
        )
    names = sorted({name for _, _, split, name in found if split != "validation"})
    if known is not None:
        names = known.classes
        known.check({name for _, _, _, name in found})
    elif not names:
        raise UserError("no training image in the input. Name the folder or the tar of the training part too.")
    else:
        _check_classes(names, {name for _, _, split, name in found if split == "validation"})
    numbers = {name: number for number, name in enumerate(names)}
    part = _parts({split for _, _, split, _ in found}, known)
    items = [Item(place, file, numbers[name], part(split)) for place, file, split, name in found]
    return Plan(names, items, dropped)


def _parts(present: set[str | None], known: Known | None) -> Callable[[str | None], str | None]:
    # What becomes of the part that an image lies in; None: it is drawn.
    if known is not None and known.validation:
        return lambda _: "validation"
    drawn = "validation" not in present
    return lambda split: None if drawn else split or "train"


def _readable(path: str) -> str:
    # Names in an archive or on a disk may be any bytes; those that are no UTF-8 are shown by their numbers.
    return path.encode("utf-8", "backslashreplace").decode()


def _placed(
    source: ImageSource, files: list[ImageFile], dropped: list[DroppedFile]
) -> list[tuple[str, ImageFile, str | None, list[str]]]:
    # (place, file, split, path within the part) of the files that may be images
    shown, kept = Path(source.name).name, []
    for file in files:
        parts = [part for part in file.path.split("/") if part not in ("", ".")]
        if any(part.startswith(".") for part in parts):
            dropped.append(DroppedFile(_readable(f"{shown}/{file.path}"), HIDDEN))
        else:
            kept.append((file, parts))
    names = (*TRAIN, *VALIDATION)
    if source.stem in names:
        kept = [(file, [source.stem, *parts]) for file, parts in kept]
    # Folders around everything say nothing; the last level of folders is the classes.
    while kept and max(len(parts) for _, parts in kept) > 2:
        first = {parts[0] for _, parts in kept}
        if len(first) > 1 or first & set(names):
            break
        kept = [(file, parts[1:]) for file, parts in kept if len(parts) > 1]
    tops = {parts[0] for _, parts in kept if len(parts) > 1}
    if not tops & set(names):
        return [(_readable(f"{shown}/{file.path}"), file, None, parts) for file, parts in kept]
    used = next((name for name in VALIDATION if name in tops), None)
    placed: list[tuple[str, ImageFile, str | None, list[str]]] = []
    for file, parts in kept:
        place, top = _readable(f"{shown}/{file.path}"), parts[0]
        if len(parts) > 1 and top in TRAIN:
            placed.append((place, file, "train", parts[1:]))
        elif len(parts) > 1 and top == used:
            placed.append((place, file, "validation", parts[1:]))
        else:
            dropped.append(DroppedFile(place, UNUSED if len(parts) > 1 and top in names else OUTSIDE))
    return placed


def _labelled(
    flat: dict[str, tuple[str, ImageFile]], labels: Labels | None, dropped: list[DroppedFile]
) -> list[tuple[str, ImageFile, str | None, str]]:
    if not flat:
        return []
    assert labels is not None
    images = [path for path in flat if path.lower().endswith(SUFFIXES)]
    classes = labels.of(images)
    for path in flat.keys() - classes.keys():
        dropped.append(DroppedFile(flat[path][0], UNLABELLED if path.lower().endswith(SUFFIXES) else OUTSIDE))
    return [(*flat[path], "validation", classes[path]) for path in flat if path in classes]


def _check_classes(train: list[str], validation: set[str]) -> None:
    missing = sorted(validation - set(train))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the validation part has class {missing[0]!r}{more}, which the training part has not; it has {len(train)}, such "
            f"as {train[0]!r}. Name inputs of the same classes; a validation folder whose images are not sorted into "
            "classes needs --labels."
        )


def plan_dataset(sources: list[ImageSource], *, known: Known | None) -> Plan:
    """Classes and parts of the rows of data sets; as plan_files."""
    parts = {source.name: _part(source.name) for source in sources}
    used = next((name for name in VALIDATION if name in parts.values()), None)
    found: list[tuple[Item, Any]] = []
    dropped: list[DroppedFile] = []
    names: list[str] | None = None
    for source in sources:
        data, _, column = open_rows(source.name)
        split = "train" if parts[source.name] not in VALIDATION else "validation"
        if split == "validation" and parts[source.name] != used:
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
    part = _parts({item.split for item, _ in found}, known)
    if known is not None:
        named = [names[value] if names is not None and isinstance(value, int) else str(value) for _, value in found]
        known.check(set(named))
        labels = {name: number for number, name in enumerate(known.classes)}
        items = [
            Item(item.place, item.file, labels[name], part(item.split))
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
    items = [Item(item.place, item.file, numbers[value], part(item.split)) for item, value in found]
    return Plan(classes, items, dropped)


def _part(name: str) -> str:
    return name.partition("split=")[2].partition("&")[0].partition("[")[0] or "train"
