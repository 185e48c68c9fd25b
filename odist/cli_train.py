"""`odist train`: Hydra composes, this starts the runs.

Hydra's own command line does the work (multirun, sweepers, launchers, --cfg, --config-dir); its job starts or
continues one run and never trains by its own rules. Worker code does not import Hydra.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odist import launch
from odist.cli_show import main_metric, result_line
from odist.config import register
from odist.errors import Interrupted, OdistError, UserError
from odist.explain import explain
from odist.validate import remarks

SWEEP_VARIABLE = "ODIST_SWEEP_DIR"  # read by conf/config.yaml; Hydra and its plug-ins write there
FAILURES = "failures.jsonl"
STOP_FILE = "stop"


def config_folder() -> Path:
    """The folder of conf/: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise OdistError("The configuration folder conf/ is missing from this installation of odist; install it again.")


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

        hydra = HydraConfig.get()
        in_multirun = hydra.mode == RunMode.MULTIRUN
        try:
            if os.getpid() == self.stop.owner:
                return self._train(composed, list(hydra.overrides.task), in_multirun)
            with self.stop.listening():
                return self._train(composed, list(hydra.overrides.task), in_multirun)
        except Exception as error:
            if not in_multirun:
                self.failure = error
                return None
            self._record(error, " ".join(hydra.overrides.task))
            raise

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
        line = json.dumps({"code": code, "overrides": overrides, "message": str(error) or type(error).__name__})
        with open(self.sweep / FAILURES, "a", encoding="utf-8") as file:  # one short write: whole lines
            file.write(line + "\n")


def train(arguments: list[str]) -> None:
    """Run Hydra's command line with `arguments` and end as its jobs ended.

    Raises UserError for anything wrong in the arguments, Interrupted, Diverged, and OdistError when
    jobs of a multirun failed.
    """
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
        except Exception as error:
            if not (sweep / FAILURES).is_file():
                message = None if own_tracebacks else explain(error)
                if message is None:
                    raise
                raise UserError(message) from error
        finally:
            failures = _read_failures(sweep)
            _tidy(sweep)
    if job.failure is not None:
        raise job.failure
    _end_multirun(failures, stopped=stop.requested)


def _hydra(job: Job) -> None:
    import hydra

    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()


@contextlib.contextmanager
def _environment(arguments: list[str], sweep: Path) -> Iterator[None]:
    """Give Hydra its command line and settings, and take them back."""
    before, before_argv = dict(os.environ), sys.argv
    sys.argv = ["odist train", *arguments]
    os.environ[SWEEP_VARIABLE] = str(sweep)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what went wrong instead of printing it
    try:
        yield
    finally:
        sys.argv = before_argv
        for name in (SWEEP_VARIABLE, "HYDRA_FULL_ERROR"):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


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


def _tidy(sweep: Path) -> None:
    """Remove what is of no use after the end; results and logs of sweeper and launcher plug-ins stay."""
    for name in ("multirun.yaml", STOP_FILE, FAILURES):
        (sweep / name).unlink(missing_ok=True)
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
