"""The run folder of a configuration: found again or made, refused where it belongs to another, held by one process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odist.config.identity import config_hash, differences, to_dict
from odist.config.read import load
from odist.config.schema import Config
from odist.errors import Damaged, UserError
from odist.files import try_lock
from odist.launch.check import named_files, named_runs, read_store
from odist.run import provenance
from odist.run.folder import Run
from odist.run.log import note
from odist.run.mending import mend_identity


def content_of(config: Config) -> dict[str, Any]:
    """Fingerprints of the data and runs that the configuration names by their paths, for `config_hash`."""
    content: dict[str, Any] = {}
    if config.data.path is not None:
        content["data.path"] = read_store(config.data.path).get("fingerprint")
    if config.train.init_from is not None:
        groups = Run.open(config.train.init_from).results["groups"]
        content["train.init_from"] = [group.get("average_hash", group["weight_hash"]) for group in groups]
    for key, path in named_runs(config):
        if key != "train.init_from":
            content.setdefault(key, []).append(Run.open(path).env.get("config_hash", path))
    for key, path in named_files(config):
        with open(path, "rb") as file:
            content.setdefault(key, []).append(hashlib.file_digest(file, "sha256").hexdigest())
    return content


def run_name(config: Config, digest: str) -> str:
    """Name of the folder: task, folder of prepared data, algorithm, seed and eight digits of the hash."""
    data = "" if config.data.path is None else re.sub(r"[^\w.]+", "_", Path(config.data.path).name)[:40]
    only = "" if config.launch.group is None else f"-group-{config.launch.group}"
    return f"{config.task.name}-{f'{data}-' if data else ''}{config.algorithm.name}{only}-s{config.seed}-{digest[:8]}"


def run_path(config: Config, digest: str, *, in_multirun: bool) -> Path:
    """The folder of the run of a configuration, which may not exist yet.

    Without a run.dir of its own that is a folder with the name of `run_name`. A folder with the same seed and hash
    counts too: the data may have been moved since, and older versions gave other names.
    """
    if config.run.dir is not None and not in_multirun:
        return Path(config.run.dir)
    parent = Path(config.run.dir or "runs")
    path = parent / run_name(config, digest)
    if Run.lies_at(path):
        return path
    same = sorted(parent.glob(f"{config.task.name}-*-s{config.seed}-{digest[:8]}"))
    return next((found for found in same if Run.lies_at(found)), path)


def open_or_create(config: Config, *, overrides: list[str], in_multirun: bool) -> tuple[Run, bool]:
    """The run folder of `config`, and whether it was made now.

    Raises UserError if the folder belongs to another configuration or other data, or is not a run folder.
    """
    content = content_of(config)
    digest = config_hash(config, content=content)
    path = run_path(config, digest, in_multirun=in_multirun)
    if Run.lies_at(path):
        run = Run.open(path)
        fingerprint = content.get("data.path")
        mend_identity(run, config, digest=digest, data_fingerprint=fingerprint, say=note)
        _check_same(run, config, content=content, digest=digest)
        return run, False
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists and is not a run folder. Choose another run.dir, or remove it.")
    env = provenance.environment(config_hash=digest, data_fingerprint=content.get("data.path"), run_id=config.run.id)
    return _create(path, config, overrides=overrides, env=env), True


def _create(path: Path, config: Config, *, overrides: list[str], env: dict[str, Any]) -> Run:
    """Make the folder beside its place and move it there, so that readers never see half of one."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        Run.create(temporary, to_dict(config), overrides=overrides, env=env)
        os.rename(temporary, path)
    except OSError as error:
        if (path / "config.yaml").is_file():
            raise UserError(f"{path}: another process made this run at the same moment.") from error
        raise UserError(f"{path}: cannot make the run folder: {error.strerror}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Run(path)


def _check_same(run: Run, config: Config, *, content: dict[str, Any], digest: str) -> None:
    known = load(run.config)
    if config.run.id is not None and config.run.id != run.env.get("run_id", config.run.id):
        raise UserError(
            f"run.id={config.run.id}: the run in {run.path} was begun as run.id={run.env['run_id']}. Type that, or choose "
            "another run.dir."
        )
    if run.env.get("config_hash") == digest:
        return
    changed = differences(known, config)
    if not changed:
        changed = [f"{key}: other runs lie at the same place" for key in content if key != "data.path"]
    if "data.path" in content and run.env.get("data_fingerprint") != content["data.path"]:
        changed.append(f"data: fingerprint {run.env.get('data_fingerprint')} -> {content['data.path']}")
    if changed:
        shown = "\n".join(f"  {line}" for line in changed[:20])
        more = f"\n  and {len(changed) - 20} more" if len(changed) > 20 else ""
        raise UserError(
            f"{run.path} holds a run of another configuration (saved run -> this command):\n{shown}{more}\n"
            "Choose another run.dir, or leave run.dir out: every configuration has its own folder."
        )


def trained_by(run: Run) -> int | None:
    """Id of the process of this machine that trains the run, None if there is none."""
    try:
        status = run.status
    except Damaged:
        return None
    pid = status.get("pid")
    if status.get("state") not in ("created", "running") or not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    if status.get("host", platform.node()) != platform.node():
        return None
    began = provenance.process_start(pid)
    if began is None or status.get("pid_started", began) != began:
        return None  # gone, or its number now belongs to another process
    return pid


@contextlib.contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the run for this process. Raises UserError if another one trains it."""
    folder = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        busy = not try_lock(folder)
        pid = trained_by(run)  # the only protection on file systems without locks
        if (busy or pid is not None) and pid != os.getpid():
            by = f"process {pid}" if pid is not None else "another process"
            raise UserError(f"{run.path} is being trained by {by}. Wait for it, or stop it first.")
        yield
    finally:
        os.close(folder)
