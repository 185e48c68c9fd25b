"""Input of an image preparation: folders, tar archives (also of tar archives) and data sets, as lists of files.

Says which files there are and where their bytes lie; nothing is unpacked but gzip.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from odist.errors import UserError
from odist.prepare.datasets import DATASETS, dataset_splits, load_dataset
from odist.prepare.inputs import find_files, refuse_twice
from odist.prepare.unpack import TarMember, begins_tar, members, unpack

TAR = ".tar"
MAX_RATIO, SMALL_ARCHIVE = 100, 1 << 30  # of unpacked to packed bytes, beyond so many bytes
SPACE_STEP = 1 << 28  # bytes between two looks at the free space, and what has to be left
MAX_NESTED = 8  # archives in archives
WHOLE = -1  # offset of a file that lies in no archive
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar")
IMAGE_FEATURE, LABEL_FEATURE = "Image", "ClassLabel"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of the input, or one row of a data set.

    path: within the input, parts divided by "/"
    holder: file on the disk that holds its bytes, or name of the data set
    offset: of its first byte in `holder`, WHOLE for all of it; the row of a data set
    size: bytes; 0 for a row
    """

    path: str
    holder: str
    offset: int
    size: int


@dataclass(frozen=True)
class ImageSource:
    """One input.

    kind: folder | tar | gzip (a packed tar) | datasets
    bytes, modified_ns, state: tell whether it is still the same; state is a digest of a folder's listing or the
        fingerprint of a data set
    """

    name: str
    kind: str
    bytes: int = 0
    modified_ns: int = 0
    state: str = ""
    files: list[ImageFile] = field(default_factory=list, compare=False, repr=False)  # of a folder

    @property
    def stem(self) -> str:
        """Name without folders and endings."""
        name = Path(self.name).name
        return next((name.removesuffix(end) for end in PACKED_SUFFIXES if name.endswith(end)), name)

    def identity(self) -> dict[str, Any]:
        found = {"name": self.name, "bytes": self.bytes, "modified_ns": self.modified_ns, "state": self.state}
        return {key: value for key, value in found.items() if value}


def find_image_sources(inputs: list[str]) -> list[ImageSource]:
    """Find the sources that `inputs` name, in the order given.

    inputs: folders, tar files, plain or gzip, patterns of them, or "datasets:NAME" with "?name=CONFIG" where needed
    Raises UserError for what is missing, empty, named twice or of another kind.
    """
    if not inputs:
        raise UserError("no input given. Name a folder of class folders, tar files, or a data set by --dataset.")
    sources: list[ImageSource] = []
    for text in inputs:
        if text.startswith(DATASETS):
            sources += _dataset_sources(text)
        elif (folder := Path(text).expanduser()).is_dir():
            sources.append(_folder(folder.resolve(), text))
        else:
            for found in find_files([text]):
                kind = {"plain": "tar", "gzip": "gzip"}.get(found.kind)
                if kind is None or (kind == "tar" and not _is_tar(found.path)):
                    raise UserError(
                        f"{text}: not a tar archive. Name a folder of class folders, tar files, or a data set (a "
                        "folder of Parquet files) by --dataset."
                    )
                sources.append(ImageSource(str(found.path), kind, found.bytes, found.modified_ns))
    refuse_twice((source.name for source in sources), what="images")
    return sources


def _is_tar(path: Path) -> bool:
    with open(path, "rb") as file:
        return begins_tar(file.read(tarfile.BLOCKSIZE))


def list_files(source: ImageSource, *, position: int, work: Path, tell: Callable[[int, int], None]) -> list[ImageFile]:
    """List all files of a source, those of archives inside it included, in the order in which they lie there.

    position: number of the source; work: folder that a gzip archive is unpacked into, once
    tell: called while it is, with the packed bytes done and in all; may raise to stop
    Raises UserError where an archive is damaged.
    """
    if source.kind == "folder":
        found: list[ImageFile] = []
        for file in source.files:
            found += _list_tar(file.holder, prefix=_inner(file.path)) if file.path.endswith(TAR) else [file]
        return found
    if source.kind == "datasets":
        raise ValueError("rows of a data set come with their labels; see plan.plan_dataset")
    if source.kind == "tar":
        return list(_list_tar(source.name, prefix=""))
    return list(_list_tar(str(_unpacked(source, work / f"{position}{TAR}", tell)), prefix=""))


def _folder(folder: Path, shown: str) -> ImageSource:
    files = list(_walk(folder, folder, shown, ancestors=frozenset()))
    if not files:
        raise UserError(f"{shown}: the folder is empty.")
    if all(file.path.endswith((".parquet", ".arrow", "json")) for file in files):
        raise UserError(f"{shown}: a data set, not a folder of images. Type --dataset {shown} instead.")
    state = hashlib.sha256()
    for file in files:
        try:
            state.update(f"{file.path}\0{file.size}\0{os.stat(file.holder).st_mtime_ns}\n".encode("utf-8", "replace"))
        except OSError:  # a dead link; it is reported when it is read
            state.update(f"{file.path}\0\n".encode("utf-8", "replace"))
    total = sum(file.size for file in files)
    return ImageSource(str(folder), "folder", total, 0, state.hexdigest()[:16], files)


def _walk(folder: Path, root: Path, shown: str, *, ancestors: frozenset[str]) -> Iterator[ImageFile]:
    # Links are followed: validation parts are often sorted into classes by links.
    real = os.path.realpath(folder)
    if real in ancestors:
        raise UserError(f"{folder}: a link to a folder that holds it; it has no end. Remove the link.")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot read this folder: {error.strerror}.") from None
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir():
            yield from _walk(path, root, shown, ancestors=ancestors | {real})
            continue
        try:
            size = entry.stat().st_size
        except OSError:
            size = 0
        yield ImageFile(path.relative_to(root).as_posix(), entry.path, WHOLE, size)


def _unpacked(source: ImageSource, target: Path, tell: Callable[[int, int], None]) -> Path:
    if target.is_file():
        return target

    def refuse(place: int, kind: str) -> None:
        raise UserError(f"{source.name}: {kind} at byte {place:,}. Fetch the file again; `gzip -t` tests it.")

    temporary = target.with_suffix(".tmp")
    with open(source.name, "rb") as file, open(temporary, "wb") as output:
        header, pieces = b"", unpack(file, note=refuse)
        while len(header) < tarfile.BLOCKSIZE and (piece := next(pieces, None)) is not None:
            header += piece
        if not begins_tar(header):
            raise UserError(
                f"{source.name}: not a packed tar archive. Unpack it, and name the folder of class folders."
            )
        size = 0
        for piece in chain([header], pieces):
            size += len(piece)
            if size > max(SMALL_ARCHIVE, MAX_RATIO * source.bytes):
                raise UserError(
                    f"{source.name}: unpacks to more than {MAX_RATIO} times its {source.bytes:,} bytes, which an "
                    "archive of images does not. If it is right, unpack it yourself and name the folder."
                )
            if (
                size // SPACE_STEP != (size - len(piece)) // SPACE_STEP
                and shutil.disk_usage(target.parent).free < SPACE_STEP
            ):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            output.write(piece)
            tell(file.tell(), source.bytes)
    temporary.replace(target)
    return target


def _list_tar(holder: str, *, prefix: str) -> Iterator[ImageFile]:
    try:
        with open(holder, "rb") as file:
            yield from _list_members(file, holder, base=0, prefix=prefix)
    except tarfile.TarError as error:
        raise UserError(f"{holder}: damaged or not whole ({error}). Fetch the file again; `tar tf` tests it.") from None


def _list_members(file: IO[bytes], holder: str, *, base: int, prefix: str, depth: int = 0) -> Iterator[ImageFile]:
    # Headers only: the bytes of a member are found by its offset when their turn comes.
    with tarfile.open(fileobj=file, mode="r:", tarinfo=TarMember) as archive:
        for member in members(archive):
            if not member.isreg() or member.issparse():
                continue
            path, start = prefix + member.name.removeprefix("./"), base + member.offset_data
            if not member.name.endswith(TAR):
                yield ImageFile(path, holder, start, member.size)
                continue
            if depth >= MAX_NESTED:
                raise tarfile.ReadError(f"more than {MAX_NESTED} archives in archives")
            inner = archive.extractfile(member)
            assert inner is not None
            yield from _list_members(inner, holder, base=start, prefix=_inner(path), depth=depth + 1)
        # tarfile takes a damaged or cut header for the end; the end is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header and no end at byte {base + archive.offset:,}")


def _inner(path: str) -> str:
    return path.removesuffix(TAR) + "/"


def _dataset_sources(text: str) -> list[ImageSource]:
    wanted = [text] if "split=" in text else [_with_split(text, split) for split in dataset_splits(text)]
    sources = []
    for name in wanted:
        data = load_dataset(name)
        sources.append(ImageSource(name, "datasets", int(data.data.nbytes), 0, str(data._fingerprint)))
    return sources


def _with_split(text: str, split: str) -> str:
    return f"{text}{'&' if '?' in text else '?'}split={split}"


def open_rows(name: str) -> Any:
    """Open the data set of that name with its images as {"bytes", "path"} in the column "image", and its label column.

    Returns (data set, image column, label column); UserError where one of them is missing.
    """
    import datasets

    data = load_dataset(name)
    features = data.features
    images = [key for key, feature in features.items() if _is_image(feature)]
    labels = [key for key, feature in features.items() if type(feature).__name__ == LABEL_FEATURE]
    labels += [key for key in ("label", "labels", "class", "cls", "wnid") if key in features]
    if not images or not labels:
        raise UserError(f"{name}: expected a column of images and one of labels, found {', '.join(features)}.")
    if type(features[images[0]]).__name__ == IMAGE_FEATURE:
        data = data.cast_column(images[0], datasets.Image(decode=False))
    return data, images[0], labels[0]


def _is_image(feature: Any) -> bool:
    if type(feature).__name__ == IMAGE_FEATURE or (isinstance(feature, dict) and "bytes" in feature):
        return True
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def row_bytes(cell: Any) -> bytes:
    """Return the bytes of an image as a data set holds it, or as {"bytes", "path"}; OSError when they are missing."""
    if isinstance(cell, dict):
        if cell["bytes"] is None and cell.get("path"):
            return Path(cell["path"]).read_bytes()
        cell = cell["bytes"]
    return cell or b""
