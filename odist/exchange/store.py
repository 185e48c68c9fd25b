"""The exchange through a store: a folder, or anything else that fsspec can open.

    <root>/group-0/step-0000000400-<nonce>.safetensors    weights, immutable
    <root>/group-0/step-0000000400-<nonce>.json           manifest, written last: the commit record

There is no pointer to the newest, so none can tear: readers list manifests, verify, and remember what
they rejected and why (shelf.py). All input and output happens in threads; a training step pays for
one copy. Teachers decide what to ask for and how long to wait.
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
from dataclasses import asdict
from typing import Any

import fsspec
from safetensors.torch import save_file

from odist.errors import OdistError
from odist.exchange.base import Snapshot, Weights, fingerprint
from odist.exchange.shelf import NO_STEP, Manifest, Shelf


class StoreExchange:
    """One group's end of an exchange through a store.

    group, peers: this group and the others; url: root of the store; run: id of the run, so that
    snapshots of another run in the same place are rejected
    model: fingerprint that a peer's weights must have; None takes any
    keep: own snapshots kept under `freshest`; history: makes it lock-step, where everything that was
    published can be read some time, and nothing is deleted that a restarted peer may still ask for,
    `history` steps behind the oldest of all groups' last checkpoints
    poll: seconds between two looks for fresh snapshots; None looks only when asked (lock-step)
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
        model: str | None = None,
        keep: int = 3,
        history: int = 0,
        poll: float | None = None,
        last_checkpoint: Callable[[], int] = lambda: NO_STEP,
        read_only: bool = False,
    ) -> None:
        self.group, self.peers, self.run = group, list(peers), run
        self.keep, self.history = keep, history
        self.last_checkpoint = last_checkpoint
        self.publish_failed = 0
        self.problems = 0  # looks that ended in an error
        self.last_problem = ""
        self.fs, root = fsspec.core.url_to_fs(url)
        self.shelf = Shelf(self.fs, root, run=run, model=model)
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self._tag = hashlib.sha256(run.encode()).hexdigest()[:6]  # tells this run's leftovers from others'
        self._lock = threading.Lock()
        self._fresh: dict[int, Snapshot] = {}
        self._waiting: dict[int, Weights] = {}  # published, not yet in the store
        self._pending: Future[None] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._closed = threading.Event()
        self.read_only = read_only
        self.incarnation = 0
        if not read_only:
            self.fs.makedirs(self.shelf.folder(group), exist_ok=True)
            self._sweep()
            self.incarnation = 1 + max((m.incarnation for m in self.shelf.manifests(group)), default=NO_STEP)
        if poll is not None:
            threading.Thread(target=self._look, args=(poll,), name="poll", daemon=True).start()

    def publish(self, step: int, weights: Weights) -> None:
        """Copy the weights now and write them in the background; a failure is counted, never raised.

        Of snapshots that a slow store has not taken yet only the newest is kept; under lock-step all are,
        and at most one waits beside the one being written.
        """
        if self.read_only:
            return
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
        if self.history and self._pending is not None:
            self._pending.result()
        with self._lock:
            if not self.history:
                self._waiting.clear()
            self._waiting[step] = copies
        self._pending = self._writer.submit(self._write_waiting)

    def flush(self) -> None:
        """Under lock-step, return when peers can read everything published; OdistError if they cannot.

        A checkpoint beyond a snapshot that no peer can ever read would block them for good.
        """
        if not self.history or self.read_only or not self._waiting:
            return
        if self._pending is not None:
            self._pending.result()
        if self._waiting:
            self._writer.submit(self._write_waiting).result()
        if self._waiting:
            raise OdistError(
                f"{self.shelf.folder(self.group)}: the weights of step {min(self._waiting)} cannot be written for the peers: "
                f"{self.last_problem}. Make room or repair the store; the same command continues."
            )

    def _write_waiting(self) -> None:
        with self._lock:
            waiting = sorted(self._waiting.items())
        for step, weights in waiting:
            written = self._write(step, weights)
            if written or not self.history:
                with self._lock:
                    self._waiting.pop(step, None)

    def _write(self, step: int, weights: Weights) -> bool:
        for _ in range(2):
            try:
                self._write_once(step, weights)
            except Exception as error:  # safetensors and every back end of fsspec have kinds of their own
                self.last_problem = f"{type(error).__name__}: {error}"
                self._delete_old()  # a full disk: make room, then try once more
            else:
                self._delete_old()
                return True
        self.publish_failed += 1
        return False

    def _write_once(self, step: int, weights: Weights) -> None:
        folder = self.shelf.folder(self.group)
        name = f"step-{step:010d}-{self._tag}{uuid.uuid4().hex[:8]}"
        local = os.path.join(folder if self.local else tempfile.gettempdir(), f".{name}.tmp")
        blob, record = f"{folder}/{name}.safetensors", f"{folder}/{name}.json"
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
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)

    def fetch(
        self, peer: int, *, step: int | None = None, newer_than: tuple[int, int] | None = None
    ) -> Snapshot | None:
        """See `Exchange`; by step it reads the store, by age it returns what the background found."""
        if step is None:
            with self._lock:
                fresh = self._fresh.get(peer)
            return fresh if fresh is not None and (newer_than is None or fresh.age > newer_than) else None
        try:
            return self.shelf.newest([m for m in self.shelf.manifests(peer) if m.step == step])
        except Exception as error:
            self._note(error)
            return None

    def _note(self, error: Exception) -> None:
        """A store that is away now makes the teacher staler or the wait longer, and nothing else."""
        self.problems += 1
        self.last_problem = f"{type(error).__name__}: {error}"

    def _look(self, poll: float) -> None:
        while not self._closed.wait(poll):
            for peer in self.peers:
                try:
                    self._look_once(peer)
                except Exception as error:
                    self._note(error)

    def _look_once(self, peer: int) -> None:
        with self._lock:
            held = self._fresh.get(peer)
        newer = [m for m in self.shelf.manifests(peer) if held is None or m.age > held.age]
        snapshot = self.shelf.newest(newer, finite=True)
        if snapshot is not None:
            with self._lock:
                self._fresh[peer] = snapshot

    def _delete_old(self) -> None:
        """Delete own snapshots that nobody can need, see `keep` and `history`; what fails now is tried next time."""
        with contextlib.suppress(Exception):
            own = sorted(self.shelf.manifests(self.group), key=lambda m: m.age)
            if self.history:
                saved = [
                    max((m.checkpoint for m in self.shelf.manifests(peer)), default=NO_STEP) for peer in self.peers
                ]
                needed = min([*saved, self.last_checkpoint()]) - self.history
                old = [m for m in own if m.step < needed]
            else:
                old = own[: -self.keep]
            for manifest in old:
                for path in (self.shelf.record(manifest), self.shelf.blob(manifest)):
                    with contextlib.suppress(FileNotFoundError):
                        self.fs.rm_file(path)

    def _sweep(self) -> None:
        """Remove what a killed writer of this group and run left: temporary files and weights without manifest."""
        names = {os.path.basename(path) for path in self.fs.ls(self.shelf.folder(self.group), detail=False)}
        for name in names:
            orphan = name.endswith(".safetensors") and name.replace(".safetensors", ".json") not in names
            if (name.endswith(".tmp") or orphan) and f"-{self._tag}" in name:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(f"{self.shelf.folder(self.group)}/{name}")

    def log(self) -> dict[str, Any]:
        """Failures so far, for the log."""
        counts = {
            "exchange_rejected": len(self.shelf.rejected),
            "exchange_problems": self.problems,
            "publish_failed": self.publish_failed,
        }
        found: dict[str, Any] = {name: count for name, count in counts.items() if count}
        reasons = [*list(self.shelf.rejected.values())[-1:], self.last_problem]
        return {**found, "exchange_reason": "; ".join(filter(None, reasons))} if found else {}

    def close(self) -> None:
        """Finish what is being written and stop looking."""
        self._closed.set()
        self._writer.shutdown(wait=True)
