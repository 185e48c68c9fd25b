"""Trains the run of a finished configuration: in this process (`launch=inline`) or in others (`launch=local`)."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from typing import TYPE_CHECKING, Any

from odist.config.identity import to_dict
from odist.config.read import described, load
from odist.config.schema import Config
from odist.engine.devices import settled
from odist.errors import CannotWrite, Damaged, Diverged, Interrupted, LostWorkers, OdistError, UserError
from odist.files import write_atomically
from odist.launch.check import validate
from odist.launch.opening import claimed, open_or_create
from odist.launch.ranks import Ranks, lay_out
from odist.launch.stop import Stop
from odist.run import provenance, sinks
from odist.run.copies import Copy
from odist.run.damage import naming, writing
from odist.run.folder import Run
from odist.run.log import note
from odist.run.mending import mend_state
from odist.run.places import local_folder

if TYPE_CHECKING:
    from odist.launch.job import Job


def prepare_config(content: dict[str, Any], *, ranks: Ranks | None = None) -> Config:
    """The typed, checked configuration, with its places as absolute paths.

    ranks: with launch=env, of the job, which is laid out for it
    """
    config = settled(load(content))
    if config.launch.name == "env":
        lay_out(config, ranks or Ranks())
    if config.run.dir is not None:
        config.run.dir = str(local_folder(config.run.dir, key="run.dir"))
    for name, value, key in described(config):
        if key.place in ("path", "url", "run") and value is not None:
            node, _, last = name.rpartition(".")
            place = [_absolute(one) for one in value] if isinstance(value, list) else _absolute(value)
            setattr(getattr(config, node), last, place)
    validate(config)
    return config


def _absolute(place: str) -> str:
    """The absolute path of a place, unless it is a URL."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def train(
    config: Config, *, overrides: list[str], stop: Stop, in_multirun: bool = False, job: Job | None = None
) -> Run:
    """Start or continue the run of `config` and return it finished.

    job: with launch=env, the job whose rank 0 this process is
    A finished run is returned at once. Raises Interrupted (saved), Diverged, UserError.
    """
    if stop():
        raise Interrupted("Not started: the command was stopped before. The same command starts it.")
    run, created = open_or_create(config, overrides=overrides, in_multirun=in_multirun)
    if _whole(run):
        print(f"{run.path}: finished already, nothing to train.")
        return run
    with claimed(run):
        _restore(run, config, created=created)
        mend_state(run, say=note)
        if run.status.get("state") == "diverged":
            raise Diverged(
                f"{run.path}: diverged at step {run.status.get('step')}; the same command gives the same bits. "
                "Change optim.lr or optim.clip_norm, or remove the folder."
            )
        if created:
            print(f"{run.path}: starting.")
        else:
            print(f"{run.path}: continuing after step {run.status.get('step', 0)}.")
            _record_continuation(run, config)
        pid = os.getpid()
        run.set_status(pid=pid, pid_started=provenance.process_start(pid), host=platform.node())
        try:
            with naming(run.path), sinks.forwarding(run, config.run.sinks):
                _start(run, config, stop, job)
        except UserError:
            if created and not any(run.checkpoint_root(group).exists() for group in config.trained_groups):
                shutil.rmtree(run.path)  # refused before the first step: as if never started
            raise
        except CannotWrite as error:
            _record_end(run, error)
            raise
        except (Interrupted, Diverged, LostWorkers) as error:
            _record_end(run, error)
            located = type(error)(f"{run.path}: {error}")
            located.said = error.said
            raise located from error
        except BaseException as error:
            _record_end(run, error)
            error.add_note(str(run.path))  # for the list of failed jobs of a multirun
            raise
    return run


def _restore(run: Run, config: Config, *, created: bool) -> None:
    """Bring checkpoints back from `train.checkpoint_copy` into a run folder without any."""
    if config.train.checkpoint_copy is None:
        return
    try:
        Copy(config.train.checkpoint_copy, run).restore(config.trained_groups, say=note)
    except UserError:
        if created:
            shutil.rmtree(run.path)  # as if never started
        raise


def _whole(run: Run) -> bool:
    """Whether nothing is left to do for a run."""
    try:
        run.check_results()
        return run.finished
    except Damaged:
        return False


def _start(run: Run, config: Config, stop: Stop, job: Job | None) -> None:
    from odist.launch import results, worker

    if config.launch.name == "inline":
        worker.main(run, stop=stop)
        return
    try:
        if job is not None:
            from odist.launch import in_place

            in_place.lead(run, config, job, stop=stop)
        else:
            from odist.launch import processes

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
    """Replace the state `running` of a run whose worker could not say how it ended."""
    states = {Interrupted: "interrupted", KeyboardInterrupt: "interrupted", Diverged: "diverged"}
    state = states.get(type(error), "failed")
    if isinstance(error, LostWorkers) and error.lost_groups:
        state = "incomplete"  # with results of the groups that were not lost
    # The user should see what ended the run, not that its end cannot be written.
    with contextlib.suppress(Damaged, CannotWrite):
        if run.status.get("state") in ("created", "running"):
            run.set_status(state=state, error=f"{type(error).__name__}: {error}"[:2000])
