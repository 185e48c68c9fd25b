"""Which files the inputs of a preparation name: files, patterns, folders; plain or gzip by their first bytes."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odist.errors import UserError
from odist.prepare.unpack import GZIP

PARQUET = b"PAR1"
OTHER_PACKED = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"ARROW1": "Arrow",
}


@dataclass(frozen=True)
class InputFile:
    """One input file; its size and time tell whether it is still the same."""

    path: Path
    bytes: int
    modified_ns: int
    kind: str  # plain | gzip | parquet

    def identity(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.bytes, "modified_ns": self.modified_ns}


def natural(path: str) -> list[Any]:
    """Return a sort key that puts day_2 before day_10: order of files is order of time."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def find_files(inputs: list[str]) -> list[InputFile]:
    """Find the files that `inputs` name, in the order given.

    inputs: files, glob patterns, folders of Parquet files; what a pattern or folder finds is put in
        natural order of names
    Raises UserError for what is missing, empty, named twice, or packed in a way that is not read.
    """
    if not inputs:
        raise UserError("no input files given. Name files, patterns such as 'day_*.gz', or a folder of Parquet files.")
    paths = [path for text in inputs for path in _expand(text)]
    refuse_twice((str(path.resolve()) for path in paths), what="rows")
    return [_input_file(path) for path in paths]


def check_format(source: InputFile, format_name: str) -> None:
    """Raise UserError where a format is named that the file has not. format_name: auto | tsv | csv | parquet"""
    if format_name != "auto" and (source.kind == "parquet") != (format_name == "parquet"):
        article = "a" if source.kind == "parquet" else "not a"
        raise UserError(
            f"{source.path}: {article} Parquet file, but the format given is {format_name}. "
            "Leave the format out to have it recognised."
        )


def refuse_twice(names: Iterable[str], *, what: str) -> None:
    """Raise UserError where an input is named twice. what: rows, images, ... for the message."""
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise UserError(f"{twice[0]}: named twice; its {what} would count twice. Name every input once.")


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted((p for p in path.rglob("*.parquet") if p.is_file()), key=lambda p: natural(str(p)))
        if not found:
            raise UserError(
                f"{text}: a folder without *.parquet files. For text files name a pattern, such as '{path}/*.gz'."
            )
        return found
    return files_named(text)


def files_named(text: str) -> list[Path]:
    """Find the file of that name, or those that a pattern matches, in natural order; UserError if there is none."""
    path = Path(text).expanduser()
    if path.exists():
        return [path]
    if glob.has_magic(text):
        found = glob.glob(str(path), recursive=True)
        names = [name for name in found if Path(name).is_file()]
        if not names and found:
            raise UserError(
                f"{text}: only folders match this pattern, such as {min(found, key=natural)}. Name the files in them: "
                f"'{_deeper(text)}'."
            )
        if not names:
            raise UserError(f"{text}: no file matches this pattern.")
        return [Path(name) for name in sorted(names, key=natural)]
    raise UserError(f"{text}: no such file or folder.")


def passed_over(text: str) -> str:
    """Say which folders a pattern matches whose files `files_named` does not read; "" if there are none.

    The same for all data sets. Says how to read them too.
    """
    path = Path(text).expanduser()
    if not glob.has_magic(text) or path.exists():
        return ""
    found = glob.glob(str(path), recursive=True)
    files = [name for name in found if Path(name).is_file()]
    folders = [name.rstrip("/") for name in found if Path(name).is_dir()]
    read: set[str] = set()
    for name in files:
        while (name := os.path.dirname(name)) not in read:
            read.add(name)
    skipped = [folder for folder in folders if folder not in read and any(inside for _, _, inside in os.walk(folder))]
    skipped.sort(key=natural)
    if not files or not skipped:
        return ""
    shown = ", ".join(folder + "/" for folder in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    many, them = (f"{len(skipped):,} folders match", "them") if len(skipped) > 1 else ("a folder matches", "it")
    return f"{text}: {many} too, and the files in {them} are not read: {shown}. To read them: --input '{_deeper(text)}'"


def _deeper(text: str) -> str:
    head, _, last = text.rpartition("/")
    return (f"{head}/**/*" if head else "**/*") if last == "*" else f"{text.rstrip('/')}/**/*"


def look_at(path: Path, *, shown: Path) -> tuple[os.stat_result, bytes]:
    """Return the status and the first bytes of a file; UserError, with the name `shown`, where it cannot be read."""
    if not path.is_file():
        raise UserError(f"{shown}: not a regular file; write it to a file first.")
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()), file.read(8)
    except PermissionError:
        raise UserError(f"{shown}: no permission to read it.") from None


def _input_file(path: Path) -> InputFile:
    resolved = path.resolve()
    status, magic = look_at(resolved, shown=path)
    if not magic:
        raise UserError(f"{path}: the file is empty.")
    for start, name in OTHER_PACKED.items():
        if magic.startswith(start):
            raise UserError(f"{path}: a {name} file, which is not read. Unpack it, or pack it with gzip.")
    kind = "parquet" if magic.startswith(PARQUET) else "gzip" if magic.startswith(GZIP) else "plain"
    return InputFile(resolved, status.st_size, status.st_mtime_ns, kind)
