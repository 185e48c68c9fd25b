"""Lists of the classes of images that lie in no class folder: ImageNet's ground truth, Kaggle's CSV, NAME CLASS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from odist.errors import UserError


@dataclass
class Labels:
    """Classes of images that lie in no class folder: by file name, or in the order of the names."""

    path: Path
    by_name: dict[str, str] = field(default_factory=dict)
    ordered: list[str] = field(default_factory=list)

    def of(self, paths: Iterable[str]) -> dict[str, str]:
        """Return path -> class for the paths that the list names; UserError where the list has another length."""
        if self.by_name:
            keys = {path: (Path(path).name, Path(path).stem) for path in paths}  # Kaggle's list leaves out the endings
            found = {path: next((key for key in pair if key in self.by_name), None) for path, pair in keys.items()}
            return {path: self.by_name[key] for path, key in found.items() if key is not None}
        ordered = sorted(paths, key=lambda path: Path(path).name)
        if len(ordered) != len(self.ordered):
            raise UserError(
                f"{self.path}: {len(self.ordered):,} labels for {len(ordered):,} images without a class folder. "
                "A list without file names has one line an image, in the order of the names."
            )
        return dict(zip(ordered, self.ordered, strict=True))


def read_labels(path: Path, synsets: Path | None) -> Labels:
    """Read a label list: lines of NAME CLASS or NAME,CLASS, or the devkit's ground truth, one number from 1 a line.

    Words after the class, and a first line of headings, say nothing: LOC_val_solution.csv of Kaggle has both.
    synsets: class of each number of the devkit, one a line; None: meta.mat beside the list
    Raises UserError for any other list.
    """
    rows = [line.replace(",", " ").split() for line in _lines(path)]
    if all(len(row) == 1 for row in rows):
        if not all(row[0].isdigit() for row in rows):
            raise UserError(f"{path}: expected 'NAME CLASS' lines, or one number a line.")
        names = _synsets(path, synsets)
        wrong = [row[0] for row in rows if not 1 <= int(row[0]) <= len(names)]
        if wrong:
            raise UserError(f"{path}: label {wrong[0]}, but the classes are numbered from 1 to {len(names)}.")
        return Labels(path, ordered=[names[int(row[0]) - 1] for row in rows])
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short is not None:
        raise UserError(f"{path}: line {short} has one word; expected 'NAME CLASS'.")
    return Labels(path, by_name={Path(row[0]).name: row[1] for row in rows})


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file.") from None
    if not lines:
        raise UserError(f"{path}: the list is empty.")
    return lines


def _synsets(path: Path, synsets: Path | None) -> list[str]:
    if synsets is not None:
        return [line.split()[0] for line in _lines(synsets)]
    meta = path.expanduser().with_name("meta.mat")
    hint = "Name a list of the classes, in the devkit's order, by --synsets"
    if not meta.is_file():
        raise UserError(f"{path}: numbers; the devkit's meta.mat, which says what they mean, is not beside it. {hint}.")
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"{meta}: is read with scipy, which is not installed. Type: pip install scipy. {hint}."
        ) from None
    try:
        rows = loadmat(meta, squeeze_me=True)["synsets"]
        leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:
        raise UserError(f"{meta}: not the devkit's ({error}). {hint}.") from None
    if sorted(leaves) != list(range(1, len(leaves) + 1)):
        raise UserError(f"{meta}: its classes are not numbered from 1 to {len(leaves)}. {hint}.")
    return [leaves[number] for number in range(1, len(leaves) + 1)]
