"""From a finished configuration to a run folder to processes.

Makes or reopens the folder, refuses what another configuration, another process or another folder's content
forbids, and trains in this process (`launch=inline`) or in others (processes.py). Knows no task and no weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from odist.config.read import load
from odist.config.schema import Config, config_hash, differences, to_dict
from odist.errors import CannotWrite, Damaged, Diverged, Interrupted, LostWorkers, OdistError, UserError
from odist.files import write_atomically
from odist.launch.check import read_store, validate
from odist.run import provenance, sinks
from odist.run.damage import naming, writing
from odist.run.folder import Run
from odist.run.mending import mend_identity, mend_state
from odist.run.places import local_folder

STOPPING = "stopping after this step (Ctrl-C again: at once, unsaved)"


class Stop:
    """True once the run shall save and end: a signal came, or `file` exists (one for all jobs of a multirun)."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.requested = False
        self.owner = os.getpid()
        self._first = 0.0
        self._to_say = False

    def __call__(self) -> bool:
        if self._to_say:
            self._to_say = False
            print(STOPPING, file=sys.stderr, flush=True)
        return self.requested or (self.file is not None and self.file.exists())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "requested": False}

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Take SIGINT and SIGTERM as requests while inside; only the main thread can."""
        try:
            before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # a thread of some launcher; the main thread listens and leaves the file
            before = {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # A terminal and a parent process may both send one, so a second counts only later, and only Ctrl-C.
        if self.requested and number == signal.SIGINT and time.monotonic() - self._first > 1.0:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
            with contextlib.suppress(OSError):
                if os.getpid() == self.owner and sys.stderr is sys.__stderr__:
                    os.write(2, f"\n{STOPPING}\n".encode())
                else:  # bars are on the screen: above them, by whoever asks next
                    self._to_say = os.getpid() == self.owner
                if self.file is not None:
                    self.file.parent.mkdir(parents=True, exist_ok=True)
                    self.file.touch()
        if os.getpid() == self.owner and "submitit" in sys.modules:
            raise KeyboardInterrupt  # submitit waits for its jobs only so, and forwards the signal to them


def prepare_config(content: dict[str, Any]) -> Config:
    """The typed, checked configuration, with its places as absolute paths."""
    config = load(content)
    if config.run.dir is not None:
        config.run.dir = str(local_folder(config.run.dir, key="run.dir"))
    if config.data.path is not None:
        config.data.path = os.path.abspath(os.path.expanduser(config.data.path))
    if config.exchange.url is not None and "://" not in config.exchange.url:
        config.exchange.url = os.path.abspath(os.path.expanduser(config.exchange.url))
    config.algorithm.teachers = [os.path.abspath(os.path.expanduser(path)) for path in config.algorithm.teachers]
    if config.train.init_from is not None:
        config.train.init_from = os.path.abspath(os.path.expanduser(config.train.init_from))
    validate(config)
    return config


def content_of(config: Config) -> dict[str, Any]:
    """What lies at the places that the configuration names, for `config_hash`."""
    content: dict[str, Any] = {}
    if config.data.path is not None:
        content["data.path"] = read_store(config.data.path).get("fingerprint")
    if config.algorithm.teachers:
        content["algorithm.teachers"] = [
            Run.open(teacher).env.get("config_hash", teacher) for teacher in config.algorithm.teachers
        ]
    if config.train.init_from is not None:
        groups = Run.open(config.train.init_from).results["groups"]
        content["train.init_from"] = [group["weight_hash"] for group in groups]
    return content


def run_name(config: Config, digest: str) -> str:
    """Name of the folder: task, folder of prepared data, algorithm, seed and eight digits of the hash."""
    data = "" if config.data.path is None else re.sub(r"[^\w.]+", "_", Path(config.data.path).name)[:40]
    return f"{config.task.name}-{f'{data}-' if data else ''}{config.algorithm.name}-s{config.seed}-{digest[:8]}"


def run_path(config: Config, digest: str, *, in_multirun: bool) -> Path:
    """Where the run of a configuration lies or shall lie.

    Without a run.dir of its own that is a folder by the name of `run_name`; a folder of the same seed and hash counts too,
    for the data may have been moved since, and older versions gave other names.
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

    UserError if the folder belongs to another configuration, to other data, or is no run folder.
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
    env = provenance.environment(config_hash=digest, data_fingerprint=content.get("data.path"))
    return _create(path, config, overrides=overrides, env=env), True


def note(text: str) -> None:
    """Tell the user what is no error."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def _create(path: Path, config: Config, *, overrides: list[str], env: dict[str, Any]) -> Run:
    """Make the folder beside its place and move it there whole, so that no half of one is ever seen."""
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
    if run.env.get("config_hash") == digest:
        return
    changed = differences(known, config)
    if "algorithm.teachers" in content:
        changed = changed or ["algorithm.teachers: other runs lie at the same paths"]
    if "train.init_from" in content:
        changed = changed or ["train.init_from: other weights lie at the same path"]
    if "data.path" in content and run.env.get("data_fingerprint") != content["data.path"]:
        changed.append(f"data: fingerprint {run.env.get('data_fingerprint')} -> {content['data.path']}")
    if changed:
        shown = "\n".join(f"  {line}" for line in changed[:20])
        more = f"\n  and {len(changed) - 20} more" if len(changed) > 20 else ""
        raise UserError(f"{run.path} holds a run of another configuration (saved run -> this command):\n{shown}{more}\n"
                        "Choose another run.dir, or leave run.dir out: every configuration has its own folder.")  # fmt: skip


def trained_by(run: Run) -> int | None:
    """Id of the living process of this machine that trains the run, None if there is none."""
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
    """Hold the run for this process; UserError if another one trains it."""
    folder = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy = False
        except BlockingIOError:
            busy = True
        except OSError:
            busy = False  # no locks on this file system: the process id has to do
        pid = trained_by(run)
        if (busy or pid is not None) and pid != os.getpid():
            by = f"process {pid}" if pid is not None else "another process"
            raise UserError(f"{run.path} is being trained by {by}. Wait for it, or stop it first.")
        yield
    finally:
        os.close(folder)


def train(config: Config, *, overrides: list[str], stop: Stop, in_multirun: bool = False) -> Run:
    """Start or continue the run of `config` and return it finished.

    A finished run is returned at once. Raises Interrupted (saved), Diverged, UserError.
    """
    if stop():
        raise Interrupted("Not started: the command was stopped before. The same command starts it.")
    run, created = open_or_create(config, overrides=overrides, in_multirun=in_multirun)
    if _whole(run):
        print(f"{run.path}: finished already, nothing to train.")
        return run
    with claimed(run):
        mend_state(run, say=note)
        if run.status.get("state") == "diverged":
            raise Diverged(f"{run.path}: diverged at step {run.status.get('step')}; the same command gives the same bits. "
                           "Change optim.lr or optim.clip_norm, or remove the folder.")  # fmt: skip
        if created:
            print(f"{run.path}: starting.")
        else:
            print(f"{run.path}: continuing after step {run.status.get('step', 0)}.")
            _record_continuation(run, config)
        pid = os.getpid()
        run.set_status(pid=pid, pid_started=provenance.process_start(pid), host=platform.node())
        try:
            with naming(run.path), sinks.forwarding(run, config.run.sinks):
                _start(run, config, stop)
        except UserError:
            if created and not any(run.checkpoint_root(group).exists() for group in range(config.num_groups)):
                shutil.rmtree(run.path)  # refused before the first step: as if never started
            raise
        except CannotWrite as error:
            _record_end(run, error)
            raise
        except (Interrupted, Diverged, LostWorkers) as error:
            _record_end(run, error)
            raise type(error)(f"{run.path}: {error}") from error
        except BaseException as error:
            _record_end(run, error)
            error.add_note(str(run.path))  # for the list of failed jobs of a multirun
            raise
    return run


def _whole(run: Run) -> bool:
    """Whether nothing is left to do for a run."""
    try:
        run.check_results()
        return run.finished
    except Damaged:
        return False


def _start(run: Run, config: Config, stop: Stop) -> None:
    from odist.launch import worker

    if config.launch.name == "inline":
        worker.main(run, stop=stop)
        return
    from odist.launch import processes, results

    try:
        processes.train(run, config, stop=stop)
    except OdistError as error:
        if error.lost_groups:
            results.combine(run, missing=error.lost_groups)
        raise
    results.combine(run)


def _record_continuation(run: Run, config: Config) -> None:
    """Take over the keys that may change, and note a package source other than the one that began the run."""
    import yaml

    with writing(run.path / "config.yaml"):
        write_atomically(run.path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    env = run.env
    source = provenance.source_hash()
    sources = [env.get("source_hash"), *env.get("continued_by", [])]
    if source not in sources:
        print(f"{run.path}: note: another version of odist's source began this run; env.json records both.")
        run.write_json("env.json", {**env, "continued_by": [*env.get("continued_by", []), source]})


def _record_end(run: Run, error: BaseException) -> None:
    """Leave no `running` behind where the worker could not say how it ended."""
    states = {Interrupted: "interrupted", KeyboardInterrupt: "interrupted", Diverged: "diverged"}
    state = states.get(type(error), "failed")
    if isinstance(error, LostWorkers) and error.lost_groups:
        state = "incomplete"  # with results of the groups that were not lost
    # What ended the run is to be told, not that its end cannot be written.
    with contextlib.suppress(Damaged, CannotWrite):
        if run.status.get("state") in ("created", "running"):
            run.set_status(state=state, error=f"{type(error).__name__}: {error}"[:2000])
