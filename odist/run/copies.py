"""A second place for the checkpoints of a run, which outlives its machine: a folder or URL such as s3://bucket/runs.

    <url>/<run>/env.json                                   what the run is
    <url>/<run>/checkpoints/group-0/step-0000000400/...    as in the run folder; digest.json comes last and makes it count

The name of the run is that of its configuration, so the same command finds it from any machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from odist.errors import UserError
from odist.run.digest import FILE
from odist.run.folder import STEP_FOLDER, Run, step_name
from odist.stores import OBJECT_STORES, open_store, protocols

KEPT = 2  # newest copies of a group that stay, so that groups whose copies were cut off apart have one in common


class Copy:
    """The copies of one run's checkpoints.

    url: folder that the copies of all runs share; run: whose they are
    """

    def __init__(self, url: str, run: Run) -> None:
        config = run.config
        names = (config["task"]["name"], config["algorithm"]["name"], f"s{config['seed']}", run.env["config_hash"][:16])
        self.url = f"{url.rstrip('/')}/{'-'.join(names)}"
        self.run = run
        self._fs, self._root = open_store(self.url)

    def send(self, group: int, *, step: int) -> None:
        """Copy the checkpoint of `step`, then delete older copies of checkpoints that the run has deleted."""
        folder = self.run.checkpoint_root(group) / step_name(step)
        there = f"{self._folder(group)}/{step_name(step)}"
        self._make(there)
        self._fs.pipe_file(f"{self._root}/env.json", json.dumps(self.run.env).encode())
        for path in sorted(folder.iterdir(), key=lambda path: path.name == FILE):
            self._fs.put_file(str(path), f"{there}/{path.name}")
        kept = {*self.run.checkpoint_steps(group), *self._steps(group)[-KEPT:]}
        for old in self._steps(group):
            if old < step and old not in kept:
                gone = f"{self._folder(group)}/{step_name(old)}"
                self._fs.rm_file(f"{gone}/{FILE}")
                self._fs.rm(gone, recursive=True)

    def restore(self, groups: Iterable[int], *, say: Callable[[str], None]) -> None:
        """Bring the checkpoints of `groups` back into a run folder that has none of them; nothing if there are no copies.

        Raises UserError if the place cannot be read, or holds the copies of a run on other data.
        """
        groups = list(groups)
        if any(self.run.checkpoint_steps(group) for group in groups):
            return
        try:
            env = self._env()
            found = [(group, step) for group in groups for step in self._steps(group)] if env else []
            for group, step in found:
                self._fetch(group, step)
        except UserError:
            raise
        except Exception as error:  # every back end of fsspec has kinds of its own
            raise UserError(
                f"train.checkpoint_copy: {self.url} cannot be read ({type(error).__name__}: {error}). Check the URL and what "
                "it leads to, or leave it out."
            ) from error
        if found:
            self.run.write_json("env.json", env)
            say(f"{self.run.path}: {len(found)} checkpoints brought back from {self.url}.")

    def _env(self) -> dict[str, str]:
        """What the copied run is; empty if there is none."""
        try:
            env: dict[str, str] = json.loads(self._fs.cat_file(f"{self._root}/env.json"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(
                f"train.checkpoint_copy: {self.url}/env.json is damaged: {error}. Remove {self.url}."
            ) from error
        own = self.run.env
        for key in ("config_hash", "data_fingerprint"):
            if own.get(key) is not None and env.get(key) not in (None, own[key]):
                raise UserError(
                    f"train.checkpoint_copy: {self.url} holds the copies of another run ({key} {env[key]} there, {own[key]} "
                    "here). Choose another place, or remove them."
                )
        return env

    def _fetch(self, group: int, step: int) -> None:
        final = self.run.checkpoint_root(group) / step_name(step)
        temporary = final.parent / f".{final.name}.{os.getpid()}.tmp"
        temporary.mkdir(parents=True)
        try:
            for path in self._fs.ls(f"{self._folder(group)}/{final.name}", detail=False):
                self._fs.get_file(path, str(temporary / Path(path).name))
            os.rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _folder(self, group: int) -> str:
        return f"{self._root}/checkpoints/group-{group}"

    def _make(self, folder: str) -> None:
        if not protocols(self._fs) & OBJECT_STORES:
            self._fs.makedirs(folder, exist_ok=True)

    def _steps(self, group: int) -> list[int]:
        """Steps whose copies are complete, rising."""
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            paths = [path.rstrip("/") for path in self._fs.ls(self._folder(group), detail=False)]
            matches = [(path, STEP_FOLDER.match(os.path.basename(path))) for path in paths]
            return sorted(int(m.group(1)) for path, m in matches if m and self._fs.exists(f"{path}/{FILE}"))
        return []
