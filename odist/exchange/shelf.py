"""What lies in a store, and what of it is believed.

Anything may have reached the folder: torn, foreign, damaged. Every manifest and every blob is checked before
it is used; what fails is remembered with the reason and not read again. Writing is left to store.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from safetensors.torch import load

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

    @property
    def age(self) -> tuple[int, int]:
        """Sorts the snapshots of a group; a restarted group's are newer, whatever their step."""
        return self.incarnation, self.step


def parse(content: bytes, *, name: str) -> Manifest:
    """Read a manifest that lies under `name`; ValueError says what is wrong with it."""
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
    return Manifest(**values)


class Shelf:
    """The snapshots of all groups in one store, for reading.

    fs: fsspec file system; root: path in it; run: whose snapshots are believed
    model: fingerprint that weights must have, None for any
    """

    def __init__(self, fs: Any, root: str, *, run: str, model: str | None = None) -> None:
        self.fs, self.root, self.run, self.model = fs, root, run, model
        self.rejected: dict[str, str] = {}  # manifest path: why
        self._known: dict[str, Manifest] = {}

    def folder(self, group: int) -> str:
        return f"{self.root}/group-{group}"

    def blob(self, manifest: Manifest) -> str:
        return f"{self.folder(manifest.group)}/{manifest.blob}"

    def record(self, manifest: Manifest) -> str:
        return self.blob(manifest).removesuffix(".safetensors") + ".json"

    def manifests(self, group: int) -> list[Manifest]:
        """The manifests of a group that can be read and belong to this run."""
        folder = self.folder(group)
        self.fs.invalidate_cache(folder)
        try:
            names = sorted(os.path.basename(path) for path in self.fs.ls(folder, detail=False))
        except FileNotFoundError:
            return []
        there = {}
        for name in names:
            path = f"{folder}/{name}"
            if not name.endswith(".json") or name.startswith(".") or path in self.rejected:
                continue
            try:
                there[path] = self._known.get(path) or self._read(path, name=name, group=group)
            except FileNotFoundError:
                continue  # deleted between the listing and now
            except ValueError as error:
                self.rejected[path] = str(error)
        gone = [path for path in self._known if path.startswith(f"{folder}/") and path not in there]
        for path in gone:
            self._known.pop(path, None)
        self._known.update(there)
        return list(there.values())

    def _read(self, path: str, *, name: str, group: int) -> Manifest:
        manifest = parse(self.fs.cat_file(path), name=name)
        if manifest.run != self.run or manifest.group != group:
            raise ValueError(f"of run {manifest.run}, group {manifest.group}")
        if self.model is not None and manifest.model != self.model:
            raise ValueError(f"of another model, {manifest.model} instead of {self.model}")
        return manifest

    def newest(self, manifests: Sequence[Manifest], *, finite: bool = False) -> Snapshot | None:
        """The first of the manifests, newest first, whose blob verifies; `finite` refuses a diverged peer's."""
        for manifest in sorted(manifests, key=lambda m: m.age, reverse=True):
            try:
                content = self.fs.cat_file(self.blob(manifest))
            except FileNotFoundError:
                continue
            try:
                weights = _verified(content, manifest, finite=finite)
            except ValueError as error:
                self.rejected[self.record(manifest)] = str(error)
                continue
            return Snapshot(
                manifest.group, manifest.step, weights, manifest.time, manifest.incarnation, manifest.sha256
            )
        return None


def _verified(content: bytes, manifest: Manifest, *, finite: bool) -> Weights:
    if len(content) != manifest.size or hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise ValueError("the weights are not those of the manifest")
    try:
        weights = load(content)
    except Exception as error:  # SafetensorError and what torch makes of odd shapes
        raise ValueError(f"the weights cannot be read: {error}") from error
    if finite and not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ValueError("the weights are not finite")
    return weights
