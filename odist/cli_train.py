"""`odist train`: Hydra composes, this starts the runs.

Hydra's own command line does the work (multirun, sweepers, launchers, --cfg, --config-dir); its job starts or
continues one run and never trains by its own rules. Worker code does not import Hydra.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odist import launch
from odist.cli_show import main_metric, result_line
from odist.conf_folder import config_folder
from odist.config_read import register
from odist.errors import Interrupted, OdistError, UserError
from odist.explain import explain
from odist.provenance import process_start
from odist.validate import remarks

SWEEP_VARIABLE = "ODIST_SWEEP_DIR"  # read by conf/config.yaml; Hydra and its plug-ins write there
FAILURES = "failures.jsonl"
STOP_FILE = "stop"
ACTIVE = "active-"  # and host and process id
SECONDS_TO_SAVE = 60.0
FLAGS_WITH_VALUE = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
)


class Job:
    """What Hydra calls for every combination; goes to other processes with the joblib and submitit launchers."""

    def __init__(self, sweep: Path, stop: launch.Stop) -> None:
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
            self._record(failure, " ".join(overrides))
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
        return main_metric(run.results)

    def _record(self, error: Exception, overrides: str) -> None:
        code = error.exit_code if isinstance(error, OdistError) else 1
        if not isinstance(error, OdistError):
            traceback.print_exception(error)
        elif not isinstance(error, Interrupted):
            print(f"error: {overrides}: {error}", file=sys.stderr)
        self.sweep.mkdir(parents=True, exist_ok=True)
        message = str(error) if isinstance(error, OdistError) else f"{type(error).__name__}: {error}"
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", [])[:1])
        line = json.dumps({"code": code, "overrides": overrides, "message": where + message})
        with open(self.sweep / FAILURES, "a", encoding="utf-8") as file:  # one short write: whole lines
            file.write(line + "\n")


def train(arguments: list[str]) -> None:
    """Run Hydra's command line with `arguments` and end as its jobs ended.

    Raises UserError for anything wrong in the arguments, Interrupted, Diverged, and OdistError when
    jobs of a multirun failed.
    """
    arguments = _flags_first([*arguments, *_sweeper_settings(arguments)])
    _refuse(arguments)
    sweep = _sweep_folder(arguments)
    stop = launch.Stop(sweep / STOP_FILE if _is_multirun(arguments) else None)
    job = Job(sweep, stop)
    register()
    own_tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    with stop.listening(), _environment(arguments, sweep):
        try:
            _hydra(job)
        except SystemExit as end:
            if end.code not in (0, None):
                raise
        except KeyboardInterrupt:
            stop.requested = True
            _wait_for_jobs(sweep)
        except Exception as error:
            if not (sweep / FAILURES).is_file():
                message = None if own_tracebacks else explain(error)
                if message is None:
                    raise
                raise UserError(message) from error
        finally:
            failures = _read_failures(sweep)
            _tidy(sweep, stopped=stop.requested)
    if job.failure is not None:
        raise job.failure
    _end_multirun(failures, stopped=stop.requested)


def _hydra(job: Job) -> None:
    import hydra

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


def _flags_first(arguments: list[str]) -> list[str]:
    """Hydra's parser wants its flags before all overrides; let them stand anywhere."""
    flags: list[str] = []
    overrides: list[str] = []
    rest: Iterator[str] = iter(arguments)
    while (argument := next(rest, None)) is not None:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        flags.append(argument)
        if argument in FLAGS_WITH_VALUE:
            flags += [value for value in [next(rest, None)] if value is not None]
        elif argument in ("--info", "-i"):  # may have a value or none
            following = next(rest, None)
            if following is not None and "=" not in following and not following.startswith("-"):
                flags.append(following)
            elif following is not None:
                rest = itertools.chain([following], rest)
    return [*flags, *(["--"] if flags and overrides else []), *overrides]


def _sweeper_settings(arguments: list[str]) -> list[str]:
    """With every sweeper a failed job stops no other; Optuna's gives up at the first unless told."""
    key = "hydra.sweeper.max_failure_rate"
    if "hydra/sweeper=optuna" not in arguments or any(argument.startswith(f"{key}=") for argument in arguments):
        return []
    return [f"{key}=1.0"]


def _is_multirun(arguments: list[str]) -> bool:
    return any(argument in ("-m", "--multirun") for argument in arguments) or any(
        argument.startswith("hydra.mode=") and argument.upper().endswith("MULTIRUN") for argument in arguments
    )


def _refuse(arguments: list[str]) -> None:
    if any(argument.split("=")[0] == "--experimental-rerun" for argument in arguments):
        raise UserError("--experimental-rerun is not supported. The same `odist train` command continues a run.")
    for argument in arguments:
        key, sign, value = argument.lstrip("+~").partition("=")
        if sign and key == "run.dir" and _is_multirun(arguments) and _is_sweep(argument):
            raise UserError(f"run.dir={value}: in a multirun run.dir is the parent folder of all runs; give one. "
                            "Every run gets its own folder below it.")  # fmt: skip


def _is_sweep(argument: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:
        return False  # Hydra will say what is wrong with it


def _sweep_folder(arguments: list[str]) -> Path:
    """Where a multirun leaves what its jobs share: hidden, beside the runs."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("run.dir=")]
    parent = Path(given[-1] if given and given[-1] not in ("", "null") else "runs")
    return (parent / ".sweep" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}").absolute()


def _read_failures(sweep: Path) -> list[dict[str, Any]]:
    path = sweep / FAILURES
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _wait_for_jobs(sweep: Path) -> None:
    """After an interrupt, until the jobs in other processes have saved; those of a dead process do not count."""
    deadline = time.monotonic() + SECONDS_TO_SAVE
    while time.monotonic() < deadline:
        marks = [path.name.removeprefix(ACTIVE).rpartition("-") for path in sweep.glob(f"{ACTIVE}*")]
        if not any(host != platform.node() or process_start(int(pid)) is not None for host, _, pid in marks):
            return
        time.sleep(0.1)
    print(f"some jobs have not saved within {SECONDS_TO_SAVE:.0f} s and may still run", file=sys.stderr)


def _tidy(sweep: Path, *, stopped: bool) -> None:
    """Remove what is of no use after the end; results and logs of sweeper and launcher plug-ins stay."""
    for name in ("multirun.yaml", FAILURES):
        (sweep / name).unlink(missing_ok=True)
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
