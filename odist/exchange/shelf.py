"""What lies in a store, and what of it is believed.

Anything may have reached the folder: torn, foreign, damaged, or no file at all. Every entry is checked before it is
used; one that fails is left out, remembered with the reason and looked at again once it has changed, and hides no
other.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from safetensors.torch import load

from odist.exchange.base import Snapshot, Weights, fingerprint

NO_STEP = -1
NAME = re.compile(r"step-(\d{10})-\w{1,64}\.(json|safetensors)")
DIGEST = re.compile(r"[0-9a-f]{64}")
MANIFEST_BYTES = 65_536  # at most
INCARNATIONS = 10**6  # nobody starts a group so often
LATEST = 1e11  # seconds since the epoch: the year 5138
REASON_CHARACTERS = 300
CHANGES_WITH_CONTENT = ("type", "size", "mtime", "created", "ino", "ETag", "LastModified")  # of fsspec's info
UNREADABLE = "unreadable"  # kind of a rejection: the entry may be sound, and is tried again every time
Stamp = tuple[str, ...]
T = TypeVar("T")


class Rejected(ValueError):
    """Why an entry of a store is not used.

    kind: not_a_manifest, other_run, other_model, damaged or not_finite
    """

    def __init__(self, reason: str, *, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Rejection:
    """An entry that is not used: `kind` as in `Rejected`, or UNREADABLE, and the reason in words."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The commit record of one snapshot.

    incarnation: how often the group had been started; checkpoint: step of its own last checkpoint
    """

    group: int
    step: int
    incarnation: int
    blob: str
    sha256: str
    size: int
    model: str
    dtype: str
    run: str
    time: float
    checkpoint: int = NO_STEP

    @property
    def age(self) -> tuple[int, int]:
        """Sorts the snapshots of a group; a restarted group's are newer, whatever their step."""
        return self.incarnation, self.step


def parse(content: bytes, *, name: str, num_steps: int | None = None) -> Manifest:
    """Read a manifest that lies under `name`, of a run of `num_steps`; ValueError says what is wrong with it."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a manifest: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("not a manifest: no JSON object")
    kinds: dict[str, Any] = {"int": int, "str": str, "float": (int, float)}
    known = {field.name: kinds[str(field.type)] for field in fields(Manifest)}
    if set(values) != set(known):
        raise ValueError(f"missing or unknown fields: {', '.join(sorted(set(values) ^ set(known)))}")
    for key, kind in known.items():
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            raise ValueError(f"{key}={values[key]!r} has the wrong type")
    if values["blob"] != name.removesuffix(".json") + ".safetensors":
        raise ValueError(f"names weights that are not its own: {values['blob']!r}")
    if not name.startswith(f"step-{values['step']:010d}-"):
        raise ValueError(f"step={values['step']} is not the one of its name")
    last = INCARNATIONS if num_steps is None else num_steps
    ranges = {"step": (0, last), "checkpoint": (NO_STEP, last), "incarnation": (0, INCARNATIONS), "time": (0, LATEST)}
    for key, (low, high) in ranges.items():
        if not low <= values[key] <= high:  # also for NaN
            raise ValueError(f"{key}={values[key]} is not from {low} to {high}")
    if not DIGEST.fullmatch(values["sha256"]):
        raise ValueError(f"sha256={values['sha256']!r} is no digest")
    return Manifest(**values)


class Shelf:
    """The snapshots of all groups in one store, for reading; several threads may use it.

    fs: fsspec file system; root: path in it; local: whether that is a folder of this machine
    run: whose snapshots are believed; models: fingerprint that the weights of a group must have, by group; None for any
    largest: bytes that their file may have, by group; None for any; num_steps: of the run, None for any number
    rejected: file, as group-0/NAME, and why it is not used
    """

    def __init__(
        self,
        fs: Any,
        root: str,
        *,
        run: str,
        local: bool,
        models: Mapping[int, str] | None = None,
        largest: Mapping[int, int] | None = None,
        num_steps: int | None = None,
    ) -> None:
        self.fs, self.root, self.run, self.local = fs, root, run, local
        self.models, self.largest, self.num_steps = models or {}, largest or {}, num_steps
        self.rejected: dict[str, Rejection] = {}
        self._stamps: dict[str, tuple[Stamp, ...]] = {}  # of what failed a check: not checked again unless it changes
        self._known: dict[str, Manifest] = {}
        self._reading: dict[str, float] = {}  # path: since when

    def folder(self, group: int) -> str:
        return f"{self.root}/group-{group}"

    def blob(self, manifest: Manifest) -> str:
        return f"{self.folder(manifest.group)}/{manifest.blob}"

    def record(self, manifest: Manifest) -> str:
        return self.blob(manifest).removesuffix(".safetensors") + ".json"

    def names(self, group: int) -> list[str]:
        """Everything that lies in the folder of a group, hidden files too; none if there is no such folder."""
        folder = self.folder(group)
        with self._noted(folder):
            self.fs.invalidate_cache(folder)
            try:
                paths = [path.rstrip("/") for path in self.fs.ls(folder, detail=False)]
            except FileNotFoundError:
                return []
            if paths == [folder]:
                raise NotADirectoryError(f"{folder} is not a folder")
            return sorted(os.path.basename(path) for path in paths)

    def manifests(self, group: int, *, anew: bool = False) -> list[Manifest]:
        """The manifests of a group that can be read and belong to this run; `anew`: those known are read again too."""
        folder, there = self.folder(group), {}
        for name in self.names(group):
            path = f"{folder}/{name}"
            if name.startswith(".") or not name or (NAME.fullmatch(name) and name.endswith(".safetensors")):
                continue
            found = None if anew else self._known.get(path)
            if found is None and not self._failed_before(path):
                found = self._try(path, functools.partial(self._manifest, path, name=name, group=group))
            if found is not None:
                there[path] = found
        for path in list(self._known):
            if path.startswith(f"{folder}/") and path not in there:
                self._known.pop(path, None)
        self._known.update(there)
        return list(there.values())

    def newest(self, manifests: Sequence[Manifest], *, finite: bool = False) -> Snapshot | None:
        """The first of the manifests, newest first, whose weights verify; `finite` refuses a diverged peer's."""
        for manifest in sorted(manifests, key=lambda m: m.age, reverse=True):
            weights = self._try(self.record(manifest), functools.partial(self._weights, manifest, finite=finite))
            if weights is not None:
                self.rejected.pop(self._name(self.record(manifest)), None)
                return Snapshot(
                    manifest.group, manifest.step, weights, manifest.time, manifest.incarnation, manifest.sha256
                )
        return None

    def stuck(self) -> str:
        """What has been read for more than a second without an answer; empty if nothing."""
        now = time.monotonic()
        for path, since in list(self._reading.items()):
            if now - since > 1:
                return f"{path} has not answered for {now - since:.0f} s"
        return ""

    def _try(self, path: str, read: Callable[[], T]) -> T | None:
        """What `read` gives of the entry whose manifest has `path`; None, with the reason noted, if it fails."""
        stamps = self._stamp(path)
        try:
            found = read()
        except ValueError as error:  # not what it should be: read again when it has changed
            self._stamps[path] = stamps
            kind, reason = getattr(error, "kind", "not_a_manifest"), str(error)
        except Exception as error:  # cannot be read now: tried again every time. File systems raise kinds of their own
            if not self._lies_there(path):
                return None  # deleted since the folder was listed
            words = getattr(error, "strerror", None) or str(error)
            kind, reason = UNREADABLE, f"cannot be read: {type(error).__name__}: {words}"
        else:
            self._stamps.pop(path, None)
            return found
        self._known.pop(path, None)
        self.rejected[self._name(path)] = Rejection(kind, printable(reason))
        return None

    def _name(self, path: str) -> str:
        return printable(path.removeprefix(f"{self.root}/"))

    def _failed_before(self, path: str) -> bool:
        return path in self._stamps and self._stamps[path] == self._stamp(path)

    def _stamp(self, path: str) -> tuple[Stamp, ...]:
        """What changes with the content of a manifest or of the weights beside it."""
        found = []
        for part in (path, path.removesuffix(".json") + ".safetensors"):
            try:
                info = self.fs.info(part)
            except Exception:
                info = {}
            found.append(tuple(str(info.get(key)) for key in CHANGES_WITH_CONTENT))
        return tuple(found)

    def _lies_there(self, path: str) -> bool:
        if self.local:
            return os.path.lexists(path)
        try:
            return bool(self.fs.exists(path))
        except Exception:
            return True  # nobody knows

    def _manifest(self, path: str, *, name: str, group: int) -> Manifest:
        if not NAME.fullmatch(name):
            raise ValueError("not the name of a snapshot")
        manifest = parse(self._read(path, most=MANIFEST_BYTES), name=name, num_steps=self.num_steps)
        if manifest.run != self.run or manifest.group != group:
            raise Rejected(f"of run {manifest.run}, group {manifest.group}", kind="other_run")
        model, largest = self.models.get(group, manifest.model), self.largest.get(group, manifest.size)
        if manifest.model != model:
            raise Rejected(f"of another model, {manifest.model} instead of {model}", kind="other_model")
        if manifest.size > largest:
            raise ValueError(f"size={manifest.size}: this model's weights take {largest} bytes at most")
        return manifest

    def _weights(self, manifest: Manifest, *, finite: bool) -> Weights:
        try:
            content = self._read(self.blob(manifest), most=manifest.size, size=manifest.size)
        except FileNotFoundError as error:
            if not self._lies_there(self.record(manifest)):
                raise  # both were deleted since the folder was listed
            raise Rejected("its weights are missing", kind="damaged") from error
        with self._noted(self.blob(manifest)):
            return _verified(content, manifest, finite=finite)

    def _read(self, path: str, *, most: int, size: int | None = None) -> bytes:
        """The content of a file of at most `most` bytes; ValueError if it is none, or not of `size` bytes.

        Looks at kind and size before it opens anything: a pipe would block and a wrong size could fill the memory.
        """
        with self._noted(path):
            if self.local:
                return _read_local(path, most=most, size=size)
            info = self.fs.info(path)
            _check(info["type"] == "file", info.get("size"), most=most, size=size)
            return self.fs.cat_file(path)

    @contextlib.contextmanager
    def _noted(self, path: str) -> Iterator[None]:
        self._reading[path] = time.monotonic()
        try:
            yield
        finally:
            self._reading.pop(path, None)


def printable(text: str) -> str:
    """Words of foreign content, for a line of the log or the terminal."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    shown = "".join(character if character.isprintable() else " " for character in shown)
    return shown if len(shown) <= REASON_CHARACTERS else f"{shown[:REASON_CHARACTERS]}..."


def _read_local(path: str, *, most: int, size: int | None) -> bytes:
    with contextlib.ExitStack() as stack:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, file)
        there = os.fstat(file)
        _check(stat.S_ISREG(there.st_mode), there.st_size, most=most, size=size)
        with open(file, "rb", closefd=False) as opened:
            content = opened.read(most + 1)
    _check(True, len(content), most=most, size=size)  # it may have grown
    return content


def _check(is_file: bool, found: int | None, *, most: int, size: int | None) -> None:
    if not is_file:
        raise ValueError("not a regular file")
    if size is not None and found is not None and found != size:
        raise Rejected(f"the weights are not those of the manifest: {found} bytes instead of {size}", kind="damaged")
    if found is None or found > most:
        raise ValueError(f"too large: {found} bytes")


def _verified(content: bytes, manifest: Manifest, *, finite: bool) -> Weights:
    if len(content) != manifest.size or hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise Rejected("the weights are not those of the manifest", kind="damaged")
    try:
        weights = load(content)
        found = fingerprint(weights)
        diverged = finite and not all(bool(tensor.isfinite().all()) for tensor in weights.values())
    except Exception as error:  # SafetensorError and what torch makes of odd shapes
        raise Rejected(f"the weights cannot be read: {error}", kind="damaged") from error
    if found != manifest.model:
        raise Rejected(
            f"the weights are those of another model: {found} instead of {manifest.model}", kind="other_model"
        )
    if diverged:
        raise Rejected("the weights are not finite", kind="not_finite")
    return weights
