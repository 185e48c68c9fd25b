"""What `odist prepare text` may be given as input: files, patterns, wet.paths lists, URLs, data sets.

Finds and names them, and fetches what is remote.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odist.errors import UserError
from odist.prepare.datasets import DATASETS, is_saved, load_dataset
from odist.prepare.inputs import files_named, look_at, refuse_twice
from odist.prepare.unpack import unpack

SHARD_ROWS = 100_000  # of a data set; a shard is what is done again after an interruption
TRIES = 5
TIMEOUT = 60.0  # seconds without a byte
MAX_PATHS = 1_000_000
MAX_LIST = 1 << 27  # bytes of a list; a list of Common Crawl has 14 MB
USER_AGENT = "odist (prepare text)"


class FetchError(UserError):
    """A remote file cannot be fetched; what is done so far is kept."""


@dataclass(frozen=True)
class TextSource:
    """One input: a file, a URL, or rows [start, stop) of a data set.

    bytes, modified_ns: of a file, which tell whether it is still the same; 0 for the others
    state: fingerprint of a data set
    """

    name: str
    kind: str  # file | url | datasets
    bytes: int = 0
    modified_ns: int = 0
    start: int = 0
    stop: int = 0
    state: str = ""

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value}


def find_text_sources(inputs: list[str], *, base_url: str) -> list[TextSource]:
    """Find the sources that `inputs` name, in the order given; what a pattern finds in natural order.

    inputs: files, patterns, lists (*.paths, *.paths.gz: one path a line), http(s) URLs, "datasets:NAME"
        with "?name=CONFIG&split=train" where needed
    base_url: put before each path of a list: a URL, or a folder that mirrors it
    Raises UserError for what is missing or named twice.
    """
    if not inputs:
        raise UserError("no input given. Name files, patterns such as '*.wet.gz', a wet.paths list, or datasets:NAME.")
    sources: list[TextSource] = []
    for text in inputs:
        if text.startswith(DATASETS):
            sources += _dataset_sources(text)
        elif is_url(text):
            sources.append(TextSource(text, "url"))
        else:
            for path in _expand(text):
                if path.name.endswith((".paths", ".paths.gz")):
                    sources += _listed(path, base_url)
                else:
                    sources.append(_file(path))
    refuse_twice((source.name for source in sources if source.start == 0), what="documents")
    return sources


def is_url(text: str) -> bool:
    """Tell whether a text is an http or https address."""
    return text.startswith(("http://", "https://"))


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        if is_saved(path):
            raise UserError(f"{text}: a saved data set; name it as datasets:{text}.")
        raise UserError(f"{text}: a folder. Name its files by a pattern, such as '{path}/*.gz'.")
    return files_named(text)


def _file(path: Path) -> TextSource:
    resolved = path.resolve()
    status, _ = look_at(resolved, shown=path)
    return TextSource(str(resolved), "file", status.st_size, status.st_mtime_ns)


def _listed(path: Path, base: str) -> list[TextSource]:
    def refuse(place: int, kind: str) -> None:
        raise UserError(f"{path}: {kind} at byte {place}. Fetch the list again.")

    with open(path, "rb") as file:
        data = bytearray()
        for piece in unpack(file, note=refuse):
            data += piece
            if len(data) > MAX_LIST:
                raise UserError(
                    f"{path}: more than {MAX_LIST >> 20} MB unpacked, too large for a list of paths. Name a list with "
                    "one path a line, a million at most."
                )
    lines = data.decode("utf-8", "replace").split(maxsplit=MAX_PATHS)
    if not lines:
        raise UserError(f"{path}: the list is empty.")
    if len(lines) > MAX_PATHS:
        raise UserError(f"{path}: more than {MAX_PATHS:,} paths. Cut the list into several, and name one of them.")
    if is_url(base):
        return [TextSource(_joined(path, base, line), "url") for line in lines]
    folder = Path(base.removeprefix("file://")).expanduser()
    outside = [line for line in lines if not _is_within(folder, line)]
    if outside:
        raise UserError(
            f"{path}: {len(outside)} of {len(lines)} paths lead out of {folder}; the first: {outside[0][:200]}. "
            "Name by --base-url the folder that all of them lie in."
        )
    missing = [line for line in lines if not (folder / line).is_file()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(lines)} files are not under {folder}; the first: {missing[0]}. "
            "Name the folder or the URL before the paths by --base-url."
        )
    return [_file(folder / line) for line in lines]


def _joined(path: Path, base: str, line: str) -> str:
    try:
        address = urllib.parse.urljoin(base.rstrip("/") + "/", line.lstrip("/"))
    except ValueError:  # such as a bracket without its other one
        address = ""
    if not is_url(address):
        raise UserError(f"{path}: {line[:200]!r} is neither a path below {base} nor an http address. Remove the line.")
    return address


def _is_within(folder: Path, line: str) -> bool:
    root = os.path.abspath(folder)
    return os.path.commonpath((root, os.path.abspath(folder / line))) == root


def _dataset_sources(text: str) -> list[TextSource]:
    data = load_dataset(text)
    rows, state = len(data), str(data._fingerprint)
    return [
        TextSource(text, "datasets", start=start, stop=min(start + SHARD_ROWS, rows), state=state)
        for start in range(0, rows, SHARD_ROWS)
    ]


@contextmanager
def fetched(source: TextSource, folder: Path, *, poll: Callable[[], None]) -> Iterator[Path]:
    """Lend the source as a local file: itself, or a download under `folder` that is removed afterwards.

    poll: called now and then while it is fetched; may raise to stop
    Raises FetchError after TRIES attempts.
    """
    if source.kind == "file":
        yield Path(source.name)
        return
    name = Path(urllib.parse.urlparse(source.name).path).name or "download"
    target = folder / f"{os.getpid()}-{name}"
    try:
        for attempt in range(TRIES):
            try:
                _download(source.name, target, poll)
                break
            except (OSError, ValueError, http.client.HTTPException) as error:  # urllib.error.URLError is an OSError
                final = isinstance(error, urllib.error.HTTPError) and error.code in (400, 401, 403, 404, 410)
                if final or attempt == TRIES - 1:
                    message = f"{source.name}: cannot be fetched: {error}. The same command continues."
                    raise FetchError(message) from None
                time.sleep(2.0**attempt)
        yield target
    finally:
        target.unlink(missing_ok=True)


def _download(url: str, target: Path, poll: Callable[[], None]) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, open(target, "wb") as file:
        while data := response.read(1 << 20):
            file.write(data)
            poll()
        length = response.headers.get("Content-Length")
        if length is not None and file.tell() != int(length):
            raise OSError(f"{file.tell():,} of {int(length):,} bytes came")
