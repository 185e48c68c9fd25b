"""`odist train`: Hydra composes, this starts the runs.

Hydra's own command line does the work (multirun, sweepers, launchers, --cfg, --config-dir); its job starts or
continues one run by `odist.launch`. Worker code does not import Hydra.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from odist.cli.explain import explain
from odist.cli.printing import main_metric, result_line, untaught
from odist.cli.sweep import Record, Sweep, list_jobs, raise_failures
from odist.cli.train_arguments import Arguments, is_sweep, read_arguments
from odist.config.folder import config_folder, config_folders
from odist.config.read import register
from odist.errors import Interrupted, LostWorkers, OdistError, UserError
from odist.launch import launch
from odist.launch.leading import Leading
from odist.launch.ranks import Ranks, find_ranks
from odist.launch.remarks import remarks
from odist.launch.stop import Stop
from odist.run.log import note
from odist.run.places import local_folder

SWEEP_VARIABLE = "ODIST_SWEEP_DIR"  # read by conf/config.yaml; Hydra and its plug-ins write there


class Job:
    """What Hydra calls for every combination; goes to other processes with the joblib and submitit launchers."""

    def __init__(self, sweep: Sweep, stop: Stop, leading: Leading | None = None) -> None:
        self.sweep = sweep
        self.leading = leading  # of the processes that an engine has started
        self.stop = stop
        self.failure: BaseException | None = None  # of a single run

    def __call__(self, composed: Any) -> float | None:
        """Start or continue the run of a composed configuration; its main metric, for sweepers."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        overrides = [str(text) for text in OmegaConf.to_container(hydra.overrides.task, resolve=False) or []]
        in_multirun = hydra.mode == RunMode.MULTIRUN
        if in_multirun:
            self.sweep.record(" ".join(overrides), code=None)
        try:
            if os.getpid() == self.stop.owner:
                return self._train(composed, overrides, in_multirun)
            with self.stop.listening(), self.sweep.working():  # as with the joblib launcher
                return self._train(composed, overrides, in_multirun)
        except Exception as error:
            message = explain(error)
            failure = UserError(message) if message is not None else error
            if not in_multirun:
                self.failure = failure
                return None
            self._record_failure(failure, " ".join(overrides))
            if str(hydra.sweeper.get("_target_", "")).endswith(".BasicSweeper"):
                return None  # it would only print the first failure once more
            raise failure from None

    def _train(self, composed: Any, overrides: list[str], in_multirun: bool) -> float | None:
        from omegaconf import OmegaConf

        content: Any = OmegaConf.to_container(composed, resolve=True)
        leading = self.leading or Leading(Ranks())
        config = launch.prepare_config(content, ranks=leading.ranks)
        job = leading.job() if config.launch.name == "env" else None
        for remark in remarks(config):
            note(remark)
        run = launch.train(config, overrides=overrides, stop=self.stop, in_multirun=in_multirun, job=job)
        print(result_line(run))
        for remark in untaught(run):
            note(remark)
        if in_multirun:
            self.sweep.record(" ".join(overrides), code=0)
        results = run.results
        for remark in results.get("remarks", []):
            note(f"{run.path}: {remark}")
        return main_metric(results)

    def _record_failure(self, error: Exception, overrides: str) -> None:
        code = error.exit_code if isinstance(error, OdistError) else 1
        if not isinstance(error, OdistError):
            traceback.print_exception(error)
        elif not isinstance(error, Interrupted):
            print(f"failed: {overrides} (why: at the end)", file=sys.stderr)
        message = str(error) if isinstance(error, OdistError) else f"{type(error).__name__}: {error}"
        where = "".join(f"{path}: " for path in getattr(error, "__notes__", [])[:1])
        self.sweep.record(overrides, code=code, message=where + message)


def train(words: list[str]) -> None:
    """Run Hydra's command line with `words` and end as its jobs ended.

    Raises UserError for anything wrong in the words, Interrupted, Diverged, LostWorkers when a launcher lost a
    process, and OdistError when jobs of a multirun failed.
    """
    ranks = find_ranks(os.environ)
    if ranks is None or ranks.size == 1:
        _run(read_arguments(words), None if ranks is None else Leading(ranks))
        return
    try:
        if ranks.rank == 0:
            with Leading(ranks) as leading:
                arguments = read_arguments(words)
                _start_in_place(arguments, ranks)
                _run(arguments, leading)
        else:
            _follow(ranks)
    except OdistError as error:
        if error.said:
            sys.exit(error.exit_code)
        raise


def _follow(ranks: Ranks) -> None:
    """Do what rank 0 says and end as it says."""
    from odist.launch import in_place, job

    stop = Stop(silent=True)
    with stop.listening():
        code = in_place.follow(job.Job(ranks), stop=stop)
    if code:
        sys.exit(code)


def _start_in_place(arguments: Arguments, ranks: Ranks) -> None:
    """Choose launch=env where an engine has started several processes; refuse what cannot be done there."""
    what = f"torchrun, srun or Kubernetes has started {ranks.size} processes for this command"
    launch = arguments.value_of("launch")
    if arguments.is_multirun:
        raise UserError(f"{what}, which train one run together: type the runs of -m one by one.")
    if launch not in (None, "env"):
        raise UserError(
            f"launch={launch}: {what}. Leave launch out, so that they train in place, or type the command without the engine."
        )
    if launch is None:
        arguments.overrides.append("launch=env")


def _run(arguments: Arguments, leading: Leading | None) -> None:
    arguments.overrides += _sweeper_settings(arguments.overrides)
    if arguments.wants_help:
        _show_help(arguments)
        return
    sweep = Sweep.beside(local_folder(arguments.value_of("run.dir") or "runs", key="run.dir"))
    stop = Stop(sweep.stop_file if arguments.is_multirun else None)
    job = Job(sweep, stop, leading)
    records: list[Record] = []
    tracebacks = _wants_tracebacks()
    with stop.listening(), _environment(arguments.words(), sweep.path):
        try:
            _hydra(job)
        except SystemExit as end:  # Hydra has printed what it was asked for, or what is wrong
            if end.code not in (0, None):
                sys.exit(UserError.exit_code)
        except KeyboardInterrupt:
            stop.requested = True
            sweep.wait()
        except Exception as error:
            records = sweep.records()
            if _lost_a_process(error) and not stop.requested:
                raise LostWorkers(list_jobs(records)) from error
            if not any(record.code for record in records):
                _raise_explained(error, tracebacks=tracebacks)
        finally:
            records = sweep.records()
            sweep.tidy(stop)
    if job.failure is not None:
        raise job.failure
    raise_failures(records, stopped=stop.requested)


def _show_help(arguments: Arguments) -> None:
    """Print the choices and keys of this command; of several values of a key the first counts."""
    from odist.cli.train_help import help_page

    folders = config_folders()
    for flag, value in zip(arguments.flags, arguments.flags[1:], strict=False):
        if flag in ("--config-dir", "-cd"):
            folders.insert(0, Path(value))
    flags = [flag for flag in arguments.flags if flag not in ("-m", "--multirun")]
    overrides = [word for word in arguments.overrides if not is_sweep(word)]
    shown, tracebacks = io.StringIO(), _wants_tracebacks()
    with _environment(Arguments(["--resolve", *flags], overrides).words(), Path("runs")):
        try:
            with contextlib.redirect_stdout(shown):
                _hydra(print)
        except SystemExit:  # how Hydra ends after its help
            pass
        except Exception as error:
            _raise_explained(error, tracebacks=tracebacks)
    print(help_page(shown.getvalue(), folders=folders, width=shutil.get_terminal_size((100, 24)).columns))


def _wants_tracebacks() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _raise_explained(error: Exception, *, tracebacks: bool) -> NoReturn:
    message = None if tracebacks else explain(error)
    if message is None:
        raise error
    raise UserError(message) from error


def _hydra(job: Callable[[Any], Any]) -> None:
    import hydra

    register()
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()


@contextlib.contextmanager
def _environment(arguments: list[str], sweep: Path) -> Iterator[None]:
    """Give Hydra its command line and settings, and take them back."""
    before, before_argv, before_logging = dict(os.environ), sys.argv, logging.raiseExceptions
    logging.raiseExceptions = False  # Hydra prints help by logging, which would print a traceback for a closed pipe
    sys.argv = ["odist train", *arguments]
    os.environ[SWEEP_VARIABLE] = str(sweep)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what went wrong instead of printing it
    try:
        yield
    finally:
        sys.argv, logging.raiseExceptions = before_argv, before_logging
        for name in (SWEEP_VARIABLE, "HYDRA_FULL_ERROR"):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def _sweeper_settings(overrides: list[str]) -> list[str]:
    """With every sweeper a failed job stops no other; Optuna's gives up at the first unless told."""
    key = "hydra.sweeper.max_failure_rate"
    if "hydra/sweeper=optuna" not in overrides or any(word.startswith(f"{key}=") for word in overrides):
        return []
    return [f"{key}=1.0"]


def _lost_a_process(error: Exception) -> bool:
    """Whether a launcher says that a process of its own was killed: joblib's pool, or submitit."""
    return bool({"BrokenProcessPool", "UncompletedJobError"} & {kind.__name__ for kind in type(error).__mro__})
