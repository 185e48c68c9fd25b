"""What a group writes into a store: the folder of its snapshots, by one process and thread alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from odist.exchange.base import Weights, fingerprint
from odist.exchange.shelf import NO_STEP, Manifest, Shelf
from odist.files import write_atomically
from odist.stores import OBJECT_STORES, protocols

QUIET_PUBLICATIONS = 10  # own ones without news from a later start of the group, after which that one counts as gone


class Publisher:
    """Writes one group's snapshots and deletes those that nobody can need; what fails is raised.

    shelf: the store; group: this one; readers: those that may read its snapshots; run: id of the run
    keep: own snapshots that are kept; history: steps behind the oldest last checkpoint of this group and its readers before
    which own ones are deleted instead, 0 for `keep`; last_checkpoint: tells the step of this group's own newest
    incarnation: how often the group had been started, known once `open` was called
    superseded_by: incarnation of a later start of the group that publishes too, whose snapshots count in place of these; else
    None
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        group: int,
        readers: Sequence[int],
        run: str,
        keep: int,
        history: int,
        last_checkpoint: Callable[[], int],
    ) -> None:
        self.shelf, self.group, self.readers, self.run = shelf, group, list(readers), run
        self.fs, self.local = shelf.fs, shelf.local
        self.keep, self.history, self.last_checkpoint = keep, history, last_checkpoint
        self.incarnation = 0
        self._tag = hashlib.sha256(run.encode()).hexdigest()[:6]  # tells this run's leftovers from others'
        self.superseded_by: int | None = None
        self._newest = (NO_STEP, NO_STEP)  # age of what this process has written
        self._written: set[str] = set()  # names of the weights in it that are still there
        self._last_news = ""  # the newest weights of a later start, and own publications since they came
        self._quiet = 0

    def open(self) -> None:
        """Make this group's folder ready for writing."""
        if protocols(self.fs) & OBJECT_STORES:
            self._check_bucket()
        else:
            self.fs.makedirs(self.shelf.folder(self.group), exist_ok=True)
        self._sweep()
        own = [manifest.age for manifest in self.shelf.manifests(self.group)]
        self.incarnation = 1 + max(own, default=(NO_STEP, NO_STEP))[0]

    def _check_bucket(self) -> None:
        bucket = self.shelf.root.partition("/")[0]
        try:
            self.fs.info(bucket)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no bucket {bucket}") from error

    def write(self, step: int, weights: Weights) -> None:
        """Write weights, then the manifest by which they count."""
        folder = self.shelf.folder(self.group)
        name = f"step-{step:010d}-{self._tag}{uuid.uuid4().hex[:8]}"
        local = os.path.join(folder if self.local else tempfile.gettempdir(), f".{name}.tmp")
        blob, record = f"{folder}/{name}.safetensors", f"{folder}/{name}.json"
        if self.local:
            os.makedirs(folder, exist_ok=True)  # it may have been cleared away
        try:
            save_file(weights, local)  # four times faster than serialising to bytes
            with open(local, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            manifest = Manifest(
                group=self.group,
                step=step,
                incarnation=self.incarnation,
                blob=f"{name}.safetensors",
                sha256=digest,
                size=os.path.getsize(local),
                model=fingerprint(weights),
                dtype=",".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})),
                run=self.run,
                time=time.time(),
                checkpoint=self.last_checkpoint(),
            )
            if self.local:
                os.replace(local, blob)
            else:
                self.fs.put_file(local, blob)
            self._put_text(record, json.dumps(asdict(manifest)))
            self._newest = max(self._newest, (self.incarnation, step))
            self._written.add(manifest.blob)
        except BaseException:
            with contextlib.suppress(Exception):
                self.fs.rm_file(blob)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(local)

    def _put_text(self, path: str, text: str) -> None:
        if not self.local:
            self.fs.pipe_file(path, text.encode())  # one put: whole or not at all
            return
        write_atomically(Path(path), text)

    def delete_old(self) -> None:
        """Delete own snapshots that nobody can need, see `keep` and `history`; what fails now is tried next time."""
        with contextlib.suppress(Exception):
            own = sorted(self.shelf.manifests(self.group, anew=not self.history), key=lambda m: m.age)
            self._written &= {manifest.blob for manifest in own}
            self._compare(own[-1] if own else None)
            if self.history:
                saved = [
                    max((m.checkpoint for m in self.shelf.manifests(reader)), default=NO_STEP)
                    for reader in self.readers
                ]
                needed = min([*saved, self.last_checkpoint()]) - self.history
                old = [m for m in own if m.step < needed]
            else:
                old = own[: -self.keep]
            for manifest in old:
                for path in (self.shelf.record(manifest), self.shelf.blob(manifest)):
                    with contextlib.suppress(FileNotFoundError):
                        self.fs.rm_file(path)

    def _compare(self, newest: Manifest | None) -> None:
        """Give way to a later start of this group; outrank what is damaged or foreign, or it teaches for ever.

        newest: of the snapshots in the group's folder
        """
        self.superseded_by = None
        if newest is None or not newest.age > self._newest > (NO_STEP, NO_STEP):
            return
        self._quiet = self._quiet + 1 if newest.blob == self._last_news else 0
        self._last_news = newest.blob
        later = newest.incarnation > self.incarnation and newest.blob not in self._written
        if later and self._quiet < QUIET_PUBLICATIONS:
            self.superseded_by = newest.incarnation
        else:
            self.incarnation = max(self.incarnation, newest.incarnation + 1)

    def _sweep(self) -> None:
        """Remove what a killed writer of this group and run left: temporary files and weights without manifest.

        Behind a link that stands for the folder of the group nothing is removed.
        """
        folder = self.shelf.folder(self.group)
        if self.local and os.path.islink(folder):
            return
        names = set(self.shelf.names(self.group))
        for name in names:
            orphan = name.endswith(".safetensors") and name.replace(".safetensors", ".json") not in names
            if (name.endswith(".tmp") or orphan) and f"-{self._tag}" in name:
                with contextlib.suppress(Exception):  # gone already, or no file: then it is in nobody's way
                    self.fs.rm_file(f"{folder}/{name}")
