"""The exchange through a store: a folder, or anything else that fsspec can open.

    <root>/group-0/step-0000000400-<nonce>.safetensors    weights, immutable
    <root>/group-0/step-0000000400-<nonce>.json           manifest, written last: the commit record

There is no pointer to the newest, so none can tear: readers list manifests, verify, and remember what
they rejected and why. All input and output happens in threads; a training step pays for one copy.
Teachers decide what to ask for and how long to wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
from safetensors.torch import load, save_file

from odist.exchange.base import Snapshot, Weights

NO_STEP = -1


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


class StoreExchange:
    """One group's end of an exchange through a store.

    group, peers: this group and the others; url: root of the store; run: id of the run, so that
    snapshots of another run in the same place are rejected
    keep: own snapshots kept under `freshest`; lockstep: nothing is deleted that a restarted peer may
    still ask for, `history` steps behind its last checkpoint
    poll: seconds between two looks for fresh snapshots; None looks only when asked (lockstep)
    read_only: publishes nothing (a group's processes beside its writer)
    last_checkpoint: tells the step of this group's own newest checkpoint
    """

    durable = True

    def __init__(
        self,
        group: int,
        *,
        peers: Sequence[int],
        url: str,
        run: str,
        keep: int = 3,
        history: int = 0,
        poll: float | None = None,
        last_checkpoint: Callable[[], int] = lambda: NO_STEP,
        read_only: bool = False,
    ) -> None:
        self.group, self.peers, self.run = group, list(peers), run
        self.keep, self.history = keep, history
        self.last_checkpoint = last_checkpoint
        self.rejected: dict[str, str] = {}  # manifest path: why
        self.publish_failed = 0
        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self._manifests: dict[str, Manifest] = {}
        self._lock = threading.Lock()
        self._fresh: dict[int, Snapshot] = {}
        self._pending: Future[None] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._closed = threading.Event()
        self.read_only = read_only
        self.incarnation = 0
        if not read_only:
            self.fs.makedirs(self._folder(group), exist_ok=True)
            self._sweep()
            self.incarnation = 1 + max((m.incarnation for m in self._list(group)), default=NO_STEP)
        if poll is not None:
            threading.Thread(target=self._look, args=(poll,), name="poll", daemon=True).start()

    def _folder(self, group: int) -> str:
        return f"{self.root}/group-{group}"

    def publish(self, step: int, weights: Weights) -> None:
        """Copy the weights now and write them in the background; a failure is counted, never raised."""
        if self.read_only:
            return
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
        if self._pending is not None:
            self._pending.result()  # at most one copy waits in memory
        self._pending = self._writer.submit(self._write, step, copies)

    def _write(self, step: int, weights: Weights) -> None:
        for attempt in range(2):
            try:
                self._write_once(step, weights)
                self._delete_old()
                return
            except OSError:
                if attempt == 1:
                    self.publish_failed += 1
                    return
                with contextlib.suppress(OSError):  # a full disk: make room, then try once more
                    self._delete_old()

    def _write_once(self, step: int, weights: Weights) -> None:
        name = f"step-{step:010d}-{uuid.uuid4().hex[:8]}"
        temporary = f".{name}.tmp"
        local = (
            f"{self._folder(self.group)}/{temporary}" if self.local else os.path.join(tempfile.gettempdir(), temporary)
        )
        try:
            save_file(weights, local)  # four times faster than serialising to bytes
            with open(local, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            size = os.path.getsize(local)
            blob = f"{self._folder(self.group)}/{name}.safetensors"
            if self.local:
                os.replace(local, blob)
            else:
                self.fs.put_file(local, blob)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(local)
        manifest = Manifest(
            group=self.group,
            step=step,
            incarnation=self.incarnation,
            blob=f"{name}.safetensors",
            sha256=digest,
            size=size,
            model=fingerprint(weights),
            dtype=",".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})),
            run=self.run,
            time=time.time(),
            checkpoint=self.last_checkpoint(),
        )
        self._put_text(f"{self._folder(self.group)}/{name}.json", json.dumps(asdict(manifest)))

    def _put_text(self, path: str, text: str) -> None:
        if not self.local:
            self.fs.pipe_file(path, text.encode())  # one put: whole or not at all
            return
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name}.tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def fetch(self, peer: int, *, step: int | None = None, newer_than: int | None = None) -> Snapshot | None:
        """See `Exchange`; by step it reads the store, by age it returns what the background found."""
        if step is not None:
            return self._newest(peer, [m for m in self._list(peer) if m.step == step])
        with self._lock:
            fresh = self._fresh.get(peer)
        return fresh if fresh is not None and (newer_than is None or fresh.step > newer_than) else None

    def _look(self, poll: float) -> None:
        while not self._closed.wait(poll):
            for peer in self.peers:
                with contextlib.suppress(OSError):  # a store that is away now: the teacher grows staler
                    self._look_once(peer)

    def _look_once(self, peer: int) -> None:
        with self._lock:
            held = self._fresh.get(peer)
        newer = [m for m in self._list(peer) if held is None or (m.incarnation, m.step) > (held.incarnation, held.step)]
        snapshot = self._newest(peer, newer)
        if snapshot is not None:
            with self._lock:
                self._fresh[peer] = snapshot

    def _newest(self, peer: int, manifests: Sequence[Manifest]) -> Snapshot | None:
        """The first of the manifests, newest first, whose blob verifies."""
        for manifest in sorted(manifests, key=lambda m: (m.incarnation, m.step), reverse=True):
            blob = f"{self._folder(peer)}/{manifest.blob}"
            try:
                content = self.fs.cat_file(blob)
            except FileNotFoundError:
                continue  # deleted between the listing and now
            if len(content) != manifest.size or hashlib.sha256(content).hexdigest() != manifest.sha256:
                self.rejected[blob] = "the weights are not those of the manifest"
                continue
            return Snapshot(peer, manifest.step, load(content), manifest.time, manifest.incarnation, manifest.sha256)
        return None

    def _list(self, group: int) -> list[Manifest]:
        """The manifests of a group that can be read and belong to this run; others are remembered."""
        folder = self._folder(group)
        self.fs.invalidate_cache(folder)
        try:
            paths = [path for path in self.fs.ls(folder, detail=False) if path.endswith(".json")]
        except FileNotFoundError:
            return []
        there = []
        for path in paths:
            if path in self.rejected or os.path.basename(path).startswith("."):
                continue
            if path not in self._manifests:
                try:
                    manifest = Manifest(**json.loads(self.fs.cat_file(path)))
                except FileNotFoundError:
                    continue
                except (ValueError, TypeError) as error:
                    self.rejected[path] = f"not a manifest: {error}"
                    continue
                if manifest.run != self.run or manifest.group != group:
                    self.rejected[path] = f"of run {manifest.run}, group {manifest.group}"
                    continue
                self._manifests[path] = manifest
            there.append(self._manifests[path])
        return there

    def _delete_old(self) -> None:
        """Delete own snapshots that nobody can need: see `keep` and `history`; sweep only this group's files."""
        own = sorted(self._list(self.group), key=lambda m: (m.incarnation, m.step))
        if self.history:
            saved = [max((m.checkpoint for m in self._list(peer)), default=NO_STEP) for peer in self.peers]
            needed = min(saved, default=NO_STEP) - self.history
            old = [m for m in own if m.step < needed]
        else:
            old = own[: -self.keep]
        for manifest in old:
            for name in (manifest.blob.replace(".safetensors", ".json"), manifest.blob):
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(f"{self._folder(self.group)}/{name}")

    def _sweep(self) -> None:
        """Remove what a killed writer of this group left: temporary files and weights without manifest."""
        names = {os.path.basename(path) for path in self.fs.ls(self._folder(self.group), detail=False)}
        for name in names:
            orphan = name.endswith(".safetensors") and name.replace(".safetensors", ".json") not in names
            if name.endswith(".tmp") or orphan:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(f"{self._folder(self.group)}/{name}")

    def log(self) -> dict[str, Any]:
        """Failures so far, for the log."""
        counts = {"exchange_rejected": len(self.rejected), "publish_failed": self.publish_failed}
        return {name: count for name, count in counts.items() if count}

    def close(self) -> None:
        """Finish what is being written and stop looking."""
        self._closed.set()
        self._writer.shutdown(wait=True)


def fingerprint(weights: Weights) -> str:
    """Names the architecture: hash of the names, shapes and types of all tensors."""
    shapes = sorted((name, list(tensor.shape), str(tensor.dtype)) for name, tensor in weights.items())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
