"""`odist train`: Hydra composes, this starts the runs.

Hydra's own command line does the work (multirun, sweepers, launchers, --cfg, --config-dir); its job starts or
continues one run and never trains by its own rules. Worker code does not import Hydra.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from odist.cli.explain import explain
from odist.cli.printing import main_metric, result_line, untaught
from odist.cli.train_arguments import Arguments, is_sweep, read_arguments
from odist.config.folder import config_folder, config_folders
from odist.config.read import register
from odist.errors import Interrupted, LostWorkers, OdistError, UserError
from odist.files import Tail
from odist.launch import launch
from odist.launch.remarks import remarks
from odist.launch.stop import Stop
from odist.run.places import local_folder
from odist.run.provenance import process_start

SWEEP_VARIABLE = "ODIST_SWEEP_DIR"  # read by conf/config.yaml; Hydra and its plug-ins write there
JOBS = "jobs.jsonl"  # a row when a job begins (code null) and one when it ends
STOP_FILE = "stop"
ACTIVE = "active-"  # and host and process id
SECONDS_TO_SAVE = 60.0


class Job:
    """What Hydra calls for every combination; goes to other processes with the joblib and submitit launchers."""

    def __init__(self, sweep: Path, stop: Stop) -> None:
        self.sweep = sweep
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
            self._record(" ".join(overrides), code=None)
        try:
            if os.getpid() == self.stop.owner:
                return self._train(composed, overrides, in_multirun)
            with self.stop.listening(), self._marked_active():  # as with the joblib launcher
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

    @contextlib.contextmanager
    def _marked_active(self) -> Iterator[None]:
        """Let the command see that this process still works."""
        self.sweep.mkdir(parents=True, exist_ok=True)
        mark = self.sweep / f"{ACTIVE}{platform.node()}-{os.getpid()}"
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def _train(self, composed: Any, overrides: list[str], in_multirun: bool) -> float | None:
        from omegaconf import OmegaConf

        content: Any = OmegaConf.to_container(composed, resolve=True)
        config = launch.prepare_config(content)
        for remark in remarks(config):
            print(f"note: {remark}", file=sys.stderr)
        run = launch.train(config, overrides=overrides, stop=self.stop, in_multirun=in_multirun)
        print(result_line(run))
        for remark in untaught(run):
            print(f"note: {remark}", file=sys.stderr)
        if in_multirun:
            self._record(" ".join(overrides), code=0)
        results = run.results
        for remark in results.get("remarks", []):
            print(f"note: {run.path}: {remark}", file=sys.stderr)
        return main_metric(results)

    def _record_failure(self, error: Exception, overrides: str) -> None:
        code = error.exit_code if isinstance(error, OdistError) else 1
        if not isinstance(error, OdistError):
            traceback.print_exception(error)
        elif not isinstance(error, Interrupted):
            print(f"failed: {overrides} (why: at the end)", file=sys.stderr)
        message = str(error) if isinstance(error, OdistError) else f"{type(error).__name__}: {error}"
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", [])[:1])
        self._record(overrides, code=code, message=where + message)

    def _record(self, overrides: str, *, code: int | None, message: str = "") -> None:
        self.sweep.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"code": code, "overrides": overrides, "message": message})
        with open(self.sweep / JOBS, "a", encoding="utf-8") as file:  # one short write: whole lines
            file.write(line + "\n")


def train(words: list[str]) -> None:
    """Run Hydra's command line with `words` and end as its jobs ended.

    Raises UserError for anything wrong in the words, Interrupted, Diverged, LostWorkers when a launcher lost a
    process, and OdistError when jobs of a multirun failed.
    """
    arguments = read_arguments(words)
    arguments.overrides += _sweeper_settings(arguments.overrides)
    if arguments.wants_help:
        _show_help(arguments)
        return
    sweep = _sweep_folder(arguments)
    stop = Stop(sweep / STOP_FILE if arguments.is_multirun else None)
    job = Job(sweep, stop)
    records: list[dict[str, Any]] = []
    tracebacks = _wants_tracebacks()
    with stop.listening(), _environment(arguments.words(), sweep):
        try:
            _hydra(job)
        except SystemExit as end:  # Hydra has printed what it was asked for, or what is wrong
            if end.code not in (0, None):
                sys.exit(UserError.exit_code)
        except KeyboardInterrupt:
            stop.requested = True
            _wait_for_jobs(sweep)
        except Exception as error:
            records = _read_records(sweep)
            if _lost_a_process(error) and not stop.requested:
                raise LostWorkers(_what_is_done(records)) from error
            if not any(record["code"] for record in records):
                _raise_explained(error, tracebacks=tracebacks)
        finally:
            records = _read_records(sweep)
            _tidy(sweep, stopped=stop.requested)
    if job.failure is not None:
        raise job.failure
    _end_multirun([record for record in records if record["code"]], stopped=stop.requested)


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
    logging.raiseExceptions = False  # Hydra prints help by logging: a closed pipe is no reason for tracebacks
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


def _sweep_folder(arguments: Arguments) -> Path:
    """Where a multirun leaves what its jobs share: hidden, beside the runs."""
    parent = local_folder(arguments.value_of("run.dir") or "runs", key="run.dir")
    return (parent / ".sweep" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}").absolute()


def _read_records(sweep: Path) -> list[dict[str, Any]]:
    return Tail(sweep / JOBS).objects()


def _lost_a_process(error: Exception) -> bool:
    """Whether a launcher says that a process of its own was killed: joblib's pool, or submitit."""
    return bool({"BrokenProcessPool", "UncompletedJobError"} & {kind.__name__ for kind in type(error).__mro__})


def _what_is_done(records: list[dict[str, Any]]) -> str:
    ended = {record["overrides"]: record["code"] for record in records if record["code"] is not None}
    begun = dict.fromkeys(record["overrides"] for record in records)
    lines = ["a process of the launcher was killed, by hand or for want of memory, and the launcher ended the others."]
    lines += [f"  done: {overrides}" for overrides in begun if ended.get(overrides) == 0]
    lines += [f"  failed: {overrides}" for overrides in begun if ended.get(overrides)]
    lines += [f"  not finished: {overrides}" for overrides in begun if overrides not in ended]
    return "\n".join([*lines, "The same command finishes these and what was not begun."])


def _marks(sweep: Path) -> Iterator[tuple[Path, bool]]:
    """Marks of jobs in other processes, and whether the process may still live."""
    for path in sweep.glob(f"{ACTIVE}*"):
        host, _, pid = path.name.removeprefix(ACTIVE).rpartition("-")
        yield path, host != platform.node() or process_start(int(pid)) is not None


def _wait_for_jobs(sweep: Path) -> None:
    """After an interrupt, until the jobs in other processes have saved; those of a dead process do not count."""
    deadline = time.monotonic() + SECONDS_TO_SAVE
    while time.monotonic() < deadline:
        if not any(alive for _, alive in _marks(sweep)):
            return
        time.sleep(0.1)
    print(f"some jobs have not saved within {SECONDS_TO_SAVE:.0f} s and may still run", file=sys.stderr)


def _tidy(sweep: Path, *, stopped: bool) -> None:
    """Remove what is of no use after the end; results and logs of sweeper and launcher plug-ins stay."""
    if not sweep.is_dir():
        return
    for name in ("multirun.yaml", JOBS):
        (sweep / name).unlink(missing_ok=True)
    for mark, alive in list(_marks(sweep)):
        if not alive:
            mark.unlink(missing_ok=True)  # left by a process that was killed
    if not (stopped and any(path.name != STOP_FILE for path in sweep.glob("*"))):
        (sweep / STOP_FILE).unlink(missing_ok=True)  # else a launcher's queued jobs still have to see it
    for folder in (sweep, sweep.parent):
        with contextlib.suppress(OSError):  # not empty, or never made
            folder.rmdir()
    if sweep.is_dir():
        print(f"files of the sweeper or launcher: {sweep}")


def _end_multirun(failures: list[dict[str, Any]], *, stopped: bool) -> None:
    """Raise what sums up the jobs that did not finish, if any."""
    failed = [failure for failure in failures if failure["code"] != Interrupted.exit_code]
    lines = [f"  {failure['overrides']}: {failure['message']}".splitlines()[0] for failure in failed]
    listed = f"{len(failed)} of the runs failed:\n" + "\n".join(lines) if failed else ""
    if stopped or len(failed) < len(failures):
        rest = f"{len(failures) - len(failed)} runs were stopped or not started. " if failures else ""
        raise Interrupted(f"{listed}\n{rest}The same command continues.".lstrip())
    if failed:
        codes = {failure["code"] for failure in failed}
        end = OdistError(listed)
        end.exit_code = codes.pop() if len(codes) == 1 else 1
        raise end
